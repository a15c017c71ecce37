"""Which spans came into the lake between two snapshots, and their columns as a frame.

DuckLake keeps with each row the snapshot that inserted it (the virtual column `snapshot_id`), also after files are
merged and old snapshots expired. Files that lie whole in the range are read directly, which takes a third of the
time; all others go through the database.

Table `spans` must only ever grow, shrink by DELETE, and be merged: an UPDATE or `ducklake_rewrite_data_files` gives
old rows a new snapshot, and they would be counted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from analytics.rollup.partials import MEASURES
from collector.config import DIMENSIONS
from collector.lake.lake import Reader

_LABELS = frozenset(DIMENSIONS) - {"http_status"} | {"status"}
_RANGE = "snapshot_id > ? AND snapshot_id <= ?"


@dataclass(frozen=True)
class Bite:
    """The spans inserted after snapshot `after`, up to and with snapshot `upto`."""

    after: int
    upto: int
    spans: int


def bites(reader: Reader, after: int, spans_max: int) -> list[Bite]:
    """All spans inserted after a snapshot, in order, in as few bites of at most `spans_max` spans as possible.

    A snapshot is never divided: one that inserted more makes a bite of its own.
    """
    inserted = reader.rows(
        "SELECT snapshot_id, count(*) FROM spans WHERE snapshot_id > ? GROUP BY snapshot_id ORDER BY snapshot_id",
        [after],
    )
    found: list[Bite] = []
    for snapshot_id, spans in inserted:
        last = found[-1] if found else None
        if last and last.spans + spans <= spans_max:
            found[-1] = Bite(last.after, snapshot_id, last.spans + spans)
        else:
            found.append(Bite(last.upto if last else after, snapshot_id, spans))
    return found


def read(reader: Reader, bite: Bite, dimensions: Sequence[str]) -> pl.DataFrame:
    """`dimensions` and MEASURES of the spans of a bite, texts as Categorical."""
    columns = (*dimensions, *MEASURES)
    files = reader.rows(
        f"SELECT filename, count(*) FROM spans WHERE {_RANGE} GROUP BY filename", [bite.after, bite.upto]
    )
    tables, divided = [], []
    for path, spans in files:
        whole = _whole_file(path, spans, columns)
        if whole is None:
            divided.append(path)
        else:
            tables.append(whole)
    if divided or not tables:
        tables.append(_through_database(reader, bite, divided, columns))
    return _frame(tables)


def _whole_file(path: str, spans: int, columns: Sequence[str]) -> pa.Table | None:
    """The columns of a file of exactly `spans` rows; None where some of its rows are of other snapshots, or deleted."""
    with pq.ParquetFile(path, read_dictionary=[c for c in columns if c in _LABELS], pre_buffer=False) as file:
        if file.metadata.num_rows != spans:
            return None
        return file.read(columns=list(columns), use_threads=False)


def _through_database(reader: Reader, bite: Bite, paths: Sequence[str], columns: Sequence[str]) -> pa.Table:
    return reader.arrow(
        f"SELECT {', '.join(columns)} FROM spans WHERE {_RANGE} AND filename IN (SELECT unnest(?::VARCHAR[]))",
        [bite.after, bite.upto, list(paths)],
    )


def _frame(tables: Sequence[pa.Table]) -> pl.DataFrame:
    frames = []
    for table in tables:
        frame = pl.DataFrame(table)
        labels = [name for name in frame.columns if name in _LABELS]
        frames.append(frame.with_columns(pl.col(labels).cast(pl.Categorical)))
    return pl.concat(frames, rechunk=False)
