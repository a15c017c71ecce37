"""Merges data files of `spans` into one, sorted, while others write to the lake: the lock is held for the swap alone.

The new file has what DuckLake's own merge writes: the columns by their field ids, and with each row the snapshot that
inserted it, by which time travel, insertions and the rollups go. It is a series of sorted runs (order.py), one after
the other in time. Files of long runs are joined as they are (splice.py); others are sorted anew in blocks of
BLOCK_ROWS, so that memory is bounded by a block.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collector.lake.order import parts_by_tenant_and_time
from collector.lake.segments import new_file
from collector.lake.splice import Source, are_alike, source_of, write_spliced
from collector.lake.tiers import File

ROWS_PER_GROUP = 32_768
BLOCK_ROWS = 3 * ROWS_PER_GROUP
COPIED_ROWS_MIN = BLOCK_ROWS // 2
COPIED_GROUP_ROWS_MIN = ROWS_PER_GROUP // 2
"""Of a file and of a row group, on average: shorter runs of sorted spans would leave each tenant in every row group."""
BLOCK_BYTES = 64 * 2**20
"""Of values as they are encoded before compression."""
PREFIX = "merged"
SNAPSHOT_ID = "_ducklake_internal_snapshot_id"
ROW_ID = "_ducklake_internal_row_id"
# Reserved by DuckLake, after Iceberg's _last_updated_sequence_number and _row_id.
_INTERNAL_FIELD_IDS = {SNAPSHOT_ID: 2147483539, ROW_ID: 2147483540}


def field(name: str, arrow_type: pa.DataType, nullable: bool, field_id: int) -> pa.Field:
    """An Arrow field that Parquet writes with this field id."""
    return pa.field(name, arrow_type, nullable, metadata={"PARQUET:field_id": str(field_id)})


def write_merged(
    files: Sequence[File], folder: Path, schema: pa.Schema, block_bytes: int = BLOCK_BYTES
) -> tuple[Path, bool]:
    """Write the rows of `files` (at least one row) as one new file of `folder`, the table's; durable on return.

    `schema` has the table's columns with their field ids; memory is taken for a few times `block_bytes`. Returns the
    path, and whether the file holds row ids: they follow from the first file's where all follow each other. Raises
    OSError.
    """
    paths, schema = _sources(files, folder, schema)
    path = _spliced(files, paths, folder, schema) or _sorted_anew(files, paths, folder, schema, block_bytes)
    return path, ROW_ID in schema.names


def write_joined(files: Sequence[File], folder: Path, schema: pa.Schema) -> tuple[Path, bool] | None:
    """As `write_merged`, the files' row groups as they are; None where they are too small, or not alike."""
    paths, schema = _sources(files, folder, schema)
    path = _spliced(files, paths, folder, schema)
    return (path, ROW_ID in schema.names) if path else None


def table_schema(path: Path) -> pa.Schema:
    """The columns of the table that a file has, without those that merges add. Raises OSError."""
    return pa.schema([column for column in pq.read_schema(path) if column.name not in _INTERNAL_FIELD_IDS])


def _sources(files: Sequence[File], folder: Path, schema: pa.Schema) -> tuple[list[Path], pa.Schema]:
    """The paths of files, and the schema of the file that they make: `schema`, and the internal columns it needs."""
    paths = [folder / file.path if file.is_relative else Path(file.path) for file in files]
    with_row_ids = not _follow(files) or any(ROW_ID in _names(path) for path in paths)
    for name in [SNAPSHOT_ID, ROW_ID] if with_row_ids else [SNAPSHOT_ID]:
        schema = schema.append(field(name, pa.int64(), True, _INTERNAL_FIELD_IDS[name]))
    return paths, schema


def _names(path: Path) -> list[str]:
    with _reading(path):
        return list(pq.read_schema(path).names)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises OSError, with the path, where the file is not whole: pyarrow tells that as ValueError."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(f"the data file {str(path)!r} cannot be read: {error}") from error


def _sorted_anew(
    files: Sequence[File], paths: Sequence[Path], folder: Path, schema: pa.Schema, block_bytes: int
) -> Path:
    groups = chain.from_iterable(_row_groups(*each, schema) for each in zip(files, paths, strict=True))
    parts = _sorted_parts(groups, block_bytes)
    part: pa.Table | None = next(parts)
    with new_file(folder, PREFIX, part, ROWS_PER_GROUP) as new:
        while part is not None:
            new.writer.write_table(part, row_group_size=ROWS_PER_GROUP)
            part = None  # before the next one is made
            part = next(parts, None)
    return new.path


def _sorted_parts(groups: Iterator[tuple[pa.Table, int]], block_bytes: int) -> Iterator[pa.Table]:
    """Row groups to be written, those of a block in order; whoever takes one has it alone."""
    for block in _blocks(groups, block_bytes):
        whole = [pa.concat_tables(block)]
        block.clear()
        yield from parts_by_tenant_and_time(whole.pop(), ROWS_PER_GROUP)


