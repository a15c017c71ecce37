"""A lake of rollups of many tenants, for `benchmarks.insights`: by the tables' own definitions, without raw spans.

1,000 tenants of Zipf-like sizes, each in one to three of 6 regions, on 20 operations of 5 services, also Zipf-like, and
20 hosts a region. Spans are drawn (Poisson times, log-normal durations), rolled up by `analytics.rollup.partials`, and
forgotten. The last DISTINCT_MINUTES are drawn; all older ones repeat them.

`tell` adds what a job would have written that judged each minute and had FINDINGS_OPEN open all the time: made-up ones,
of FINDINGS_TENANTS each.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from analytics import jobs
from analytics.insight import judged
from analytics.insight.finding import Confidence, Effect, Finding, Place, Reach, Share, frame
from analytics.insight.job import TABLE
from analytics.insight.loading import naive
from analytics.rollup.job import write_rows
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import DimensionSet, configured
from analytics.window import MINUTE, Window
from collector.config import AnalyzeConfig, InsightConfig
from collector.lake import maintain
from collector.lake.lake import Lake
from collector.lake.location import Location

END = datetime(2026, 3, 2, 12, tzinfo=UTC)
TENANTS, REGIONS, OPERATIONS, SERVICES, HOSTS = 1000, 6, 20, 5, 20
DISTINCT_MINUTES = 10
FINDINGS_OPEN, FINDINGS_TENANTS, FINDINGS_MINUTES = 10, 50, 90
"""Findings that are open at a time, tenants of each, and how long one lasts."""
_KINDS = ("server", "server", "client", "server", "consumer")
_COMPONENTS = ("cache", "http", "cache", "database", "topic")


@cache
def _places() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tenant, region and operation of each combination that has traffic, the most frequent not first."""
    rng = np.random.default_rng(1)
    of = [(t, r) for t in range(TENANTS) for r in rng.choice(REGIONS, rng.integers(1, 4), replace=False)]
    tenant, region = np.repeat(np.array(of), OPERATIONS, axis=0).T
    return tenant, region, np.tile(np.arange(OPERATIONS), len(of))


