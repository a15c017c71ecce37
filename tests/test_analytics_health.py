"""Health queries: worked examples."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from analytics.window import Window
from collector.lake.lake import Reader
from tests.reference.rollups import EXAMPLE, MS, NOON, SINCE, WINDOW, spans

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


@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_health_rows_by_hand(rollups: Reader) -> None:
    rows = health_rows(rollups, WINDOW, Scope(), sparkline_points=5)
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


@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_scope_and_several_dimensions(rollups: Reader) -> None:
    scope = Scope(regions=("eu", "us"), tenants=("acme",), operations=("get",), components=("cache",))
    rows = health_rows(rollups, WINDOW, scope, by=("tenant", "region"))
    assert rows.select("tenant", "region", "count").rows() == [("acme", "us", 0), ("acme", "eu", 600)]
    assert health_rows(rollups, WINDOW, Scope(services=("nothing",))).is_empty()
    assert health_rows(rollups, WINDOW, Scope(), by=())["count"].to_list() == [690]
    with pytest.raises(ValueError, match="expected different ones of region"):
        health_rows(rollups, WINDOW, Scope(), by=("host",))
    with pytest.raises(ValueError, match="expected different ones of region"):
        health_series(rollups, WINDOW, Scope(), "x; DROP TABLE spans")


@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_health_series(rollups: Reader) -> None:
    series = health_series(rollups, WINDOW, Scope(regions=("eu",)), points=4)
    assert series.columns == [
        "time", "count", "rate_per_second", "error_rate", "p50_ns", "p95_ns", "p99_ns", "hit_ratio",
    ]  # fmt: skip
    assert series["time"].to_list() == [
        NOON.replace(tzinfo=None) + timedelta(minutes=m) for m in (0, 3, 6, 9)
    ]
    assert series["count"].to_list() == [600, 0, 0, 0]
    assert series["rate_per_second"].to_list() == [600 / 180, 0, 0, 0]
    assert series["hit_ratio"].to_list() == [0.75, None, None, None]
    by_region = health_series(rollups, WINDOW, Scope(), "region", points=1)
    assert by_region.select("region", "count").rows() == [("ap", 90), ("eu", 600)]
    empty = health_series(rollups, WINDOW, Scope(regions=("none",)), points=2)
    assert empty["count"].to_list() == [0, 0]


@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_choices_are_ordered_by_volume(rollups: Reader) -> None:
    found = choices(rollups, WINDOW)
    assert list(found) == list(DIMENSIONS)
    assert found["region"] == ["eu", "us", "ap"]
    assert found["kind"] == ["server"]


@pytest.mark.parametrize("rollups", [EXAMPLE], indirect=True)
def test_freshness(rollups: Reader) -> None:
    assert freshness(rollups) == Freshness(NOON + timedelta(minutes=11), 1660, None)


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


@pytest.mark.parametrize("rollups", [SIDES], indirect=True)
def test_ingress_counts_each_operation_once_where_it_is_served(rollups: Reader) -> None:
    by = ("tenant", "component", "kind")
    rows = health_rows(rollups, WINDOW, Scope(kinds=(INGRESS,)), by=by)
    assert sorted(rows.select(*by, "count").rows()) == [
        ("acme", "cache", "server", 90),
        ("acme", "database", "client", 70),
        ("acme", "topic", "consumer", 60),
        ("acme", "topic", "producer", 30),
        ("manual", "other", "internal", 20),
        ("redis-only", "cache", "client", 80),
    ]
    assert health_rows(rollups, WINDOW, Scope(), by=())["count"].to_list() == [490]
    assert health_rows(rollups, WINDOW, Scope(kinds=("client",)), by=())["count"].to_list() == [250]


LONG = [
    spans(60, NOON + timedelta(hours=hour, minutes=minute), region="eu" if hour % 2 else "us")
    for hour in range(-16, 16)
    for minute in (5, 45)
]


@pytest.mark.parametrize("rollups", [LONG], indirect=True)
@pytest.mark.parametrize(
    ("start", "hours"), [(timedelta(0), 12), (timedelta(minutes=30), 12), (timedelta(minutes=6), 15)]
)
def test_long_windows_from_hours_equal_those_from_minutes(
    rollups: Reader, start: timedelta, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(NOON + start, NOON + start + timedelta(hours=hours, minutes=-1))
    from_minutes = health_rows(rollups, window, Scope()).drop("sparkline", "sparkline_p95_ns")
    monkeypatch.setattr("analytics.health_source.HOURS_FROM", timedelta(hours=1))
    assert Plan.of(window, 30).whole_hours
    from_hours = health_rows(rollups, window, Scope()).drop("sparkline", "sparkline_p95_ns")
    assert from_hours.sort("region").to_dicts() == from_minutes.sort("region").to_dicts()
    series = health_series(rollups, window, Scope(), points=7)
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


