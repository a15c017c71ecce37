"""The lake's macros and views over rollups: SQL against Python, and the queries that the docs show."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analytics.buckets import INDEX_MAX, bucket_value_ns, quantile
from analytics.health import Scope, health_series
from analytics.rollup.partials import ROLLUP_SCHEMA
from collector.lake.lake import Lake, Reader
from tests.reference.rollups import EXAMPLE, MS, NOON, WINDOW, spans, store

SKEWED = [
    spans(
        5000, NOON, region=["eu", "us"] * 2500,
        start_time=(int(NOON.timestamp()) * 10**9 + np.random.default_rng(3).integers(0, 10**11, 5000)).tolist(),
        duration_ns=[0, *np.exp(np.random.default_rng(4).normal(14, 3, 4999)).astype(np.int64).tolist()],
    )
] * 2  # fmt: skip


@pytest.mark.parametrize("rollups", [SKEWED], indirect=True)
def test_sql_and_python_give_identical_quantiles(rollups: Reader) -> None:
    rows = rollups.frame("SELECT region, latency_buckets FROM rollup_1m")
    for q in (0, 0.01, 0.5, 0.95, 0.99, 0.999, 1):
        found = dict(
            rollups.rows(
                "SELECT region, latency_quantile_ns(list(latency_buckets), ?) FROM rollup_1m GROUP BY region",
                [q],
            )
        )
        for region in ("eu", "us"):
            entries = rows.filter(region=region)["latency_buckets"].map.entries().explode().struct.unnest()
            buckets: Counter[int] = Counter()
            for key, value in entries.rows():
                buckets[key] += value
            assert found[region] == quantile(buckets, q)
    (sql_merged,) = rollups.row(
        "SELECT merge_buckets(list(latency_buckets)) FROM rollup_1m WHERE region = 'us'"
    )
    assert sql_merged == dict(sorted(buckets.items()))
    series = health_series(rollups, WINDOW, Scope(), "region", points=1)
    assert dict(series.select("region", "p99_ns").rows()) == dict(
        rollups.rows(
            "SELECT region, latency_quantile_ns(list(latency_buckets), 0.99) FROM rollup_1m GROUP BY 1"
        )
    )


@pytest.mark.parametrize("rollups", [SKEWED], indirect=True)
def test_macros_take_nothing_for_nothing(rollups: Reader) -> None:
    sql = "SELECT latency_quantile_ns(list(latency_buckets), 0.5), merge_buckets(list(latency_buckets)) FROM rollup_1m"
    assert rollups.row(sql + " WHERE false") == (None, None)
    assert rollups.row("SELECT latency_quantile_ns([MAP {}], 0.5), bucket_value_ns(NULL)") == (None, None)


@pytest.mark.parametrize("rollups", [SKEWED], indirect=True)
def test_bucket_values_are_the_same_numbers_in_sql(rollups: Reader) -> None:
    found = rollups.rows("SELECT i, bucket_value_ns(i) FROM range(-1, ?) AS t(i)", [INDEX_MAX + 1])
    assert found == [(index, bucket_value_ns(index)) for index in range(-1, INDEX_MAX + 1)]


@pytest.mark.parametrize("rollups", [SKEWED], indirect=True)
def test_burst_moments_of_merged_partials(rollups: Reader) -> None:
    seconds = Counter(
        (row["region"], row["start_time"].replace(microsecond=0))
        for frame in SKEWED
        for row in frame.select("region", pl.col("start_time").cast(pl.Datetime("us"))).to_dicts()
    )
    expected = {}
    for region in ("eu", "us"):
        for minute in (0, 1):
            counts = [n for (r, t), n in seconds.items() if r == region and t.minute == minute]
            expected[(region, minute)] = (
                60, sum(counts), sum(n * n for n in counts), max(counts), max(counts) * 60 / sum(counts),
            )  # fmt: skip
    found = rollups.rows("SELECT * FROM bursts_1m")
    assert {(row[1], row[0].minute): tuple(row[7:]) for row in found} == expected


def test_tenant_health_compares_the_last_quarter_hours(lake_of_rollups: Lake) -> None:
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    store(
        lake_of_rollups,
        spans(900, now - timedelta(minutes=4), duration_ns=4 * MS, cache_hit=[True, False] * 450),
        spans(450, now - timedelta(minutes=24), status=["error"] * 45 + ["ok"] * 405),
        spans(77, now - timedelta(minutes=40)),
    )
    with lake_of_rollups.read() as reader:
        (row,) = reader.frame("FROM tenant_health").to_dicts()
    assert (row["tenant"], row["region"], row["count"], row["baseline_count"]) == ("acme", "eu", 900, 450)
    assert (row["rate_per_second"], row["baseline_rate_per_second"]) == (1.0, 0.5)
    assert (row["error_rate"], row["baseline_error_rate"]) == (0.0, 0.1)
    assert (row["hit_ratio"], row["baseline_hit_ratio"]) == (0.5, 1.0)
    assert row["p95_ns"] == pytest.approx(4 * MS, rel=0.0101)
    assert row["baseline_p95_ns"] == pytest.approx(2 * MS, rel=0.0101)


def documented_queries() -> list[str]:
    page = Path(__file__).parents[1] / "docs" / "rollups.md"
    return re.findall(r"```sql\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("query", documented_queries())
@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_documented_queries_run(rollups: Reader, query: str) -> None:
    assert rollups.frame(query).width > 1


def test_the_page_describes_every_column() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rollups.md").read_text(encoding="utf-8")
    assert [name for name in ROLLUP_SCHEMA if f"`{name}`" not in page] == []
