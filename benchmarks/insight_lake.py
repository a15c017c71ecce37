"""A lake of rollups of many tenants, for `benchmarks.insights`: by the tables' own definitions, without raw spans.

1,000 tenants of Zipf-like sizes, each in one to three of 6 regions, on 20 operations of 5 services, also Zipf-like, and
20 hosts a region. Spans are drawn (Poisson times, log-normal durations), rolled up by `analytics.rollup.partials`, and
forgotten. The last DISTINCT_MINUTES are drawn; all older ones repeat them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from analytics import jobs
from analytics.rollup.job import write_rows
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import DimensionSet, configured
from collector.config import AnalyzeConfig
from collector.lake.lake import Lake
from collector.lake.location import Location

END = datetime(2026, 3, 2, 12, tzinfo=UTC)
TENANTS, REGIONS, OPERATIONS, SERVICES, HOSTS = 1000, 6, 20, 5, 20
DISTINCT_MINUTES = 10
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
