"""The same time of other days: figures against it, and findings that are no news."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from analytics import jobs
from analytics.change import INSUFFICIENT
from analytics.insight import rhythm
from analytics.insight.finding import Confidence, Effect, Finding, Kind, Place
from analytics.insight.seasons import DAYS_BEFORE, FIGURES, SERIES, UNUSUAL, compared, summary
from analytics.rollup.job import write_rows
from analytics.rollup.partials import DIMENSIONS, merged, partials
from analytics.rollup.sets import BASE
from analytics.window import MINUTE, Window
from collector.config import InsightConfig
from collector.lake.lake import Lake
from collector.lake.location import Location
from dashboard.cli import main as spanlake

NOON = datetime(2026, 3, 30, 12, tzinfo=UTC)
WINDOW = Window(NOON - 10 * MINUTE, NOON)
BUSY_EVERY_DAY, BUSY_TODAY, NEW = "batch", "get", "set"


def stretch(days_before: int, operation: str, spans: int, duration_ns: int, tenant: str = "a") -> pl.DataFrame:
    begin = WINDOW.start - timedelta(days=days_before)
    return pl.select(
        start_time=pl.lit(begin.replace(tzinfo=None), pl.Datetime("ns"))
        + pl.duration(milliseconds=pl.int_range(spans) * (600_000 // spans)),
        region=pl.lit("north"), tenant=pl.lit(tenant), service_name=pl.lit("cache"), component=pl.lit("cache"),
        operation=pl.lit(operation), kind=pl.lit("server"),
        duration_ns=duration_ns + pl.int_range(spans) % 7 * (duration_ns // 100),
        status=pl.when(pl.int_range(spans) % 50 == 0).then(pl.lit("error")).otherwise(pl.lit("ok")),
        cache_hit=pl.lit(None, pl.Boolean), payload_bytes=pl.lit(None, pl.Int64), sample_weight=pl.lit(1.0),
    )  # fmt: skip


def several_weeks() -> pl.DataFrame:
    """Two operations on each of DAYS_BEFORE but yesterday's week; one is slow at this time on every day."""
    parts = [stretch(0, BUSY_EVERY_DAY, 900, 8_000_000), stretch(0, BUSY_TODAY, 900, 8_000_000)]
    parts += [stretch(0, NEW, 900, 1_000_000), stretch(1, "rare", 20, 1_000_000)]
    for days in DAYS_BEFORE:
        parts.append(stretch(days, BUSY_EVERY_DAY, 880 + days, 7_800_000))
        parts.append(stretch(days, BUSY_TODAY, 890 + days, 1_000_000))
    return pl.concat(parts)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    location = Location(tmp_path_factory.mktemp("seasons") / "data")
    location.prepare()
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened)
        rows = partials(several_weeks(), DIMENSIONS)
        for table, length in BASE.tables:
            path = write_rows(opened, table, merged(rows, length, DIMENSIONS), DIMENSIONS)
            with opened.write() as transaction:
                transaction.add_files(table, [path])
        yield opened


def of(lake: Lake, operation: str, figure: str, window: Window = WINDOW) -> dict[str, object]:
    with lake.read() as reader:
        found = compared(reader, window, SERIES)
    (row,) = found.filter(pl.col("operation") == operation, pl.col("figure") == figure).rows(named=True)
    return row


def test_each_series_is_compared_with_the_same_time_of_other_days(lake: Lake) -> None:
    every_day, today = (of(lake, operation, "p95_ns") for operation in (BUSY_EVERY_DAY, BUSY_TODAY))
    assert (every_day["verdict"], today["verdict"]) == ("usual", "higher")
    assert every_day["samples"] == len(DAYS_BEFORE)
    assert today["yesterday"] == today["last_week"] == today["usual"] == pytest.approx(1_060_000, rel=0.02)
    assert today["now"] == pytest.approx(8_480_000, rel=0.02)
    rate = of(lake, BUSY_TODAY, "rate_per_second")
    assert (rate["verdict"], rate["now"], rate["previous"]) == ("usual", 1.5, None)


def test_what_has_no_past_or_few_spans_is_insufficient_history(lake: Lake) -> None:
    assert of(lake, NEW, "p95_ns")["verdict"] == INSUFFICIENT
    assert of(lake, NEW, "p95_ns")["usual"] is None
    # Other spans were recorded on those days: that there were none of these is known.
    assert of(lake, NEW, "rate_per_second")["verdict"] == "higher"
    assert {of(lake, "rare", figure)["verdict"] for figure in FIGURES} == {INSUFFICIENT}
    early = Window(WINDOW.start - timedelta(days=21), WINDOW.end - timedelta(days=21))
    assert of(lake, BUSY_TODAY, "p95_ns", early)["verdict"] == INSUFFICIENT


def test_no_series_is_asked_for_and_none_there_are_fine(lake: Lake) -> None:
    with lake.read() as reader:
        assert compared(reader, WINDOW, (), values={"operation": [BUSY_TODAY]}).height == len(FIGURES)
        assert compared(reader, WINDOW, SERIES, values={"tenant": ["nobody"]}).is_empty()


