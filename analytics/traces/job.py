"""The job that keeps the tables of traces: every span of the lake in them once, also where it comes late.

The mark `traces` in table `progress` is the snapshot up to which spans are in. A run reads what was inserted since,
takes the earlier spans of the same traces from a window in memory, writes what changes as files of rows that add up,
and registers them and moves the mark in one transaction: a process that is killed, or that comes second in a race,
leaves files that no snapshot refers to and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from analytics.rollup import compact, insertions
from analytics.rollup.insertions import Bite
from analytics.rollup.job import BEFORE_ALL, Done
from analytics.traces.changes import OF_TRACES, changes
from analytics.traces.secret import secret_of
from analytics.traces.source import Chunk, Window, read
from analytics.traces.tables import TABLES, Table
from collector.config import AnalyzeConfig
from collector.lake import engine, maintain
from collector.lake.lake import Lake, Reader, StaleProgressError
from collector.lake.segments import write_segment

log = logging.getLogger(__name__)

JOB = "traces"
SPANS_PER_RUN_MAX = 200_000


@dataclass(frozen=True)
class Behind:
    """What is not done yet: the mark, and the runs that are due from there."""

    position: int | None
    bites: tuple[Bite, ...]


class TraceJob:
    """The job on one lake, in one process; used by one thread at a time."""

    def __init__(self, lake: Lake, config: AnalyzeConfig) -> None:
        self._lake = lake
        self._config = config
        self._parts = frozenset(config.trace_parts)
        self._looks_at_traces = not OF_TRACES.isdisjoint(self._parts)
        self._window = Window(config.late_seconds, config.late_spans_max)
        self._spans_per_run_max = min(SPANS_PER_RUN_MAX, config.spans_per_run_max)

    def catch_up(self, stopped: Callable[[], bool]) -> Done:
        """Run until no span is left that was there at the start, or until `stopped()`; then compact.

        A run that another process did first is left to it. Raises duckdb.Error and OSError.
        """
        spans = runs = 0
        while True:
            with self._lake.read() as reader:
                due = behind(reader, self._spans_per_run_max)
            position = due.position
            try:
                for bite in due.bites:
                    if stopped():
                        break
                    self.run(position, bite)
                    position, spans, runs = bite.upto, spans + bite.spans, runs + 1
            except StaleProgressError as error:
                log.info("%s", error)
                continue
            if runs:
                self._compact(stopped)
            return Done(spans, runs, position)

    def run(self, position: int | None, bite: Bite) -> None:
        """Take in one bite in one transaction. Raises StaleProgressError where another process did so first."""
        with self._lake.read() as reader:
            if self._looks_at_traces and self._window.position != position:
                self._window.load(reader, position)
            new = read(reader, bite.after, bite.upto, self._config.key_attributes)
            seconds = _committed_at(reader, bite.upto)
        chunk = Chunk.of(new, bite.upto, seconds)
        secret = secret_of(self._lake.location) if self._config.hash_keys and "hot_keys" in self._parts else None
        self._commit(position, bite, changes(new, self._window.joined(chunk), self._parts, secret))
        if self._looks_at_traces:
            self._window.add(chunk)

    def _commit(self, position: int | None, bite: Bite, found: Mapping[str, pl.DataFrame]) -> None:
        tables = [table for table in TABLES if found.get(table.name, pl.DataFrame()).height]
        segments = {table.name: write_rows(self._lake, table, found[table.name]) for table in tables}
        try:
            with self._lake.write() as transaction:
                transaction.advance(JOB, expected=position, position=bite.upto)
                for name, path in segments.items():
                    transaction.add_files(name, [path])
        except StaleProgressError:
            for path in segments.values():
                path.unlink(missing_ok=True)
            raise

    def _compact(self, stopped: Callable[[], bool]) -> None:
        for table in TABLES:
            while not stopped() and (
                compact_table(self._lake, table)
                or maintain.join_once(self._lake, table.name, compact.FILE_BYTES_MAX)
            ):
                pass


def behind(reader: Reader, spans_per_run_max: int) -> Behind:
    """What would bring the tables up to the reader's snapshot."""
    position = reader.position(JOB)
    after = BEFORE_ALL if position is None else position
    return Behind(position, tuple(insertions.bites(reader, after, spans_per_run_max)))


def write_rows(lake: Lake, table: Table, rows: pl.DataFrame) -> Path:
    """Write rows of a table as a file of it, not yet registered."""
    texts = [name for name, dtype in table.schema.items() if dtype == pl.String and name not in ("trace_id", "span_id")]
    ordered = rows.select(table.schema.names()).sort(table.order)
    arrow: pa.Table = ordered.with_columns(pl.col(texts).cast(pl.Categorical)).to_arrow()
    return write_segment(arrow, lake.location.files / "main" / table.name)


def compact_table(lake: Lake, table: Table) -> int:
    """Replace the files that are due by one; return how many. Nothing happens where another process was faster."""
    with lake.read() as reader:
        old = compact.due(compact.live_files(reader, table.name))
        if not old:
            return 0
        paths = [file.path for file in old]
        rows = reader.frame(f'SELECT * FROM "{table.name}" WHERE filename IN (SELECT unnest(?::VARCHAR[]))', [paths])
    merged = table.merged(rows.select(table.schema.names()).cast(table.schema))
    new = [write_rows(lake, table, merged)] if merged.height else []
    with lake.write() as transaction:
        live = {file.path for file in compact.live_files(transaction, table.name)}
        if not live.issuperset(paths):
            for path in new:
                path.unlink()
            return 0
        transaction.execute(f'DELETE FROM "{table.name}" WHERE filename IN (SELECT unnest(?::VARCHAR[]))', [paths])
        transaction.add_files(table.name, new)
    return len(paths)


def _committed_at(reader: Reader, snapshot_id: int) -> float:
    """When a snapshot was committed, in seconds since the Unix epoch."""
    # Where it is expired, the next one that is not.
    sql = f"SELECT epoch(min(snapshot_time)) FROM {engine.CATALOG}.snapshots() WHERE snapshot_id >= ?"
    return float(reader.row(sql, [snapshot_id])[0])
