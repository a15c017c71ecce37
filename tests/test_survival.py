"""Delays of which some have not ended: the estimate and the test, against statsmodels on single observations."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from analytics import jobs
from analytics.buckets import bucket_value_ns
from analytics.survival import Curve, Delays, log_rank
from analytics.traces.deliveries import DELIVERIES
from analytics.traces.delivery_lags import delivery_lags
from analytics.window import Window
from collector.lake.lake import Lake
from collector.lake.location import Location

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
observed = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=8)


def grouped(rows: list[tuple[int, int, int]]) -> Delays:
    time, ended, censored = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Delays.of(time, ended, time, censored)


def single(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Time and whether it ended, one by one."""
    pairs = [(time, 1) for time, ended, _ in rows for _ in range(ended)]
    pairs += [(time, 0) for time, _, censored in rows for _ in range(censored)]
    return np.array([time for time, _ in pairs], dtype=float), np.array([status for _, status in pairs])


@given(observed)
def test_the_curve_is_that_of_single_observations(rows: list[tuple[int, int, int]]) -> None:
    time, status = single(rows)
    assume(status.any())
    curve, reference = Curve(grouped(rows)), SurvfuncRight(time, status)
    for at, share, error in zip(reference.surv_times, reference.surv_prob, reference.surv_prob_se, strict=True):
        found = curve.lasting(at)
        assert found.value == pytest.approx(share)
        if np.isfinite(error):
            assert found.high == pytest.approx(min(share + 1.959964 * error, 1.0), abs=1e-5)
    shares = [curve.lasting(at).value or 0.0 for at in np.arange(0.0, 9.0)]
    assert shares == sorted(shares, reverse=True)
    for q in (0.31, 0.53, 0.97):  # no share of so few
        found = curve.quantile(q)
        with np.errstate(all="ignore"):
            expected = (reference.quantile(q), *reference.quantile_ci(q, method="cloglog"))
        assert found.value == (expected[0] if np.isfinite(expected[0]) else None)
        if found.value is not None:
            assert (found.low or 0.0) <= found.value <= (found.high or np.inf)
        inner = [share for share in reference.surv_prob if share > 1e-9]
        if len(inner) == len(reference.surv_prob) and np.isfinite(expected).all():
            assert (found.low, found.high) == expected[1:]


@given(observed, observed)
def test_the_log_rank_test_is_that_of_single_observations(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]
) -> None:
    (time_1, status_1), (time_2, status_2) = single(first), single(second)
    assume(status_1.any() and status_2.any())
    statistic, p = log_rank(grouped(first), grouped(second))
    assert statistic >= 0
    if p == 1:  # no variance: statsmodels cannot solve for it
        return
    group = np.repeat([0, 1], [len(time_1), len(time_2)])
    with np.errstate(all="ignore"):
        expected, expected_p = survdiff(np.concatenate([time_1, time_2]), np.concatenate([status_1, status_2]), group)
    assume(np.isfinite(expected))
    assert (statistic, p) == (pytest.approx(expected), pytest.approx(expected_p))
    assert log_rank(grouped(second), grouped(first))[0] == pytest.approx(statistic)


def test_a_worked_example() -> None:
    """Of 10, one each ends at 1, 2, 3 and 4, two are lost sight of after 2: S = 0.9, 0.8, 0.8 x 5/6, 0.8 x 4/6."""
    delays = Delays.of(np.arange(1.0, 5), np.ones(4), np.array([2.0, 9.0]), np.array([2.0, 4.0]))
    curve = Curve(delays)
    shares = [curve.lasting(at).value for at in (0.5, 1, 2, 3, 4, 9)]
    assert shares == pytest.approx([1, 0.9, 0.8, 0.8 * 5 / 6, 0.8 * 4 / 6, 0.8 * 4 / 6])
    assert curve.quantile(0.5).value is None
    assert curve.quantile(0.2).value == 2
    assert curve.quantile(0.21).value == 3
    assert curve.followed_ns == 9


def test_nothing_that_ended_is_told() -> None:
    with pytest.raises(ValueError, match="none ended"):
        Curve(Delays.of(np.empty(0), np.empty(0), np.array([1.0]), np.array([3.0])))
    nothing = Delays.of(np.empty(0), np.empty(0), np.array([1.0]), np.array([3.0]))
    assert log_rank(nothing, nothing) == (0.0, 1.0)


