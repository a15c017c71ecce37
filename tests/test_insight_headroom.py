"""Headroom: the knee of a queue is found, and nothing is said where the data cannot say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.buckets import LOG_GAMMA
from analytics.insight import headroom
from analytics.insight.evidence import Evidence
from analytics.insight.grains import BUCKETS_PER_CELL, COUNTS
from analytics.insight.scene import Scene
from collector.config import InsightConfig
from tests.reference.grains import grain_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES = 100


def queue(utilisation: float, noise: float = 0.03, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rates up to 100 and latencies of a queue that is so busy at 100; its base is 2."""
    rng = np.random.default_rng(seed)
    rate = np.append(rng.uniform(30, 99, MINUTES - 1), 100.0)
    capacity = 100 / utilisation
    return rate, (2 + 3 * rate / (capacity - rate)) * np.exp(rng.normal(0, noise, MINUTES))


@pytest.mark.parametrize("utilisation", [0.7, 0.85])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_load_at_which_a_queue_is_twice_as_slow_is_found(utilisation: float, seed: int) -> None:
    found = headroom.headroom(*queue(utilisation, seed=seed))
    assert found is not None
    at_peak = 2 + 3 * utilisation / (1 - utilisation)
    over = (2 * at_peak - 2) / 3
    expected = over / (1 + over) / utilisation
    assert found.times == pytest.approx(expected, rel=0.05)
    assert found.low <= found.times <= found.high
    assert found.limit_ns == pytest.approx(2 * at_peak, rel=0.08)


@given(st.integers(0, 10_000))
def test_latency_that_does_not_go_with_load_says_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert headroom.headroom(rng.uniform(30, 100, MINUTES), np.exp(rng.normal(1, 0.2, MINUTES))) is None


def test_load_that_does_not_vary_or_few_minutes_say_nothing() -> None:
    rate, latency = queue(0.85)
    steady = 95 + rate / 20
    assert headroom.headroom(steady, latency) is None
    assert headroom.headroom(rate[:30], latency[:30]) is None
    assert headroom.headroom(rate, latency[::-1].copy()) is None
    assert headroom.headroom(rate, 1 / latency) is None


def test_latency_that_grows_in_a_line_has_no_knee() -> None:
    rng = np.random.default_rng(1)
    rate = rng.uniform(30, 100, MINUTES)
    assert headroom.headroom(rate, (2 + 0.03 * rate) * np.exp(rng.normal(0, 0.03, MINUTES))) is None


def scene(utilisation: float) -> Scene:
    rate, latency = queue(utilisation)
    names = ["region", "tenant", "service_name", "component", "operation", "kind"]
    key = ("north", "a", "cache", "cache", "get", "server")
    rng = np.random.default_rng(5)
    rows, cells = [], []
    for minute in range(MINUTES):
        time = (NOON + timedelta(minutes=minute)).replace(tzinfo=None)
        count = int(rate[minute] * 60)
        took = np.log(latency[minute] * 1e6 * np.exp(rng.normal(0, 0.4, count))) / LOG_GAMMA / BUCKETS_PER_CELL
        rows.append((time, *key, count, 0, 0, 0, count, 0))
        number, spans = np.unique(took.astype(int), return_counts=True)
        cells += [(time, *key, int(cell), int(n)) for cell, n in zip(number, spans, strict=True)]
    counts, spread = (
        pl.DataFrame(data, schema=["minute", *names, *more], orient="row").with_columns(
            pl.col("minute").cast(pl.Datetime("us"))
        )
        for data, more in ((rows, COUNTS), (cells, ("cell", "spans")))
    )
    evidence = replace(Evidence.empty(), base=grain_of(tuple(names), counts, spread))
    return Scene(evidence, NOON + timedelta(minutes=MINUTES), InsightConfig())


def test_a_service_near_its_knee_is_information() -> None:
    (found,) = headroom.find(scene(0.85))
    assert (found.kind, found.severity, found.region, found.service) == ("headroom", "info", "north", "cache")
    assert 1.0 < found.effect.ratio < 1.2
    assert "times the busiest minute" in found.sentence


def test_a_service_far_from_its_knee_is_none() -> None:
    assert headroom.find(scene(0.2)) == []
