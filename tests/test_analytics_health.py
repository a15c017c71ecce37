"""Health queries and the lake's macros and views: worked examples, and SQL against Python."""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics import jobs
from analytics.buckets import INDEX_MAX, bucket_value_ns, quantile
from analytics.change import INSUFFICIENT, Figures, change, duration
from analytics.health import (
    DIMENSIONS,
    INGRESS,
    Freshness,
    Scope,
    choices,
    freshness,
    health_rows,
    health_series,
)
from analytics.health_source import Plan
from analytics.rollup.job import HOURS, MINUTES, write_rows
from analytics.rollup.partials import ROLLUP_SCHEMA, merged, partials
from analytics.window import Window
from collector.lake.lake import Lake, Reader
from collector.lake.location import Location

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = Window(NOON, NOON + timedelta(minutes=10))
MS = 10**6
COLUMNS = [
    "region",
    "count",
    "rate_per_second",
    "error_rate",
    "p50_ns",
    "p95_ns",
    "p99_ns",
    "hit_ratio",
    "bytes",
    "unknown_weight_share",
    "baseline_count",
    "baseline_rate_per_second",
    "baseline_error_rate",
    "baseline_p50_ns",
    "baseline_p95_ns",
    "baseline_p99_ns",
    "baseline_hit_ratio",
    "change",
    "change_in",
    "change_text",
    "sparkline",
    "sparkline_p95_ns",
]


def spans(count: int, start: datetime, **values: Any) -> pl.DataFrame:
    """`count` equal spans; a list among the values gives one to each span."""
    row = {
        "region": "eu", "tenant": "acme", "service_name": "cache", "component": "cache", "operation": "get",
        "kind": "server", "start_time": int(start.timestamp() * 10**9), "duration_ns": 2 * MS, "status": "unset",
        "cache_hit": True, "payload_bytes": 10, "sample_weight": 1.0,
    } | values  # fmt: skip
    columns = {name: value if isinstance(value, list) else [value] * count for name, value in row.items()}
    return pl.DataFrame(columns, schema_overrides={"start_time": pl.Datetime("ns"), "cache_hit": pl.Boolean})


def store(lake: Lake, *frames: pl.DataFrame) -> None:
    minutes = pl.concat(partials(frame) for frame in frames)
    paths = {
        MINUTES: write_rows(lake, MINUTES, minutes),
        HOURS: write_rows(lake, HOURS, merged(minutes, "1h")),
    }
    with lake.write() as transaction:
        for table, path in paths.items():
            transaction.add_files(table, [path])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    location = Location(tmp_path_factory.mktemp("health") / "data")
    location.prepare()
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened)
        yield opened


