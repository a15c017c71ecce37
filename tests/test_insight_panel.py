"""Evidence as arrays: sums by group, what lies beyond a duration, and what reading leaves in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analytics.insight import panel as panels
from analytics.insight.baselines import Least, may_stand_out, rates, scan
from analytics.insight.evidence import of_spans
from analytics.insight.grains import BASE, CELLS_SCHEMA, Grain, rows_schema
from analytics.insight.measures import Span, summed
from analytics.insight.panel import Panel
from analytics.insight.scene import STRATA
from analytics.insight.slices import totals
from analytics.insight.trends import concordance

NOON = datetime(2026, 3, 2, 12)
MINUTES = 40


def spans(count: int = 20_000) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    kind = rng.integers(0, 3, count)
    return pl.DataFrame(
        {
            "region": [f"r{i}" for i in rng.integers(0, 2, count)],
            "tenant": [f"t{i}" for i in rng.integers(0, 9, count)],
            "service_name": [f"s{i}" for i in kind],
            "component": "cache",
            "operation": [f"op{i}" for i in rng.integers(0, 4, count)],
            "kind": np.array(["server", "client", "consumer"])[kind],
            "start_time": [NOON + timedelta(seconds=int(i)) for i in rng.integers(0, 60 * MINUTES, count)],
            "duration_ns": np.exp(rng.normal(13, 1, count)).astype(np.int64),
            "status": np.where(rng.random(count) < 0.05, "error", "unset"),
        }
    )


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.of(of_spans(spans()).base, Span.until(NOON + timedelta(minutes=MINUTES), MINUTES, 15))


def small_panel() -> Panel:
    return Panel.of(of_spans(spans(400)).base, Span.until(NOON + timedelta(minutes=MINUTES), MINUTES, 15))


@pytest.mark.parametrize("block", [700, 1_000_000])
def test_a_coarse_panel_tells_of_its_groups_what_the_fine_one_tells(
    panel: Panel, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "_BLOCK_CELLS", block)
    keys, of = panel.groups(STRATA["base"])
    coarse = panel.coarse(STRATA["base"])
    assert coarse.keys.equals(keys)
    assert 0 < coarse.cells.frame.height < panel.cells.frame.height
    thresholds = panel.thresholds(of, keys.height)
    assert np.array_equal(coarse.thresholds(np.arange(keys.height), keys.height), thresholds)
    assert np.array_equal(coarse.beyond(thresholds[0]), summed(panel.beyond(thresholds[0][of]), of, keys.height))
    assert panel.source is not None
    means = panel.mean_cell(STRATA["base"], ("server",))
    serving = (keys["kind"] == "server").to_numpy()
    assert np.isfinite(means[serving]).all()
    assert np.isnan(means[~serving]).all()
    for name in ("count", "errors"):
        assert np.array_equal(coarse.counts[name], summed(panel.counts[name], of, keys.height))
    every = np.zeros(keys.height, dtype=np.intp)
    assert np.array_equal(coarse.minute_spreads(every, 1), panel.minute_spreads(every[of], 1))


def test_numbers_are_summed_up_however_far_apart_they_are() -> None:
    values = np.array([3, 1, 2, 5])
    for far in (1, 1000):
        at, total = totals(np.array([4, 0, 4, 2]) * far, values)
        assert at.tolist() == [0, 2 * far, 4 * far]
        assert total.tolist() == [1, 5, 5]


def test_what_lies_beyond_limits_is_counted_anew_where_they_change(panel: Panel) -> None:
    keys, of = panel.groups(STRATA["base"])
    limits = panel.thresholds(np.asarray(of), keys.height)
    for moved in (np.zeros(keys.height), np.arange(keys.height) % 2, np.arange(keys.height) % 3 - 1):
        both = limits + moved
        for tally, cells in zip(panel.beyond_strata(STRATA["base"], both), both, strict=True):
            expected = panel.beyond(cells[of])
            assert np.array_equal(tally.array, expected)
            assert np.array_equal(tally.by_names(STRATA["base"]), summed(expected, of, keys.height))
            series, minute, spans = tally.last(7)
            last = np.zeros_like(expected[:, -7:])
            last[series, minute] = spans
            assert np.array_equal(last, expected[:, -7:])


@given(st.integers(0, 2**32))
def test_tallies_say_what_arrays_say(seed: int) -> None:
    panel = small_panel()
    rng = np.random.default_rng(seed)
    groups, weights = rng.integers(-1, 3, panel.size), rng.random(panel.size)
    which = rng.random(panel.size) < 0.5
    tally, array = panel.tally("count", "errors"), panel.counts["count"] + panel.counts["errors"]
    assert np.array_equal(tally.array, array)
    assert np.array_equal(tally.rows(which), array[which])
    plain, weighted = tally.by(groups, 3, (weights,))
    assert np.array_equal(plain, summed(array, groups, 3))
    assert np.allclose(weighted, summed(array * weights[:, None], groups, 3))
    assert np.array_equal(tally.only(which).array, array * which[:, None])
    out = rng.random((3, panel.span.count)) < 0.3
    strata = np.maximum(groups, 0)
    for minutes in (20, 12, 30, 3):
        assert np.array_equal(tally.total(minutes, out, strata), (array * ~out[strata])[:, :minutes].sum(1))


@given(st.integers(0, 2**32), st.sampled_from([1, -1]))
def test_nothing_stands_out_that_the_last_minutes_do_not_show(seed: int, sign: int) -> None:
    rng = np.random.default_rng(seed)
    span = Span.until(NOON, 60, 15)
    trials = rng.integers(0, 200, (40, 60)).astype(np.float32)
    rate = np.where(np.arange(60) >= 60 - rng.integers(0, 15, 40)[:, None], 0.1 * rng.random((40, 1)) * 8, 0.1)
    measure = rates(rng.poisson(trials * rate).astype(np.float32), trials, np.zeros(40, dtype=np.intp), 1, span)
    least = Least(60, 1.5, 6.0)
    scanned = scan(measure, span, sign)
    ratio = scanned.ratio if sign > 0 else 1 / scanned.ratio
    stands_out = (scanned.z >= 6) & (scanned.trials >= 60) & (ratio >= 1.5)
    stands_out &= np.abs(scanned.observed - scanned.expected) >= least.events
    assert not (stands_out & ~may_stand_out(measure, sign, least)).any()


def test_continuations_of_the_same_minutes_do_not_disturb_each_other() -> None:
    """They share what is computed of these minutes; each has series that the other has not, the second one fewer."""
    before = of_spans(spans(3000)).base
    span = Span.until(NOON + timedelta(minutes=2 * MINUTES), 2 * MINUTES, 15)
    Panel.of(before, Span.until(NOON + timedelta(minutes=MINUTES), MINUTES, 15)).tally("count").by_names(("region",))
    for name, count in (("a", 300), ("z", 20)):
        renamed = pl.format("{}" + name, "operation").alias("operation")
        grain = of_spans(spans(count).with_columns(renamed, pl.col("start_time") + timedelta(minutes=MINUTES))).base
        both = Grain.concat([before, grain])
        shared, alone = (Panel.of(one, span) for one in (both, Grain(BASE, both.keys, both.rows, both.cells)))
        for by in (("region",), ("service_name",), STRATA["base"]):
            assert np.array_equal(shared.tally("count").by_names(by), alone.tally("count").by_names(by))
            assert np.array_equal(shared.mean_cell(by, ("server",)), alone.mean_cell(by, ("server",)), equal_nan=True)
            every = np.arange(shared.groups(by)[0].height)
            mine, its = (one.coarse(by).minute_spreads(every, len(every)) for one in (shared, alone))
            assert np.array_equal(mine, its)
            for cells in (np.full((2, len(every)), 100.0), np.full((2, len(every)), 101.0)):
                mine, its = (one.beyond_strata(by, cells)[0].array for one in (shared, alone))
                assert np.array_equal(mine, its)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=30), st.integers(0, 2**32))
def test_sums_of_groups_are_those_of_their_rows(groups: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    of, array = np.array(groups, dtype=np.intp), rng.integers(0, 9, (len(groups), 3)).astype(np.float32)
    expected = np.stack([array[of == group].sum(0) for group in range(5)])
    assert np.array_equal(summed(array, of, 5), expected)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40).filter(lambda values: len(set(values)) > 1))
def test_concordance_is_kendalls_tau(values: list[int]) -> None:
    expected = stats.kendalltau(np.arange(len(values)), values).statistic
    assert concordance(np.array(values, dtype=float)) == pytest.approx(expected, abs=1e-9)


def test_a_grain_keeps_nothing_of_the_batches_it_was_read_from() -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        for step in range(20):
            minutes = np.repeat(np.arange(step * 10, step * 10 + 10, dtype=np.int32), 500)
            columns = {name: pa.array([f"{name} of some length {i % 500}" for i in range(5000)]) for name in BASE}
            numbers = {name: pa.array(np.ones(5000, dtype=np.int64)) for name in rows_schema(BASE).names()[2:]}
            maps = pa.array([[(5, 1)]] * 5000, pa.map_(pa.int32(), pa.int64()))
            hashes = pa.array(np.arange(5000, dtype=np.uint64) % 500)
            yield pa.RecordBatch.from_pydict(
                {"minute": pa.array(minutes), **columns, "key": hashes, **numbers, "latency_buckets": maps}
            )

    before = pa.total_allocated_bytes()
    grain = Grain.empty(BASE).continued(batches())
    assert (grain.rows.height, grain.keys.height) == (100_000, 500)
    assert grain.cells.schema == CELLS_SCHEMA
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_a_grain_whose_hashes_are_not_known_is_not_continued(panel: Panel) -> None:
    assert panel.source is not None
    with pytest.raises(ValueError, match="read its minutes again"):
        panel.source.grain.continued([])
