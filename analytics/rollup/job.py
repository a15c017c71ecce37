"""The rollup job: every span of the lake into the rollups of each set of dimensions, once.

The mark of a set in table `progress` is the snapshot of the lake up to which spans are counted. A run reads what was
inserted since, writes the partial rows of all sets that stand at the same mark as files, and then registers them and
moves the marks in one transaction: a process that is killed, or that comes second in a race, leaves files that no
snapshot refers to and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from analytics.rollup import insertions
from analytics.rollup.fold import Kept, fold, nothing_kept, recall, remember, settled
from analytics.rollup.insertions import Bite
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, JOB, DimensionSet
from collector.config import AnalyzeConfig
from collector.lake.lake import Lake, Reader, StaleProgressError
from collector.lake.segments import write_segment

__all__ = ["HOURS", "JOB", "MINUTES", "Behind", "Done", "Memory", "behind", "catch_up", "run", "write_rows"]

log = logging.getLogger(__name__)

MINUTES = BASE.minutes
HOURS = BASE.hours
BEFORE_ALL = -1
_FIRST_SPANS_MAX = 2**18
_FRAME_SPANS_MAX = 2**22


@dataclass(frozen=True)
class Behind:
    """What is not done yet for sets that stand at the same mark `position`: runs that are due."""

    sets: tuple[DimensionSet, ...]
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


@dataclass
class Memory:
    """What one process remembers from run to run: the values that each set keeps. Only saves reading them anew."""

    kept: dict[str, Kept] = field(default_factory=dict)

    def of(self, dimension_set: DimensionSet, position: int | None) -> Kept:
        """What is remembered of a set, if its mark still stands where it was."""
        found = self.kept.get(dimension_set.name)
        return found if found and found.position == position else nothing_kept(dimension_set, position)


def behind(reader: Reader, sets: Sequence[DimensionSet], spans_per_run_max: int) -> list[Behind]:
    """The runs that would bring the rollups up to the reader's snapshot; the sets furthest ahead come first."""
    marks: dict[int, list[DimensionSet]] = {}
    positions = reader.positions([dimension_set.job for dimension_set in sets])
    for dimension_set in sets:
        position = positions[dimension_set.job]
        marks.setdefault(BEFORE_ALL if position is None else position, []).append(dimension_set)
    return [
        Behind(
            tuple(marks[after]), _position(after), tuple(insertions.bites(reader, after, spans_per_run_max))
        )
        for after in sorted(marks, reverse=True)
    ]


def run(
    lake: Lake, sets: Sequence[DimensionSet], bite: Bite, config: AnalyzeConfig, memory: Memory | None = None
) -> None:
    """Roll up one bite for sets that stand at `bite.after`, in one transaction.

    Raises StaleProgressError where another process did so first.
    """
    remembered, expected = memory or Memory(), _position(bite.after)
    segments: dict[str, Path] = {}
    try:
        kept = _write_partials(lake, sets, bite, config, remembered, segments)
        with lake.write() as transaction:
            transaction.advance_all([s.job for s in sets], expected, bite.upto)
            for table, path in segments.items():
                transaction.add_files(table, [path])
    except StaleProgressError:
        for path in segments.values():
            path.unlink(missing_ok=True)
        raise
    remembered.kept.update(kept)


def _write_partials(
    lake: Lake,
    sets: Sequence[DimensionSet],
    bite: Bite,
    config: AnalyzeConfig,
    memory: Memory,
    segments: dict[str, Path],
) -> dict[str, Kept]:
    """Write a file for each table into `segments`; return what each set keeps once they are registered."""
    kept: dict[str, Kept] = {}
    with lake.read() as reader:
        needed = dict.fromkeys(name for dimension_set in sets for name in dimension_set.dimensions)
        spans = insertions.read(reader, bite, list(needed))
        for dimension_set in sets:
            dimensions = dimension_set.dimensions
            known = memory.of(dimension_set, _position(bite.after))
            minutes, known = _folded_partials(reader, spans, dimension_set, config, known)
            kept[dimension_set.name] = settled(known, bite.upto)
            hours = merged(minutes, "1h", dimensions)
            segments[dimension_set.minutes] = write_rows(lake, dimension_set.minutes, minutes, dimensions)
            segments[dimension_set.hours] = write_rows(lake, dimension_set.hours, hours, dimensions)
    return kept


