"""Parquet files of the lake: whole on disk, under their final name, before any catalog hears of them."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TEMPORARY_SUFFIX = ".part"
TRACE_ID = "trace_id"
"""The column that has a Bloom filter in each row group: who looks for a value reads the few groups that may have it."""

SEGMENT_ROWS_PER_GROUP_MAX = 40_960
COMPRESSION = "zstd"
INTERIM_COMPRESSION = "lz4"
"""For what is soon written anew: takes less time, to read as well, and more space."""
_BATCH_BYTES = 2**24
_BATCH_ROWS_MIN, _BATCH_ROWS_MAX = 1024, 16_384
"""Of rows whose columns are written at a time: with many a tenth is saved, but a page has no fewer than these."""
_FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class NewFile:
    """A file that is being written."""

    path: Path
    writer: pq.ParquetWriter


def write_segment(table: pa.Table, folder: Path, compression: str = COMPRESSION) -> Path:
    """Write `table` as one Parquet file into `folder` and return its path; its row groups are of one length.

    When this returns, content and name are on disk (fsync of file and folder). A crash in between leaves a
    `.part` file or an unregistered one: an orphan, never part of the lake. Raises OSError.
    """
    groups = max(1, math.ceil(table.num_rows / SEGMENT_ROWS_PER_GROUP_MAX))
    rows_per_group = max(1, math.ceil(table.num_rows / groups))
    with new_file(folder, "segment", table, rows_per_group, compression) as file:
        file.writer.write_table(table, row_group_size=rows_per_group)
    return file.path


@contextmanager
def new_file(
    folder: Path, prefix: str, first: pa.Table, rows_per_group: int, compression: str = COMPRESSION
) -> Iterator[NewFile]:
    """A file of `first`'s schema, durable at the end as `write_segment` says, gone after an exception.

    `first` is the first of what is to be written, from which the size of Bloom filters and of batches is taken.
    Raises OSError.
    """
    is_interim = compression == INTERIM_COMPRESSION
    bloom_filters = _bloom_filters(first, rows_per_group, is_interim=is_interim)
    schema, batch_rows = first.schema, _batch_rows(first)
    del first  # it is large
    temporary, final = new_segment(folder, prefix)
    try:
        with (
            temporary.open("wb") as file,
            pq.ParquetWriter(
                file,
                schema,
                compression=compression,
                compression_level=1 if compression == COMPRESSION else None,
                write_batch_size=batch_rows,
                use_dictionary=_dictionary_columns(schema, is_interim=is_interim),
                column_encoding=_encodings(schema),
                bloom_filter_options=bloom_filters,
                store_schema=False,
            ) as writer,
        ):
            yield NewFile(final, writer)
        settle(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_segment(folder: Path, prefix: str = "segment") -> tuple[Path, Path]:
    """A temporary and a final path for a new file of `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{prefix}-{uuid.uuid4().hex}.parquet"
    return final.with_suffix(TEMPORARY_SUFFIX), final


def settle(temporary: Path, final: Path) -> None:
    """Bring a whole file to disk, then its final name. Raises OSError."""
    _sync(temporary)
    temporary.rename(final)
    _sync(final.parent)


def _dictionary_columns(schema: pa.Schema, *, is_interim: bool) -> list[str]:
    """Columns of few distinct values; trying a dictionary on the others costs time and is given up anyway.

    Values of attributes often repeat: that saves space, which is not worth the time where they are written anew soon.
    """
    columns = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    for field in schema:
        if pa.types.is_map(field.type):
            columns += [f"{field.name}.key_value.key"] + [f"{field.name}.key_value.value"] * (not is_interim)
    return columns


def _encodings(schema: pa.Schema) -> dict[str, str]:
    encodings = {}
    for field in schema:
        if pa.types.is_string(field.type):
            encodings[field.name] = "DELTA_LENGTH_BYTE_ARRAY"
        elif pa.types.is_int64(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    return encodings


def _bloom_filters(first: pa.Table, rows_per_group: int, *, is_interim: bool) -> dict[str, dict[str, float]] | None:
    """As large as the traces need; in an interim file as they need at most, for to count them takes time."""
    if not first.num_rows or TRACE_ID not in first.column_names:
        return None
    traces = first.num_rows if is_interim else pc.count_distinct(first.column(TRACE_ID)).as_py()
    in_group = traces * min(rows_per_group, first.num_rows) // first.num_rows
    return {TRACE_ID: {"ndv": max(in_group, 1), "fpp": _FALSE_POSITIVES}}


def _batch_rows(first: pa.Table) -> int:
    """As many rows as have _BATCH_BYTES, within the bounds."""
    rows: int = first.num_rows * _BATCH_BYTES // max(first.nbytes, 1)
    return min(max(rows, _BATCH_ROWS_MIN), _BATCH_ROWS_MAX)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
