"""Joins Parquet files by copying their column chunks as they are: nothing is decoded, sorted or compressed anew.

A chunk says nowhere in itself where it lies, so it can be moved as it is; offsets stand in the footer alone, which is
read, changed and written as Thrift (compact.py). After the specification of the format
(https://github.com/apache/parquet-format, parquet.thrift), whose field ids stand below. Row groups and their order of
rows stay those of the sources.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from collector.lake.compact import I16, I64, LIST, STRUCT, Struct, read_struct, write_struct
from collector.lake.segments import new_segment, settle

MAGIC = b"PAR1"
# FileMetaData
_SCHEMA, _NUM_ROWS, _ROW_GROUPS, _ENCRYPTION = 2, 3, 4, 8
# SchemaElement
_FIELD_ID = 9
# RowGroup
_COLUMNS, _BYTES, _ROWS, _SORTING, _GROUP_OFFSET, _GROUP_COMPRESSED_BYTES, _ORDINAL = range(1, 8)
# ColumnChunk
_FILE_PATH, _CHUNK_OFFSET, _CHUNK = 1, 2, 3
# ColumnMetaData
_PATH, _UNCOMPRESSED_BYTES, _COMPRESSED_BYTES = 3, 6, 7
_PAGE_OFFSETS = (9, 10, 11)
"""Of data, of an index, of the dictionary: the chunk begins at the least that is given."""
_BLOOM_OFFSET, _BLOOM_BYTES = 14, 15


@dataclass(frozen=True)
class Source:
    """A Parquet file, open, and what its footer says of all chunks together.

    The footer stays as it was read: parsed, it takes forty times the memory, and a merge has many sources.
    """

    file: BinaryIO
    footer: bytes
    columns: list[Struct]
    rows_by_group: list[int]
    is_movable: bool
    """Whether all that belongs to a chunk is known, and in the file itself."""

    def groups(self) -> list[Struct]:
        """The row groups, parsed anew."""
        groups: list[Struct] = read_struct(self.footer)[_ROW_GROUPS][1][1]
        return groups


def source_of(file: BinaryIO) -> Source:
    """An open Parquet file. Raises OSError, and ValueError where its end is not that of a Parquet file."""
    file.seek(-8, io.SEEK_END)
    tail = file.read(8)
    if tail[4:] != MAGIC:
        raise ValueError(f"{getattr(file, 'name', 'the file')} does not end as a Parquet file does")
    footer_bytes = int.from_bytes(tail[:4], "little")
    file.seek(-8 - footer_bytes, io.SEEK_END)
    content = file.read(footer_bytes)
    footer = read_struct(content)
    groups = footer[_ROW_GROUPS][1][1]
    is_movable = _ENCRYPTION not in footer and all(map(_is_movable, groups))
    return Source(file, content, _elements(footer), [int(group[_ROWS][1]) for group in groups], is_movable)


def are_alike(sources: Sequence[Source], schema: pa.Schema, least: pa.Schema) -> bool:
    """Whether all chunks of files can be chunks of one with `schema`: each has the columns of `least`, with which
    `schema` begins, and may have those that follow.

    Field ids may differ: they stand in the schema alone.
    """
    wanted, needed = (_elements(_template(each)[0]) for each in (schema, least))
    return all(
        source.is_movable and source.columns == wanted[: len(source.columns)] and len(source.columns) >= len(needed)
        for source in sources
    )


def _elements(footer: Struct) -> list[Struct]:
    """The columns and what they consist of, but for field ids; without the root, which counts them."""
    elements: list[Struct] = footer[_SCHEMA][1][1][1:]
    return [{key: value for key, value in element.items() if key != _FIELD_ID} for element in elements]


def _is_movable(group: Struct) -> bool:
    return all(
        _FILE_PATH not in column
        and _CHUNK in column
        and (_BLOOM_OFFSET in column[_CHUNK][1]) == (_BLOOM_BYTES in column[_CHUNK][1])
        for column in group[_COLUMNS][1][1]
    )


def write_spliced(sources: Sequence[Source], further: Source, folder: Path, prefix: str, schema: pa.Schema) -> Path:
    """Write all row groups of `sources`, in order, as one new file of `folder`, durable on return as a segment is.

    `schema` is that of the new file. What a source lacks of its columns comes from `further`, which has as many row
    groups as all sources together, of as many rows. Raises OSError.
    """
    footer, leaves = _template(schema)
    temporary, final = new_segment(folder, prefix)
    try:
        with temporary.open("wb") as file:
            file.write(MAGIC)
            groups = [write_struct(_copied_group(file, *each, leaves)) for each in enumerate(_pairs(sources, further))]
            footer[_NUM_ROWS] = I64, sum(map(sum, (source.rows_by_group for source in sources)))
            footer[_ROW_GROUPS] = LIST, (STRUCT, groups)
            content = write_struct(footer)
            file.write(content + len(content).to_bytes(4, "little") + MAGIC)
        settle(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return final


Part = tuple[BinaryIO, Struct]
"""A row group and the file that has it."""
Leaf = tuple[bytes, ...]
"""The path of a column that has chunks."""


def _pairs(sources: Sequence[Source], further: Source) -> Iterator[tuple[Part, Part]]:
    groups = chain.from_iterable(((source.file, group) for group in source.groups()) for source in sources)
    for part, group in zip(groups, further.groups(), strict=True):
        yield part, (further.file, group)


def _template(schema: pa.Schema) -> tuple[Struct, list[Leaf]]:
    """The footer of a file without rows, and the paths of the columns that have chunks."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer, store_schema=False)
    footer = read_struct(source_of(buffer).footer)
    columns = pq.read_metadata(buffer).schema
    return footer, [tuple(columns.column(i).path.encode().split(b".")) for i in range(len(columns))]


