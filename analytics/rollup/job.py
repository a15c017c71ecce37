"""The rollup job: every span of the lake into the rollups, once.

The mark `rollup` in table `progress` is the snapshot of the lake up to which spans are counted. A run reads what was
inserted since, writes its partial rows as files, and then registers them and moves the mark in one transaction: a
process that is killed, or that comes second in a race, leaves files that no snapshot refers to and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from analytics.rollup import insertions
from analytics.rollup.insertions import Bite
from analytics.rollup.partials import DIMENSIONS, ROLLUP_SCHEMA, merged, partials
from collector.lake.lake import Lake, Reader, StaleProgressError
from collector.lake.segments import write_segment

log = logging.getLogger(__name__)

JOB = "rollup"
MINUTES = "rollup_1m"
HOURS = "rollup_1h"
BEFORE_ALL = -1
_FRAME_SPANS_MAX = 2**22


@dataclass(frozen=True)
class Behind:
    """What a job has not done yet: runs that are due, and the mark that the first of them expects."""

    position: int | None
    bites: tuple[Bite, ...]

    @property
    def spans(self) -> int:
        return sum(bite.spans for bite in self.bites)


@dataclass(frozen=True)
class Done:
    """What a job did: `spans` it took in, in `runs` transactions; `position`: the snapshot it has come to."""

    spans: int
    runs: int
    position: int | None


def behind(reader: Reader, spans_per_run_max: int) -> Behind:
    """The runs that would bring the rollups up to the reader's snapshot."""
    position = reader.position(JOB)
    after = BEFORE_ALL if position is None else position
    return Behind(position, tuple(insertions.bites(reader, after, spans_per_run_max)))


def run(lake: Lake, position: int | None, bite: Bite) -> None:
    """Roll up one bite in one transaction. Raises StaleProgressError where another process did so first."""
    with lake.read() as reader:
        spans = insertions.read(reader, bite)
    minutes = pl.concat(partials(part) for part in spans.iter_slices(_FRAME_SPANS_MAX))
    segments = {
        MINUTES: write_rows(lake, MINUTES, minutes),
        HOURS: write_rows(lake, HOURS, merged(minutes, "1h")),
    }
    try:
        with lake.write() as transaction:
            transaction.advance(JOB, expected=position, position=bite.upto)
            for table, path in segments.items():
                transaction.add_files(table, [path])
    except StaleProgressError:
        for path in segments.values():
            path.unlink(missing_ok=True)
        raise


def write_rows(lake: Lake, table: str, rows: pl.DataFrame) -> Path:
    """Write rows of ROLLUP_SCHEMA as a file of `table`, not yet registered."""
    labelled = rows.select(ROLLUP_SCHEMA.names()).sort("window_start", *DIMENSIONS)
    arrow: pa.Table = labelled.with_columns(pl.col(DIMENSIONS).cast(pl.Categorical)).to_arrow()
    return write_segment(arrow, lake.location.files / "main" / table)


def catch_up(
    lake: Lake, spans_per_run_max: int, stopped: Callable[[], bool], done: Callable[[int, int], None]
) -> Done:
    """Run until no span is left that was there at the start, or until `stopped()`.

    `done(spans, spans_left)` is called after each run. A run that another process did first is left to it.
    """
    spans = runs = 0
    while True:
        with lake.read() as reader:
            due = behind(reader, spans_per_run_max)
        position, left = due.position, due.spans
        try:
            for bite in due.bites:
                if stopped():
                    break
                run(lake, position, bite)
                position, left = bite.upto, left - bite.spans
                spans, runs = spans + bite.spans, runs + 1
                done(bite.spans, left)
        except StaleProgressError as error:
            log.info("%s", error)
        else:
            return Done(spans, runs, position)