def minute(number: int, destination: str, messages: int, lags: dict[int, int], negative: int = 0) -> dict[str, Any]:
    delivered = sum(lags.values()) + negative
    return {
        "window_start": (NOON + timedelta(minutes=number)).replace(tzinfo=None), "region": "north", "tenant": "a",
        "destination": destination, "messages": messages, "delivered": delivered, "deliveries": delivered,
        "consumer_errors": 0, "negative_lags": negative, "lag_buckets": lags, "first_lag_buckets": lags,
        "last_lag_buckets": lags, "fan_out_counts": {1: delivered, 0: messages - delivered},
    }  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    location = Location(tmp_path_factory.mktemp("lags") / "data")
    location.prepare()
    rows = [
        minute(0, "orders", 100, {800: 50, 900: 20}), minute(9, "orders", 100, {800: 50, 900: 20}),
        minute(3, "mail", 10, {700: 8}, negative=2), minute(3, "lost", 5, {}),
    ]  # fmt: skip
    maps = [name for name in DELIVERIES.schema if name.endswith(("buckets", "counts"))]
    frame = pl.DataFrame(
        [{**row, **{name: [{"key": k, "value": v} for k, v in row[name].items()] for name in maps}} for row in rows]
    )
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened)
        maps_of = ", ".join(f"map_from_entries({name}) AS {name}" for name in maps)
        with opened.write() as transaction:
            transaction.insert("deliveries_1m", _as_maps(frame, maps_of))
        yield opened


def _as_maps(frame: pl.DataFrame, maps: str) -> pa.Table:
    with duckdb.connect() as connection:
        connection.register("entries", frame.to_arrow())
        return connection.execute(f"SELECT * REPLACE ({maps}) FROM entries").to_arrow_table()


def test_lags_of_topics_take_in_what_is_not_delivered(lake: Lake) -> None:
    with lake.read() as reader:
        found = delivery_lags(reader, Window(NOON, NOON + timedelta(minutes=10)))
        assert delivery_lags(reader, Window(NOON, NOON + timedelta(minutes=10)), ())["messages"].to_list() == [215]
        assert delivery_lags(reader, Window(NOON + timedelta(days=1), NOON + timedelta(days=2))).is_empty()
        with pytest.raises(ValueError, match="expected different ones of"):
            delivery_lags(reader, Window(NOON, NOON + timedelta(minutes=10)), ("host",))
    lost, mail, orders = found.sort("destination").rows(named=True)
    assert (lost["undelivered"], lost["p50_ns"]) == (5, None)
    assert (mail["undelivered"], mail["p50_ns"]) == (0, pytest.approx(bucket_value_ns(700)))
    # Of the second minute's 30 nothing is known yet: they were sent as the window ends.
    assert orders["undelivered"] == 60
    assert orders["p50_ns"] == pytest.approx(bucket_value_ns(800))
    assert orders["p95_ns"] is None
    assert orders["undelivered_share"] == pytest.approx(30 / 170 * 140 / 140, abs=0.03)
    assert orders["undelivered_share_low"] < orders["undelivered_share"] < orders["undelivered_share_high"]


@given(observed, observed)
def test_groups_add_up(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    both, whole = Delays.concat([grouped(first), grouped(second)]), grouped([*first, *second])
    for one, other in zip(vars(both).values(), vars(whole).values(), strict=True):
        assert one == pytest.approx(other)


def test_effective_numbers_keep_the_estimate_and_widen_its_interval() -> None:
    delays = grouped([(1, 30, 0), (2, 40, 2), (3, 30, 5)])
    one, other = (Curve(each).quantile(0.5) for each in (delays, delays.over(6.0)))
    assert one.value == other.value
    shares = [Curve(each).lasting(1.0) for each in (delays, delays.over(6.0))]
    assert shares[0].value == pytest.approx(shares[1].value)
    widths = [(share.high or 0.0) - (share.low or 0.0) for share in shares]
    assert widths[1] == pytest.approx(6**0.5 * widths[0])
