"""The jobs that keep what is derived from spans up to date, and the loop that runs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import duckdb

from analytics.definitions import ANALYTICS_DEFINITIONS
from analytics.rollup import compact, job
from analytics.rollup.job import JOB as ROLLUP
from analytics.rollup.job import Done
from analytics.traces.job import JOB as TRACES
from analytics.traces.job import TraceJob
from collector.config import Config
from collector.errors import SpanlakeError
from collector.lake import engine
from collector.lake.lake import Lake, Reader
from collector.lake.tables import COLLECTOR_DEFINITIONS

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MAX = 60.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class JobsReport:
    """The reports of all jobs by name."""

    jobs: dict[str, Done]


@dataclass(frozen=True)
class JobLag:
    """How far a job is behind: `seconds_behind` is the age of the oldest commit with spans that it has not seen."""

    job: str
    position: int | None
    newest_snapshot: int
    spans_behind: int
    seconds_behind: float


def prepare(lake: Lake) -> None:
    """Create the tables, views and macros of the jobs, and those they read, where they are missing."""
    lake.ensure([*COLLECTOR_DEFINITIONS, *ANALYTICS_DEFINITIONS])


def run_once(
    lake: Lake, config: Config, stop: threading.Event | None = None, progress: Progress | None = None
) -> JobsReport:
    """Bring everything up to date with the spans that are there now, or as far as `stop` lets it.

    `progress(spans, spans_left)` is called after each run. Safe beside other processes that do the same.
    Raises duckdb.Error and OSError where the lake cannot be read or written; what was committed before stays.
    """
    stopping = stop or threading.Event()
    done = {ROLLUP: roll_up(lake, config, stopping, progress)}
    if config.analyze.trace_parts:
        done[TRACES] = TraceJob(lake, config.analyze).catch_up(stopping.is_set)
    return JobsReport(done)


def roll_up(lake: Lake, config: Config, stop: threading.Event, progress: Progress | None = None) -> Done:
    """Bring the rollups up to date, and keep their files few; otherwise as `run_once`."""
    done = job.catch_up(lake, config.analyze.spans_per_run_max, stop.is_set, progress or (lambda _spans, _left: None))
    if done.runs:
        for table in compact.TABLES:
            while not stop.is_set() and compact.compact(lake, table):
                pass
    return done


def run_forever(lake: Lake, config: Config, stop: threading.Event) -> None:
    """Run each job at its interval until `stop` is set; the runs that are on are finished first.

    The tables of traces have a thread of their own, so that rollups never wait for them. An error is logged, and the
    next run of that job waits twice as long as the last, at most BACKOFF_SECONDS_MAX.
    """
    step = partial(TraceJob(lake, config.analyze).catch_up, stop.is_set)
    arguments = (TRACES, step, config.analyze.traces_interval_seconds, stop)
    beside = threading.Thread(target=_repeat, name=TRACES, args=arguments)
    if config.analyze.trace_parts:
        beside.start()
    try:
        _repeat(ROLLUP, lambda: roll_up(lake, config, stop), config.analyze.interval_seconds, stop)
    finally:
        if beside.ident is not None:
            stop.set()
            beside.join()


def _repeat(name: str, step: Callable[[], object], interval_seconds: float, stop: threading.Event) -> None:
    wait_seconds = interval_seconds
    while not stop.is_set():
        try:
            step()
            wait_seconds = interval_seconds
        except (duckdb.Error, OSError, SpanlakeError) as error:
            wait_seconds = min(wait_seconds * 2, BACKOFF_SECONDS_MAX)
            log.warning("job %s will try again in %.0f s: %s", name, wait_seconds, error)
        stop.wait(wait_seconds)


def lag(reader: Reader) -> list[JobLag]:
    """How far the rollups, and each other job that has begun, are behind the reader's snapshot.

    The rollups must exist (`prepare`).
    """
    begun = [name for name in (TRACES,) if reader.position(name) is not None]
    return [lag_of(reader, name) for name in (ROLLUP, *begun)]


def lag_of(reader: Reader, name: str) -> JobLag:
    """How far one job is behind the reader's snapshot."""
    position = reader.position(name)
    first, spans = reader.row(
        "SELECT min(snapshot_id), count(*) FROM spans WHERE snapshot_id > ?",
        [job.BEFORE_ALL if position is None else position],
    )
    seconds = 0.0
    if spans:
        (seconds,) = reader.row(
            f"SELECT epoch(now()) - epoch(min(snapshot_time)) FROM {engine.CATALOG}.snapshots() WHERE snapshot_id >= ?",
            [first],
        )
    return JobLag(name, position, reader.snapshot_id(), int(spans), max(0.0, float(seconds)))
