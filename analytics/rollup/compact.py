"""Keeps the rollups few: small files are summed into larger ones, row by row of the same window and dimensions.

Files are ranked by size into tiers, as in a log-structured merge tree: TIER_FILES of a tier become one file of it or
of the next. Each row is so rewritten a few times in its life. Whole files are replaced, so DuckLake drops them from
the next snapshot and writes no delete files; sums stay the same, so readers notice nothing. Files that are too large
to be summed in memory are joined as they are. The rows that a compaction inserts were counted before: never take the
insertions of a rollup for new rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import polars as pl

from analytics.rollup.job import write_rows
from analytics.rollup.partials import merged
from analytics.rollup.sets import DimensionSet, Length
from collector.lake import engine, maintain
from collector.lake.lake import Lake, Reader

log = logging.getLogger(__name__)

TIER_BYTES_MIN = 64 * 2**10
TIER_FACTOR = 8
TIER_FILES = 8
FILE_BYTES_MAX = 8 * 2**20
INPUT_BYTES_MAX = 16 * 2**20
INPUT_FILES_MAX = 64
SLICE_ROWS = 100_000


@dataclass(frozen=True)
class File:
    """A live data file of a rollup."""

    path: str
    size_bytes: int

    @property
    def tier(self) -> int:
        """0 up to TIER_BYTES_MIN, one more for each TIER_FACTOR times that."""
        tier = 0
        while self.size_bytes > TIER_BYTES_MIN * TIER_FACTOR**tier:
            tier += 1
        return tier


def due(files: Sequence[File]) -> list[File]:
    """The files to replace next, none where they are few enough. Pure; the smallest tier goes first."""
    small = sorted((file for file in files if file.size_bytes < FILE_BYTES_MAX), key=lambda file: file.tier)
    for _, group in groupby(small, key=lambda file: file.tier):
        tier = list(group)
        chosen: list[File] = []
        for file in tier[:INPUT_FILES_MAX]:
            if sum(f.size_bytes for f in chosen) + file.size_bytes > INPUT_BYTES_MAX:
                break
            chosen.append(file)
        if len(chosen) > 1 and len(tier) >= TIER_FILES:
            return chosen
    return []


def compact_all(lake: Lake, sets: Sequence[DimensionSet], stopped: Callable[[], bool]) -> None:
    """Compact both tables of each set as often as is due, or until `stopped()`."""
    with lake.read() as reader:
        counts = dict(reader.rows(f"SELECT table_name, file_count FROM {engine.CATALOG}.table_info()"))
    for dimension_set in sets:
        for table, length in dimension_set.tables:
            if counts[table] >= TIER_FILES:
                while not stopped() and (
                    compact(lake, dimension_set, table, length) or maintain.join_once(lake, table, FILE_BYTES_MAX)
                ):
                    pass


def compact(lake: Lake, dimension_set: DimensionSet, table: str, length: Length) -> int:
    """Replace the files of a table of a set that are due by one; return how many.

    `length` is that of the table's windows. Nothing happens where another process was faster.
    """
    dimensions = dimension_set.dimensions
    with lake.read() as reader:
        old = due(live_files(reader, table))
        if not old:
            return 0
        paths = [file.path for file in old]
        rows = reader.frame(
            f'SELECT * FROM "{table}" WHERE filename IN (SELECT unnest(?::VARCHAR[]))', [paths]
        )
    new_rows = pl.concat(merged(part, length, dimensions) for part in by_windows(rows))
    new = write_rows(lake, table, new_rows, dimensions)
    with lake.write() as transaction:
        live = {file.path for file in live_files(transaction, table)}
        if not live.issuperset(paths):
            new.unlink()
            return 0
        transaction.execute(f'DELETE FROM "{table}" WHERE filename IN (SELECT unnest(?::VARCHAR[]))', [paths])
        transaction.add_files(table, [new])
    log.debug("%s: %d files became one", table, len(paths))
    return len(paths)


def by_windows(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """All rows in parts of whole windows, each of the windows that fit into SLICE_ROWS and at least one.

    Summing a part unfolds its maps, which takes ten times the memory of its rows.
    """
    sizes = rows.group_by("window_start").len().sort("window_start")
    part = (pl.col("len").cum_sum() - 1) // SLICE_ROWS
    bounds = sizes.group_by(part.alias("part")).agg(
        pl.col("window_start").min().alias("first"), pl.col("window_start").max().alias("last")
    )
    for first, last in bounds.sort("first").select("first", "last").iter_rows():
        yield rows.filter(pl.col("window_start").is_between(first, last))


def live_files(reader: Reader, table: str) -> list[File]:
    """The data files of a table, oldest first."""
    listed = reader.rows(
        "SELECT data_file, data_file_size_bytes FROM ducklake_list_files(?, ?)", [engine.CATALOG, table]
    )
    return [File(str(path), int(size_bytes)) for path, size_bytes in listed]