@pytest.fixture
def reader(lake: Lake, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A reader of a lake that holds just the frames that the test is marked with."""
    with lake.write() as transaction:
        for table in (MINUTES, HOURS):
            transaction.execute(f"DELETE FROM {table}")
    store(lake, *request.param)
    with lake.read() as opened:
        yield opened


BEFORE, SINCE = NOON - timedelta(minutes=9), NOON + timedelta(minutes=1)
EXAMPLE = [
    spans(600, BEFORE, duration_ns=[2 * MS] * 540 + [4 * MS] * 60),
    spans(600, SINCE, duration_ns=[2 * MS] * 540 + [16 * MS] * 60, cache_hit=[True] * 450 + [False] * 150),
    spans(300, BEFORE, region="us", status="error", cache_hit=None),
    spans(20, BEFORE, region="ap"),
    spans(90, SINCE, region="ap", sample_weight=None, status=["error"] * 9 + ["ok"] * 81),
    spans(50, NOON + timedelta(minutes=10), region="later"),
]


@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_health_rows_by_hand(reader: Reader) -> None:
    rows = health_rows(reader, WINDOW, Scope(), sparkline_points=5)
    assert rows.columns == COLUMNS
    us, eu, ap = rows.to_dicts()
    assert [us["region"], eu["region"], ap["region"]] == ["us", "eu", "ap"]

    assert (us["count"], us["rate_per_second"], us["baseline_rate_per_second"]) == (0, 0.0, 0.5)
    assert (us["change_in"], us["change_text"]) == ("rate", "silent (was 0.5/s)")
    assert us["change"] == pytest.approx(np.log2(320 / 20))
    assert us["error_rate"] is us["p50_ns"] is us["hit_ratio"] is us["baseline_hit_ratio"] is None
    assert us["baseline_error_rate"] == 1.0

    assert (eu["count"], eu["rate_per_second"], eu["error_rate"], eu["hit_ratio"]) == (600, 1.0, 0.0, 0.75)
    assert eu["p50_ns"] == pytest.approx(2 * MS, rel=0.0101)
    assert eu["p95_ns"] == pytest.approx(16 * MS, rel=0.0101)
    assert eu["baseline_p95_ns"] == pytest.approx(4 * MS, rel=0.0101)
    assert (eu["bytes"], eu["unknown_weight_share"], eu["baseline_hit_ratio"]) == (6000, 0.0, 1.0)
    misses = np.log2(0.30 / 0.05) * 600 / 650
    assert (eu["change"], eu["change_in"]) == (pytest.approx(misses), "hit_ratio")
    assert eu["change_text"] == "hit ratio 75.0 % (was 100 %)"
    assert eu["sparkline"] == [5.0, 0.0, 0.0, 0.0, 0.0]
    assert eu["sparkline_p95_ns"] == [eu["p95_ns"], None, None, None, None]

    assert (ap["change"], ap["change_in"], ap["change_text"]) == (0.0, None, INSUFFICIENT)
    assert (ap["baseline_count"], ap["unknown_weight_share"], ap["error_rate"]) == (20, 1.0, 0.1)


@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_scope_and_several_dimensions(reader: Reader) -> None:
    scope = Scope(regions=("eu", "us"), tenants=("acme",), operations=("get",), components=("cache",))
    rows = health_rows(reader, WINDOW, scope, by=("tenant", "region"))
    assert rows.select("tenant", "region", "count").rows() == [("acme", "us", 0), ("acme", "eu", 600)]
    assert health_rows(reader, WINDOW, Scope(services=("nothing",))).is_empty()
    assert health_rows(reader, WINDOW, Scope(), by=())["count"].to_list() == [690]
    with pytest.raises(ValueError, match="expected different ones of region"):
        health_rows(reader, WINDOW, Scope(), by=("host",))
    with pytest.raises(ValueError, match="expected different ones of region"):
        health_series(reader, WINDOW, Scope(), "x; DROP TABLE spans")


@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_health_series(reader: Reader) -> None:
    series = health_series(reader, WINDOW, Scope(regions=("eu",)), points=4)
    assert series.columns == [
        "time", "count", "rate_per_second", "error_rate", "p50_ns", "p95_ns", "p99_ns", "hit_ratio",
    ]  # fmt: skip
    assert series["time"].to_list() == [
        NOON.replace(tzinfo=None) + timedelta(minutes=m) for m in (0, 3, 6, 9)
    ]
    assert series["count"].to_list() == [600, 0, 0, 0]
    assert series["rate_per_second"].to_list() == [600 / 180, 0, 0, 0]
    assert series["hit_ratio"].to_list() == [0.75, None, None, None]
    by_region = health_series(reader, WINDOW, Scope(), "region", points=1)
    assert by_region.select("region", "count").rows() == [("ap", 90), ("eu", 600)]
    empty = health_series(reader, WINDOW, Scope(regions=("none",)), points=2)
    assert empty["count"].to_list() == [0, 0]


@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_choices_are_ordered_by_volume(reader: Reader) -> None:
    found = choices(reader, WINDOW)
    assert list(found) == list(DIMENSIONS)
    assert found["region"] == ["eu", "us", "ap"]
    assert found["kind"] == ["server"]


@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_freshness(reader: Reader) -> None:
    assert freshness(reader) == Freshness(NOON + timedelta(minutes=11), 1660, None)


SIDES = [
    spans(100, SINCE, kind="client", service_name="app"),
    spans(90, SINCE, kind="server"),
    spans(40, SINCE, kind="internal", component="other", operation="step"),
    spans(30, SINCE, kind="producer", component="topic", operation="publish"),
    spans(60, SINCE, kind="consumer", component="topic", operation="process"),
    spans(70, SINCE, kind="client", component="database", operation="SELECT"),
    spans(80, SINCE, tenant="redis-only", kind="client"),
    spans(20, SINCE, tenant="manual", kind="internal", component="other"),
]


@pytest.mark.parametrize("reader", [SIDES], indirect=True)
def test_ingress_counts_each_operation_once_where_it_is_served(reader: Reader) -> None:
    by = ("tenant", "component", "kind")
    rows = health_rows(reader, WINDOW, Scope(kinds=(INGRESS,)), by=by)
    assert sorted(rows.select(*by, "count").rows()) == [
        ("acme", "cache", "server", 90),
        ("acme", "database", "client", 70),
        ("acme", "topic", "consumer", 60),
        ("acme", "topic", "producer", 30),
        ("manual", "other", "internal", 20),
        ("redis-only", "cache", "client", 80),
    ]
    assert health_rows(reader, WINDOW, Scope(), by=())["count"].to_list() == [490]
    assert health_rows(reader, WINDOW, Scope(kinds=("client",)), by=())["count"].to_list() == [250]


LONG = [
    spans(60, NOON + timedelta(hours=hour, minutes=minute), region="eu" if hour % 2 else "us")
    for hour in range(-16, 16)
    for minute in (5, 45)
]


@pytest.mark.parametrize("reader", [LONG], indirect=True)
@pytest.mark.parametrize(
    ("start", "hours"), [(timedelta(0), 12), (timedelta(minutes=30), 12), (timedelta(minutes=6), 15)]
)
def test_long_windows_from_hours_equal_those_from_minutes(
    reader: Reader, start: timedelta, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(NOON + start, NOON + start + timedelta(hours=hours, minutes=-1))
    from_minutes = health_rows(reader, window, Scope()).drop("sparkline", "sparkline_p95_ns")
    monkeypatch.setattr("analytics.health_source.HOURS_FROM", timedelta(hours=1))
    assert Plan.of(window, 30).whole_hours
    from_hours = health_rows(reader, window, Scope()).drop("sparkline", "sparkline_p95_ns")
    assert from_hours.sort("region").to_dicts() == from_minutes.sort("region").to_dicts()
    series = health_series(reader, window, Scope(), points=7)
    assert series.height <= 7
    assert series["count"].sum() == from_minutes["count"].sum() > 0


@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 100))
def test_steps_cover_the_window_without_gap(start_minute: int, minutes: int, points: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=start_minute)
    window = Window(start, start + timedelta(minutes=minutes))
    steps = Plan.of(window, points).steps()
    assert 1 <= steps.height <= points
    assert steps["seconds"].sum() == window.seconds
    assert steps["time"][0] == start.replace(tzinfo=None)
    ends = steps["time"] + pl.Series(steps["seconds"] * 10**6).cast(pl.Duration("us"))
    assert ends[:-1].to_list() == steps["time"][1:].to_list()


def figures(count: int = 1000, **values: Any) -> Figures:
    known: dict[str, Any] = {
        "rate_per_second": count / 100,
        "error_rate": 0.01,
        "p95_ns": 2e6,
        "hit_ratio": 0.9,
        "lookups": count,
    } | values
    return Figures(count, **known)


@pytest.mark.parametrize(
    ("now", "figure", "text"),
    [
        (figures(), None, "steady"),
        (figures(2200), "rate", "rate 2.2x higher (22.0/s, was 10.0/s)"),
        (figures(400), "rate", "rate 2.5x lower (4.0/s, was 10.0/s)"),
        (figures(p95_ns=4.6e6), "p95", "p95 2.3x slower (4.6 ms, was 2.0 ms)"),
        (figures(p95_ns=5e5), "p95", "p95 4.0x faster (500 µs, was 2.0 ms)"),
        (figures(error_rate=0.2), "error_rate", "errors 20.0 % (was 1.0 %)"),
        (figures(hit_ratio=0.4), "hit_ratio", "hit ratio 40.0 % (was 90.0 %)"),
        (figures(p95_ns=2.1e6), "p95", "steady"),
        (figures(0, p95_ns=None, error_rate=None, hit_ratio=None), "rate", "silent (was 10.0/s)"),
    ],
)
def test_change_names_what_moved_most(now: Figures, figure: str | None, text: str) -> None:
    found = change(now, figures())
    assert (found.figure, found.text) == (figure, text)


@given(st.integers(0, 29), st.integers(0, 10**6))
def test_tiny_baselines_are_no_history(before: int, now: int) -> None:
    assert change(figures(now), figures(before)).text == INSUFFICIENT


@given(st.integers(30, 10**7), st.floats(1.5, 1000))
def test_a_change_seen_in_more_spans_scores_higher(count: int, factor: float) -> None:
    few = change(figures(count, p95_ns=2e6 * factor), figures(count))
    many = change(figures(count * 2, p95_ns=2e6 * factor), figures(count * 2))
    assert 0 < few.score <= many.score <= np.log2(factor) + 1e-9


def test_durations_are_for_people() -> None:
    assert [duration(v) for v in (0, 999, 1e3, 2.34e6, 123e6, 9.9e9, 1e13)] == [
        "0 ns", "999 ns", "1.0 µs", "2.3 ms", "123 ms", "9.9 s", "10,000 s",
    ]  # fmt: skip


SKEWED = [
    spans(
        5000, NOON, region=["eu", "us"] * 2500,
        start_time=(int(NOON.timestamp()) * 10**9 + np.random.default_rng(3).integers(0, 10**11, 5000)).tolist(),
        duration_ns=[0, *np.exp(np.random.default_rng(4).normal(14, 3, 4999)).astype(np.int64).tolist()],
    )
] * 2  # fmt: skip


@pytest.mark.parametrize("reader", [SKEWED], indirect=True)
def test_sql_and_python_give_identical_quantiles(reader: Reader) -> None:
    rows = reader.frame("SELECT region, latency_buckets FROM rollup_1m")
    for q in (0, 0.01, 0.5, 0.95, 0.99, 0.999, 1):
        found = dict(
            reader.rows(
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
    (sql_merged,) = reader.row(
        "SELECT merge_buckets(list(latency_buckets)) FROM rollup_1m WHERE region = 'us'"
    )
    assert sql_merged == dict(sorted(buckets.items()))
    series = health_series(reader, WINDOW, Scope(), "region", points=1)
    assert dict(series.select("region", "p99_ns").rows()) == dict(
        reader.rows(
            "SELECT region, latency_quantile_ns(list(latency_buckets), 0.99) FROM rollup_1m GROUP BY 1"
        )
    )


@pytest.mark.parametrize("reader", [SKEWED], indirect=True)
def test_macros_take_nothing_for_nothing(reader: Reader) -> None:
    sql = "SELECT latency_quantile_ns(list(latency_buckets), 0.5), merge_buckets(list(latency_buckets)) FROM rollup_1m"
    assert reader.row(sql + " WHERE false") == (None, None)
    assert reader.row("SELECT latency_quantile_ns([MAP {}], 0.5), bucket_value_ns(NULL)") == (None, None)


@pytest.mark.parametrize("reader", [SKEWED], indirect=True)
def test_bucket_values_are_the_same_numbers_in_sql(reader: Reader) -> None:
    found = reader.rows("SELECT i, bucket_value_ns(i) FROM range(-1, ?) AS t(i)", [INDEX_MAX + 1])
    assert found == [(index, bucket_value_ns(index)) for index in range(-1, INDEX_MAX + 1)]


@pytest.mark.parametrize("reader", [SKEWED], indirect=True)
def test_burst_moments_of_merged_partials(reader: Reader) -> None:
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
    found = reader.rows("SELECT * FROM bursts_1m")
    assert {(row[1], row[0].minute): tuple(row[7:]) for row in found} == expected


def test_tenant_health_compares_the_last_quarter_hours(lake: Lake) -> None:
    with lake.write() as transaction:
        for table in (MINUTES, HOURS):
            transaction.execute(f"DELETE FROM {table}")
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    store(
        lake,
        spans(900, now - timedelta(minutes=4), duration_ns=4 * MS, cache_hit=[True, False] * 450),
        spans(450, now - timedelta(minutes=24), status=["error"] * 45 + ["ok"] * 405),
        spans(77, now - timedelta(minutes=40)),
    )
    with lake.read() as reader:
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
@pytest.mark.parametrize("reader", [EXAMPLE], indirect=True)
def test_documented_queries_run(reader: Reader, query: str) -> None:
    assert reader.frame(query).width > 1


def test_the_page_describes_every_column() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rollups.md").read_text(encoding="utf-8")
    assert [name for name in ROLLUP_SCHEMA if f"`{name}`" not in page] == []