def _spliced(files: Sequence[File], paths: Sequence[Path], folder: Path, schema: pa.Schema) -> Path | None:
    """The files' row groups as they are, in a new one; None where they are too small, or not alike."""
    if sum(file.rows for file in files) < COPIED_ROWS_MIN * len(files):
        return None
    with ExitStack() as stack:
        try:
            sources = [source_of(stack.enter_context(path.open("rb"))) for path in paths]
        except ValueError:
            return None  # whoever reads the rows can tell what is wrong with them
        rows = [source.rows_by_group for source in sources]
        has_small_groups = sum(map(sum, rows)) < COPIED_GROUP_ROWS_MIN * sum(map(len, rows))
        least = pa.schema([column for column in schema if column.name not in _INTERNAL_FIELD_IDS])
        if has_small_groups or not are_alike(sources, schema, least):
            return None
        return write_spliced(sources, _internal_columns(files, rows, schema), folder, PREFIX, schema)


def _internal_columns(files: Sequence[File], rows: Sequence[Sequence[int]], schema: pa.Schema) -> Source:
    """What DuckLake's merges add to the rows of files, in a file of its own, by the numbers of rows in their groups."""
    internal = pa.schema([column for column in schema if column.name in _INTERNAL_FIELD_IDS])
    content = io.BytesIO()
    with pq.ParquetWriter(content, internal, compression="zstd", store_schema=False) as writer:
        for file, counts in zip(files, rows, strict=True):
            row = file.row_id_start or 0
            for count in counts:
                columns = _internal(file, row, count)
                writer.write_table(pa.table([columns[name] for name in internal.names], schema=internal))
                row += count
    return source_of(content)


def _internal(file: File, row: int, count: int) -> dict[str, pa.Array]:
    """The internal columns of `count` rows of a file, the first of which has the id `row`."""
    return {
        SNAPSHOT_ID: pa.array(np.full(count, file.begin_snapshot)),
        ROW_ID: pa.array(np.arange(row, row + count, dtype=np.int64)),
    }


def _follow(files: Sequence[File]) -> bool:
    return files[0].row_id_start is not None and all(
        before.row_id_start is not None and before.row_id_start + before.rows == after.row_id_start
        for before, after in pairwise(files)
    )


def _blocks(groups: Iterator[tuple[pa.Table, int]], block_bytes: int) -> Iterator[list[pa.Table]]:
    """Row groups, with their encoded bytes, cut and joined to blocks of BLOCK_ROWS, or fewer of about `block_bytes`."""
    block: list[pa.Table] = []
    rows, size = 0, 0.0
    for table, table_bytes in groups:
        rest, bytes_per_row = table, table_bytes / max(table.num_rows, 1)
        while rest.num_rows:
            fitting = int((block_bytes - size) / max(bytes_per_row, 1.0))
            part = rest.slice(0, max(1, min(BLOCK_ROWS - rows, fitting)))
            rest = rest.slice(part.num_rows)
            block.append(part)
            rows += part.num_rows
            size += part.num_rows * bytes_per_row
            if rows == BLOCK_ROWS or size >= block_bytes:
                yield block
                block, rows, size = [], 0, 0.0
    if block:
        yield block


def _row_groups(file: File, path: Path, schema: pa.Schema) -> Iterator[tuple[pa.Table, int]]:
    """The row groups of a file in `schema`, with their bytes before compression."""
    labels = [label for column in schema for label in _label_paths(column)]
    with _reading(path), pq.ParquetFile(path) as plain:
        metadata = plain.metadata
    encoded = _dictionary_columns(metadata)
    row = file.row_id_start or 0
    with pq.ParquetFile(path, read_dictionary=[name for name in labels if name in encoded]) as source:
        for number in range(metadata.num_row_groups):
            with _reading(path):
                table = source.read_row_group(number, use_threads=False)
            internal = _internal(file, row, table.num_rows)
            row += table.num_rows
            for name in set(schema.names) - set(table.column_names):
                table = table.append_column(name, internal[name])
            yield conformed(table, schema), metadata.row_group(number).total_byte_size


def _label_paths(column: pa.Field) -> list[str]:
    """Paths of the dictionaries of a column: its own, or that of its keys."""
    if pa.types.is_map(column.type) and pa.types.is_dictionary(column.type.key_type):
        return [f"{column.name}.key_value.key"]
    return [column.name] if pa.types.is_dictionary(column.type) else []


def _dictionary_columns(metadata: pq.FileMetaData) -> set[str]:
    """Columns that can be read as dictionaries: of all other encodings only plain ones can, Arrow 26 says."""
    readable = {"PLAIN", "RLE", "PLAIN_DICTIONARY", "RLE_DICTIONARY"}
    chunks = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    other = {chunk.path_in_schema for chunk in chunks if not readable.issuperset(chunk.encodings)}
    return {chunk.path_in_schema for chunk in chunks} - other


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its order and types; texts become dictionaries where it has them."""
    columns = [_cast(table.column(name), wanted) for name, wanted in zip(schema.names, schema.types, strict=True)]
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(wanted) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column if column.type == wanted else column.cast(wanted)