def _folded_partials(
    reader: Reader, spans: pl.DataFrame, dimension_set: DimensionSet, config: AnalyzeConfig, kept: Kept
) -> tuple[pl.DataFrame, Kept]:
    """Rows by minute within the bounds, and what is kept with them.

    Spans that make about as many rows as they are go in small frames, so that they are folded before they fill memory.
    """
    found, offset, size = [dimension_set.schema.to_frame()], 0, _FIRST_SPANS_MAX
    while offset < spans.height:
        rows = partials(spans.slice(offset, size), dimension_set.dimensions)
        kept = recall(reader, dimension_set, rows, kept)
        found.append(fold(rows, dimension_set, config, kept.values))
        kept = remember(kept, found[-1], dimension_set)
        offset, size = offset + size, _FIRST_SPANS_MAX if rows.height * 4 > size else _FRAME_SPANS_MAX
    return pl.concat(found), kept


def write_rows(
    lake: Lake, table: str, rows: pl.DataFrame, dimensions: Sequence[str] = BASE.dimensions
) -> Path:
    """Write rows of `rollup_schema(dimensions)` as a file of `table`, not yet registered."""
    labelled = rows.sort("window_start", *dimensions)
    arrow: pa.Table = labelled.with_columns(pl.col(dimensions).cast(pl.Categorical)).to_arrow()
    return write_segment(arrow, lake.location.files / "main" / table)


def catch_up(
    lake: Lake,
    sets: Sequence[DimensionSet],
    config: AnalyzeConfig,
    stopped: Callable[[], bool],
    done: Callable[[int, int], None],
    memory: Memory | None = None,
) -> Done:
    """Run until no span is left that was there at the start, or until `stopped()`.

    `done(spans, spans_left)` is called after each run. A run that another process did first is left to it.
    """
    work = _Work(lake, sets, config, stopped, done, memory or Memory())
    while True:
        with lake.read() as reader:
            due = behind(reader, sets, config.spans_per_run_max)
        try:
            work.take(due)
        except StaleProgressError as error:
            log.info("%s", error)
        else:
            return Done(work.spans, work.runs, work.position)


@dataclass
class _Work:
    """A catch-up on its way; `position` is that of the sets furthest ahead."""

    lake: Lake
    sets: Sequence[DimensionSet]
    config: AnalyzeConfig
    stopped: Callable[[], bool]
    done: Callable[[int, int], None]
    memory: Memory
    spans: int = 0
    runs: int = 0
    position: int | None = None

    def take(self, due: Sequence[Behind]) -> None:
        """Do what is due. While sets that lag behind read old spans, those ahead are kept up to date."""
        left = sum(group.spans for group in due)
        self.position = due[0].position
        for group in due:
            for bite in group.bites:
                if self.stopped():
                    return
                left -= bite.spans
                self._run(group.sets, bite, left)
                if group is not due[0]:
                    self._keep_up(due[0].sets, left)

    def _keep_up(self, sets: Sequence[DimensionSet], left: int) -> None:
        with self.lake.read() as reader:
            fresh = behind(reader, sets, self.config.spans_per_run_max)
        for group in fresh:
            for bite in group.bites:
                if self.stopped():
                    return
                self._run(group.sets, bite, left)

    def _run(self, sets: Sequence[DimensionSet], bite: Bite, left: int) -> None:
        """One run; those of sets that lag behind do not move `position`."""
        run(self.lake, sets, bite, self.config, self.memory)
        self.spans, self.runs = self.spans + bite.spans, self.runs + 1
        if (self.position or BEFORE_ALL) < bite.upto:
            self.position = bite.upto
        self.done(bite.spans, left)


def _position(after: int) -> int | None:
    return None if after == BEFORE_ALL else after
