"""The jobs that keep what is derived from spans up to date, and the loop that runs them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb

from analytics.definitions import ANALYTICS_DEFINITIONS
from analytics.insight import marks
from analytics.rollup import compact, job, sets
from analytics.rollup.job import Done, Memory
from analytics.rollup.sets import BASE, DimensionSet
from analytics.traces.job import JOB as TRACES
from analytics.traces.job import TraceJob
from collector.config import Config
from collector.errors import SpanlakeError
from collector.lake import engine
from collector.lake.lake import Lake, Reader
from collector.lake.tables import COLLECTOR_DEFINITIONS

log = logging.getLogger(__name__)

BACKOFF_SECONDS_MAX = 60.0
_INSIGHT_LOOK_SECONDS = 5.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class JobsReport:
    """The reports of all jobs by name."""

    jobs: dict[str, Done]


@dataclass(frozen=True)
class JobLag:
    """How far a job is behind: `seconds_behind` is the age of the oldest commit with spans that it has not seen.

    Of findings, see `insight_lag`: the position is a minute, and time is that of the data.
    """

    job: str
    position: int | None
    newest_snapshot: int
    spans_behind: int
    seconds_behind: float


def prepare(lake: Lake, config: Config | None = None) -> None:
    """Create the tables, views and macros of the jobs, and those they read, where they are missing.

    Raises OperatorError where the lake cannot be written, or has rollups of other dimensions than configured.
    """
    lake.ensure(COLLECTOR_DEFINITIONS)
    sets.ensure(lake, sets.configured((config or Config()).analyze))
    lake.ensure(ANALYTICS_DEFINITIONS)


def run_once(
    lake: Lake,
    config: Config,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> JobsReport:
    """Bring everything up to date with the spans that are there now, or as far as `stop` lets it.

    `progress(spans, spans_left)` is called after each run; `memory` is for the next call of the same process. Safe
    beside other processes that do the same. The lake must have been prepared with the same configuration.
    Raises duckdb.Error and OSError where the lake cannot be read or written; what was committed before stays.
    """
    stopping = stop or threading.Event()
    done = {job.JOB: roll_up(lake, config, stopping, progress, memory)}
    if config.analyze.trace_parts:
        done[TRACES] = TraceJob(lake, config.analyze).catch_up(stopping.is_set)
    return JobsReport(done)


def roll_up(
    lake: Lake,
    config: Config,
    stop: threading.Event,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> Done:
    """Bring the rollups up to date, and keep their files few; otherwise as `run_once`."""
    kept_up = sets.configured(config.analyze)
    done = job.catch_up(lake, kept_up, config.analyze, stop.is_set, progress or (lambda _spans, _left: None), memory)
    if done.runs:
        compact.compact_all(lake, kept_up, stop.is_set)
    return done


def run_forever(lake: Lake, config: Config, stop: threading.Event) -> None:
    """Run each job at its interval until `stop` is set; the runs that are on are finished first.

    The tables of traces and the findings have threads of their own, so that rollups never wait for them. An error is
    logged, and the next run of that job waits twice as long as the last, at most BACKOFF_SECONDS_MAX.
    """
    memory = Memory()
    beside = []
    if config.analyze.trace_parts:
        beside.append(threading.Thread(target=_keep_traces, name=TRACES, args=(lake, config, stop)))
    if config.insight.enabled:
        beside.append(threading.Thread(target=_keep_findings, name="insight", args=(lake, config, stop)))
    for thread in beside:
        thread.start()
    try:
        _repeat(lambda: roll_up(lake, config, stop, memory=memory), config.analyze.interval_seconds, stop)
    finally:
        stop.set()
        for thread in beside:
            thread.join()


def _keep_traces(lake: Lake, config: Config, stop: threading.Event) -> None:
    traces = TraceJob(lake, config.analyze)
    _repeat(lambda: traces.catch_up(stop.is_set), config.analyze.traces_interval_seconds, stop)


def _keep_findings(lake: Lake, config: Config, stop: threading.Event) -> None:
    from analytics.insight.alerts import Alerts  # noqa: PLC0415 - loads statistics, a second that nobody waits for here
    from analytics.insight.job import InsightJob  # noqa: PLC0415 - the same

    try:
        insight = InsightJob(lake, config.insight, Alerts(config.alerts).tell)
    except SpanlakeError as error:
        log.error("there will be no findings: %s", error)  # noqa: TRY400 - the message says it all
        return
    _repeat(lambda: insight.step(datetime.now(UTC), seen_until), _INSIGHT_LOOK_SECONDS, stop)


def _repeat(step: Callable[[], object], interval_seconds: float, stop: threading.Event) -> None:
    wait_seconds = interval_seconds
    while not stop.is_set():
        try:
            step()
            wait_seconds = interval_seconds
        except (duckdb.Error, OSError, SpanlakeError) as error:
            wait_seconds = min(wait_seconds * 2, BACKOFF_SECONDS_MAX)
            log.warning("the jobs will try again in %.0f s: %s", wait_seconds, error)
        stop.wait(wait_seconds)


def lag(reader: Reader, kept_up: Sequence[DimensionSet] = (BASE,)) -> list[JobLag]:
    """How far each set of rollups is behind the reader's snapshot. They must exist (`prepare`)."""
    marks = reader.positions([dimension_set.job for dimension_set in kept_up])
    newest, behind = reader.snapshot_id(), {mark: _behind(reader, mark) for mark in set(marks.values())}
    return [JobLag(name, position, newest, *behind[position]) for name, position in marks.items()]


def trace_lag(reader: Reader) -> JobLag:
    """How far the tables of traces are behind the reader's snapshot."""
    position = reader.position(TRACES)
    return JobLag(TRACES, position, reader.snapshot_id(), *_behind(reader, position))


def insight_lag(reader: Reader) -> JobLag:
    """How far findings are behind the rollups: spans of minutes that are not judged, and how long these minutes are."""
    position = reader.position(marks.JOB)
    if not reader.has(BASE.minutes):
        return JobLag(marks.JOB, position, reader.snapshot_id(), 0, 0.0)
    judged = datetime(1970, 1, 1) if position is None else marks.time(position).replace(tzinfo=None)
    spans, seconds = reader.row(
        "SELECT coalesce(sum(count), 0)::BIGINT, coalesce(60 + date_diff('second', min(window_start), "
        "max(window_start)), 0) FROM rollup_1m WHERE window_start >= ?",
        [judged],
    )
    return JobLag(marks.JOB, position, reader.snapshot_id(), int(spans), float(seconds))


def seen_until(reader: Reader, now: datetime) -> datetime:
    """Up to when (aware) all that had come is in the rollups, and in the tables of traces where these are kept."""
    lags = lag(reader)
    if reader.position(TRACES) is not None:
        lags.append(trace_lag(reader))
    return now - timedelta(seconds=max(one.seconds_behind for one in lags))


def _behind(reader: Reader, position: int | None) -> tuple[int, float]:
    """Spans that came after a mark, and the age of the first of their commits in seconds."""
    first, spans = reader.row(
        "SELECT min(snapshot_id), count(*) FROM spans WHERE snapshot_id > ?",
        [job.BEFORE_ALL if position is None else position],
    )
    if not spans:
        return 0, 0.0
    (seconds,) = reader.row(
        f"SELECT epoch(now()) - epoch(min(snapshot_time)) FROM {engine.CATALOG}.snapshots() WHERE snapshot_id >= ?",
        [first],
    )
    return int(spans), max(0.0, float(seconds))