def finding(kind: Kind, operation: str | None, **more: Any) -> Finding:
    place = Place("north", "cache", operation)
    return Finding(
        kind, place, "warning", 1.0, WINDOW.start, NOON, Effect("p95_ns", 8e6, 1e6, 8.0),
        Confidence("t", 0.0, 0.0, 900), f"{kind}.", **more,
    )  # fmt: skip


def test_a_daily_rhythm_is_no_finding_and_others_say_against_what(lake: Lake) -> None:
    found = [finding("latency", BUSY_EVERY_DAY), finding("latency", BUSY_TODAY), finding("latency", NEW),
             finding("burst", BUSY_EVERY_DAY), finding("deploy", BUSY_EVERY_DAY),
             finding("hit_ratio", None)]  # fmt: skip
    with lake.read() as reader:
        told = rhythm.weighed(found, rhythm.of_reader(reader, InsightConfig()), NOON, InsightConfig())
    assert [(one.kind, one.operation) for one in told] == [
        ("latency", BUSY_TODAY), ("latency", NEW), ("deploy", BUSY_EVERY_DAY), ("hit_ratio", None),
    ]  # fmt: skip
    before, yesterday, last_week, days = told[0].baselines
    assert before == f"the time before: {INSUFFICIENT}"
    assert yesterday.startswith("same time yesterday: p95 8.5 ms, was p95 1.")
    assert last_week.startswith("same time last week: p95 8.5 ms")
    assert days.startswith("same time of 10 days: ")
    assert all(INSUFFICIENT in phrase for phrase in told[1].baselines)
    assert told[2].baselines == ()


days = st.lists(st.floats(0.1, 1e6), min_size=len(DAYS_BEFORE), max_size=len(DAYS_BEFORE))


@given(days, st.floats(0.1, 1e6), st.integers(0, len(DAYS_BEFORE)))
def test_what_lies_within_the_other_days_scale_is_usual_and_the_unit_does_not_matter(
    past: list[float], now: float, known: int
) -> None:
    value = np.array([[now, np.nan, *past[:known], *[np.nan] * (len(past) - known)]]) + 1000.0
    (row,) = summary("p95_ns", value, np.array([1000.0]), 600.0).rows(named=True)
    (other,) = summary("p95_ns", 1000 * value, np.array([1000.0]), 600.0).rows(named=True)
    if known < 3:
        assert row["verdict"] == INSUFFICIENT
        return
    assert row["usual"] == pytest.approx(np.median(past[:known]) + 1000)
    assert row["scale"] >= 0.1 * row["usual"] * 0.999
    assert row["deviation"] == pytest.approx(other["deviation"], rel=1e-6, abs=1e-9)
    assert (row["verdict"] == "usual") == (abs(row["deviation"]) < UNUSUAL)


def test_days_that_vary_much_do_not_make_a_multiple_usual() -> None:
    past = [1e6, 9e6, 2e6, 8e6, 3e6, 7e6, 4e6, 6e6, 5e6, 5e6]
    (row,) = summary("p95_ns", np.array([[9.5e6, np.nan, *past]]), np.array([1000.0]), 600.0).rows(named=True)
    assert row["verdict"] == "usual"
    assert not rhythm.is_usual(row, 1, 1.5)


@pytest.mark.parametrize(
    ("kind", "now", "is_silent"),
    [
        ("traffic_drop", 95.0, True),
        ("traffic_drop", 30.0, False),
        ("traffic_surge", 300.0, False),
        ("burst", 105.0, True),
    ],
)
def test_the_direction_matters(kind: str, now: float, is_silent: bool) -> None:
    row = summary("rate_per_second", np.array([[now, 80.0, *[100.0] * 10]]), np.array([1e4]), 600.0)
    told = rhythm.weighed([finding(kind, None)], lambda *_: row, NOON, InsightConfig())
    assert (told == []) == is_silent


@pytest.mark.parametrize(("now", "is_silent"), [(0.70, True), (0.40, False)])
def test_a_cache_that_is_cold_every_morning_is_no_news(now: float, is_silent: bool) -> None:
    row = summary("hit_ratio", np.array([[now, 0.95, *[0.70] * 10]]), np.array([1e4]), 600.0)
    told = rhythm.weighed([finding("hit_ratio", None)], lambda *_: row, NOON, InsightConfig())
    assert (told == []) == is_silent


def test_the_command_tells_what_is_unusual_and_counts_the_rest(lake: Lake) -> None:
    arguments = ["baselines", "--data", str(lake.location.root), "--window", "10m", "--until", NOON.isoformat()]
    result = CliRunner().invoke(spanlake, [*arguments, "--format", "json"])
    assert result.exit_code == 0, result.output
    told = {(row["operation"], row["figure"]) for row in json.loads(result.stdout)}
    assert told == {(BUSY_TODAY, "p95_ns"), (NEW, "rate_per_second")}
    assert INSUFFICIENT in result.stderr
    every = CliRunner().invoke(spanlake, [*arguments, "--format", "json", "--all", "--tenant", "nobody"])
    assert json.loads(every.stdout) == []
    wrong = CliRunner().invoke(spanlake, [*arguments, "--by", "colour"])
    assert wrong.exit_code == 2
    assert "colour" in wrong.output
