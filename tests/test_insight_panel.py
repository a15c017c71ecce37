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
from analytics.insight.evidence import BASE, CELLS_SCHEMA, Grain, of_spans, rows_schema
from analytics.insight.measures import Span, summed, summed_each
from analytics.insight.panel import Panel
from analytics.insight.scene import STRATA
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
    for name in ("count", "errors"):
        assert np.array_equal(coarse.counts[name], summed(panel.counts[name], of, keys.height))
    every = np.zeros(keys.height, dtype=np.intp)
    assert np.array_equal(coarse.minute_spreads(every, 1), panel.minute_spreads(every[of], 1))


def test_cells_of_so_many_groups_that_most_are_empty_are_summed_up_too(panel: Panel) -> None:
    each = np.arange(panel.size) * 1000
    found = panel.cells.summed(each, panel.size * 1000)
    assert found.frame["spans"].sum() == panel.cells.frame["spans"].sum()
    assert found.frame["minute"].is_sorted()
    series = found.frame["series"].unique().sort()
    assert series.to_list() == each.tolist()


def test_what_lies_beyond_several_limits_is_counted_in_one_pass(panel: Panel) -> None:
    keys, of = panel.groups(STRATA["base"])
    limits = [cells[of] for cells in panel.thresholds(of, keys.height)]
    slow, very_slow = panel.beyond_each(limits)
    assert np.array_equal(slow, panel.beyond(limits[0]))
    assert np.array_equal(very_slow, panel.beyond(limits[1]))
    assert 0 < very_slow.sum() < slow.sum()


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=30), st.integers(0, 2**32))
def test_sums_of_groups_are_those_of_their_rows(groups: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    of, array = np.array(groups, dtype=np.intp), rng.integers(0, 9, (len(groups), 3)).astype(np.float32)
    expected = np.stack([array[of == group].sum(0) for group in range(5)])
    assert np.array_equal(summed(array, of, 5), expected)
    inside, weights = of >= 0, rng.integers(0, 5, (2, len(groups))).astype(float)
    found = summed_each(array[inside], of[inside], 5, [weight[inside] for weight in weights])
    for weight, sums in zip(weights, found, strict=True):
        weighted = array * weight[:, None]
        assert np.array_equal(sums, np.stack([weighted[of == group].sum(0) for group in range(5)]))


@given(st.lists(st.integers(0, 9), min_size=3, max_size=40).filter(lambda values: len(set(values)) > 1))
def test_concordance_is_kendalls_tau(values: list[int]) -> None:
    expected = stats.kendalltau(np.arange(len(values)), values).statistic
    assert concordance(np.array(values, dtype=float)) == pytest.approx(expected, abs=1e-9)


def test_a_grain_keeps_nothing_of_the_batches_it_was_read_from() -> None:
    def batches() -> Iterator[pl.DataFrame]:
        for step in range(20):
            minutes = np.repeat(np.arange(step * 10, step * 10 + 10, dtype=np.int32), 500)
            columns = {name: pa.array([f"{name} of some length {i % 500}" for i in range(5000)]) for name in BASE}
            numbers = {name: pa.array(np.ones(5000, dtype=np.int64)) for name in rows_schema(BASE).names()[2:]}
            maps = pa.array([[(5, 1)]] * 5000, pa.map_(pa.int32(), pa.int64()))
            yield pl.DataFrame(
                pa.RecordBatch.from_pydict({"minute": pa.array(minutes), **columns, **numbers, "latency_buckets": maps})
            )

    before = pa.total_allocated_bytes()
    grain = Grain.of_rollup(BASE, batches())
    assert (grain.rows.height, grain.keys.height) == (100_000, 500)
    assert grain.cells.schema == CELLS_SCHEMA
    assert pa.total_allocated_bytes() - before < 1_000_000