def spans(minute: datetime, per_second: int) -> pl.DataFrame:
    """The columns of spans that rollups read, of one minute (aware)."""
    rng = np.random.default_rng(int(minute.timestamp()) // 60 % DISTINCT_MINUTES)
    tenants, regions, operations = _places()
    weight = 1 / ((1 + tenants) * (1 + operations))
    count = per_second * 60
    at = rng.choice(len(tenants), count, p=weight / weight.sum())
    tenant, region, operation = tenants[at], regions[at], operations[at]
    service = operation % SERVICES
    component = np.array(_COMPONENTS)[service]
    host = pl.Series(region * HOSTS + rng.integers(0, HOSTS, count))
    failed = rng.random(count) < 0.005
    begin_ns = int(minute.timestamp()) * 10**9
    return pl.DataFrame(
        {
            "region": _names("r", region), "tenant": _names("t", tenant), "service_name": _names("s", service),
            "component": component, "operation": _names("op", operation), "kind": np.array(_KINDS)[service],
            "host": _names("h", host), "service_version": "1", "service_instance_id": _names("i", host),
            "destination": _names("d", tenant % 30), "status": np.where(failed, "error", "unset"),
            "start_time": pl.Series(begin_ns + rng.integers(0, 60 * 10**9, count)).cast(pl.Datetime("ns")),
            "duration_ns": np.exp(rng.normal(13, 0.5, count) + operation / 10).astype(np.int64),
            "sample_weight": pl.Series([None], dtype=pl.Float64).new_from_index(0, count),
            "payload_bytes": pl.Series([None], dtype=pl.Int64).new_from_index(0, count),
        }
    ).with_columns(
        cache_hit=pl.when(pl.col("component") == "cache").then(pl.Series(rng.random(count) < 0.9)),
        error_type=pl.when(pl.col("status") == "error").then(pl.lit("timeout")),
    )  # fmt: skip


def _names(prefix: str, numbers: np.ndarray | pl.Series) -> pl.Series:
    series = pl.Series(numbers)
    return (prefix + series.unique().cast(pl.String)).gather(series.unique().search_sorted(series))


def make(folder: Path, per_second: int, hours: float) -> None:
    """Write the rollups of the `hours` before END, minutes and hours, of all default sets."""
    location, config = Location(folder), AnalyzeConfig()
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake)
        for kept in configured(config):
            drawn = pl.concat(_drawn(kept, per_second))
            length = timedelta(minutes=DISTINCT_MINUTES)
            for step in reversed(range(int(hours * 60) // DISTINCT_MINUTES)):
                rows = drawn.with_columns(pl.col("window_start") - step * length)
                _store(lake, kept.minutes, rows, kept)
            hour = merged(drawn.with_columns(pl.col("window_start").dt.truncate("1h")), "1h", kept.dimensions)
            for step in reversed(range(int(hours) + 1)):
                _store(lake, kept.hours, hour.with_columns(pl.col("window_start") - timedelta(hours=step)), kept)


def _drawn(kept: DimensionSet, per_second: int) -> Iterator[pl.DataFrame]:
    for step in range(DISTINCT_MINUTES, 0, -1):
        yield partials(spans(END - timedelta(minutes=step), per_second), kept.dimensions)


def _store(lake: Lake, table: str, rows: pl.DataFrame, kept: DimensionSet) -> None:
    path = write_rows(lake, table, rows, kept.dimensions)
    with lake.write() as transaction:
        transaction.add_files(table, [path])


def tell(folder: Path, hours: float) -> None:
    """Findings of each minute of the `hours` before END, and that it was judged; once a folder."""
    window = Window(END - timedelta(hours=hours), END)
    settings = judged.settings_of(InsightConfig())
    with Lake(Location(folder), read_only=False) as lake:
        jobs.prepare(lake)
        with lake.read() as reader:
            if judged.stretches(reader, window, settings):
                return
            counted = reader.rows("SELECT window_start, sum(count)::BIGINT FROM rollup_1m GROUP BY ALL ORDER BY ALL")
        start = naive(window.start)
        stretch = [(time, spans) for time, spans in counted if time >= start]
        for at in range(0, len(stretch), 60):
            _tell_hour(lake, stretch[at : at + 60], settings)
        while any(maintain.merge_once(lake, table) for table in (TABLE, judged.TABLE)):
            pass


def _tell_hour(lake: Lake, minutes: list[tuple[datetime, int]], settings: str) -> None:
    ends = [time + MINUTE for time, _ in minutes]
    spans = np.cumsum([count for _, count in minutes])
    rows = {"start": [minutes[0][0]] * len(ends), "until": ends, "settings": [settings] * len(ends), "spans": spans}
    found = pl.concat([frame(_made_up(end.replace(tzinfo=UTC)), end) for end in ends])
    with lake.write() as transaction:
        transaction.insert(judged.TABLE, pl.DataFrame(rows).to_arrow())
        transaction.insert(TABLE, found.to_arrow())


def _made_up(minute: datetime) -> list[Finding]:
    tenants = tuple(f"t{number}" for number in range(FINDINGS_TENANTS))
    share = Share(9, 10, 0.9, 0.6, 0.98)
    who = Reach(share, share, 7.5, tuple((tenant, share) for tenant in tenants[:20]))
    since = datetime.fromtimestamp(minute.timestamp() // (60 * FINDINGS_MINUTES) * 60 * FINDINGS_MINUTES, UTC)
    effect, confidence = Effect("p95_ns", 9e6, 3e6, 3.0, 2.9, 3.1), Confidence("Poisson", 1e-9, 1e-8, 1234, 0.5)
    operation = int(since.timestamp()) // 60
    return [
        Finding(
            "latency", Place(f"r{number % REGIONS}", f"s{number % SERVICES}", f"op{operation + number}"), "warning",
            100.0 - number, since, minute, effect, confidence, "A sentence. " * 25, tenants,
            exemplars=("0" * 32,) * 3, symptoms=("a symptom",) * 3, who=who, sql="SELECT 1 FROM rollup_1m " * 12,
            state="ongoing",
        )
        for number in range(FINDINGS_OPEN)
    ]  # fmt: skip
