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
                write_page_index=False,
                row_group_size=131_072,
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


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