def _copied_group(file: BinaryIO, number: int, parts: tuple[Part, Part], leaves: Sequence[Leaf]) -> Struct:
    """Copy the chunks of a row group, its Bloom filters behind them, and tell of it."""
    found: dict[Leaf, tuple[BinaryIO, Struct]] = {}
    for source, group in reversed(parts):
        for column in group[_COLUMNS][1][1]:
            found[tuple(column[_CHUNK][1][_PATH][1][1])] = source, column[_CHUNK][1]
    start = file.tell()
    chunks = [_copied_chunk(file, *found[leaf]) for leaf in leaves]
    for leaf, chunk in zip(leaves, chunks, strict=True):
        if _BLOOM_OFFSET in chunk:
            source, original = found[leaf]
            chunk[_BLOOM_OFFSET] = I64, file.tell()
            _copy(source, original[_BLOOM_OFFSET][1], original[_BLOOM_BYTES][1], file)
    return {
        _COLUMNS: (LIST, (STRUCT, [{_CHUNK_OFFSET: (I64, 0), _CHUNK: (STRUCT, chunk)} for chunk in chunks])),
        _BYTES: (I64, _sum(chunks, _UNCOMPRESSED_BYTES)),
        _ROWS: parts[0][1][_ROWS],
        _GROUP_OFFSET: (I64, start),
        _GROUP_COMPRESSED_BYTES: (I64, _sum(chunks, _COMPRESSED_BYTES)),
        _ORDINAL: (I16, number),
    }


def _sum(chunks: Sequence[Struct], field: int) -> int:
    return sum(int(chunk[field][1]) for chunk in chunks)


def _copied_chunk(file: BinaryIO, source: BinaryIO, chunk: Struct) -> Struct:
    """Copy the pages of a chunk to where `file` is; its metadata with the offsets there."""
    offsets = {key: chunk[key][1] for key in _PAGE_OFFSETS if chunk.get(key, (I64, 0))[1]}
    start = min(offsets.values())
    moved_by = file.tell() - start
    _copy(source, start, chunk[_COMPRESSED_BYTES][1], file)
    return chunk | {key: (I64, offset + moved_by) for key, offset in offsets.items()}


def _copy(source: BinaryIO, start: int, count: int, file: BinaryIO) -> None:
    source.seek(start)
    content = source.read(count)
    if len(content) != count:
        raise OSError(f"{getattr(source, 'name', 'a source')} has {len(content)} bytes from {start} on, not {count}")
    file.write(content)
