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
    temporary, final = new_segment(folder)
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
        settle(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return final


def new_segment(folder: Path) -> tuple[Path, Path]:
    """A temporary and a final path for a new file of `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"segment-{uuid.uuid4().hex}.parquet"
    return final.with_suffix(TEMPORARY_SUFFIX), final


def settle(temporary: Path, final: Path) -> None:
    """Bring a whole file to disk, then its final name. Raises OSError."""
    _sync(temporary)
    temporary.rename(final)
    _sync(final.parent)


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


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
