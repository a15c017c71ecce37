"""Parquet segments: whole on disk, under their final name, before any catalog hears of them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEMPORARY_SUFFIX = ".part"


def write_segment(table: pa.Table, folder: Path) -> Path:
    """Write `table` as one Parquet file into `folder` and return its path.

    When this returns, content and name are on disk (fsync of file and folder). A crash in between leaves a
    `.part` file or an unregistered one: an orphan, never part of the lake. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"segment-{uuid.uuid4().hex}.parquet"
    temporary = final.with_suffix(TEMPORARY_SUFFIX)
    try:
        with temporary.open("wb") as file:
            pq.write_table(
                table,
                file,
                compression="zstd",
                compression_level=1,
                use_dictionary=_dictionary_columns(table.schema),
                column_encoding=_encodings(table.schema),
                row_group_size=40_960,
                store_schema=False,
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    return final


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns of few distinct values; trying a dictionary on the others costs time and is given up anyway."""
    columns = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    for field in schema:
        if pa.types.is_map(field.type):
            columns += [f"{field.name}.key_value.key", f"{field.name}.key_value.value"]
    return columns


def _encodings(schema: pa.Schema) -> dict[str, str]:
    encodings = {}
    for field in schema:
        if pa.types.is_string(field.type):
            encodings[field.name] = "DELTA_LENGTH_BYTE_ARRAY"
        elif pa.types.is_int64(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
    return encodings


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
