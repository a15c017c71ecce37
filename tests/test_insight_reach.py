"""Who is hurt: shares of tenants, traffic and operations, and many small troubles at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.insight import blast, reach
from analytics.insight.engine import findings
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Confidence, Effect, Finding, Place
from analytics.insight.grains import COUNTS
from analytics.insight.scene import Scene
from collector.config import InsightConfig
from tests.reference.grains import grain_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, BEGIN = 70, 64
END = NOON + timedelta(minutes=MINUTES)


def evidence(hurt: dict[tuple[str, str], float], tenants: int = 40, seed: int = 1) -> Evidence:
    """Errors of tenants t0 (by far the largest), t1, ... and operations get and set in a region.

    `hurt`: by how much the share of errors of a tenant and operation multiplies from BEGIN on.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for minute in range(MINUTES):
        time = (NOON + timedelta(minutes=minute)).replace(tzinfo=None)
        for number in range(tenants):
            for operation in ("get", "set"):
                count = 60_000 if number == 0 else 120
                factor = hurt.get((f"t{number}", operation), 1.0) if minute >= BEGIN else 1.0
                errors = int(rng.binomial(count, 0.02 * factor))
                keys = ("north", f"t{number}", "cache", "cache", operation, "server")
                rows.append((time, *keys, count, errors, 0, 0, count * 1000, 0))
    names = ["minute", "region", "tenant", "service_name", "component", "operation", "kind", *COUNTS]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(pl.col("minute").cast(pl.Datetime("us")))
    return replace(Evidence.empty(), base=grain_of(tuple(names[1:7]), frame))


def errors_found(known: Evidence) -> Finding:
    scene = Scene(known, END, InsightConfig())
    found = Finding(
        "errors", Place("north", "cache"), "warning", 1.0, NOON + timedelta(minutes=BEGIN), END,
        Effect("error_rate", 0.1, 0.02, 5.0), Confidence("t", 0.0, 0.0, 10), "s",
    )  # fmt: skip
    return reach.with_reach(scene, found)


def test_reach_counts_tenants_traffic_and_operations() -> None:
    hurt = {("t1", "get"): 6.0, ("t1", "set"): 6.0, ("t2", "get"): 6.0}
    who = errors_found(evidence(hurt, tenants=10)).who
    assert who is not None
    assert (who.tenants.hurt, who.tenants.active, who.tenants.share) == (2, 10, 0.2)
    assert who.tenants.share_low < 0.2 < who.tenants.share_high
    assert who.spans.share == pytest.approx(2 * 240 / (120_000 + 9 * 240))
    assert {tenant: (share.hurt, share.active) for tenant, share in who.operations} == {"t1": (2, 2), "t2": (1, 2)}
    assert who.operations[0][0] == "t1"
    assert 1 < who.effective_tenants <= 2


def test_nobody_is_hurt_by_nothing() -> None:
    who = errors_found(evidence({}, tenants=30)).who
    assert who is not None
    assert (who.tenants.hurt, who.spans.share, who.operations, who.effective_tenants) == (0, 0.0, (), 0.0)


@pytest.mark.parametrize("place", [Place("mars"), Place("north", destination="items")])
def test_what_is_not_known_of_a_place_is_left_out(place: Place) -> None:
    scene = Scene(evidence({}, tenants=3), END, InsightConfig())
    known = errors_found(evidence({}, tenants=3))
    assert reach.with_reach(scene, replace(known, place=place, who=None)).who is None
    clock = replace(known, kind="clock_skew", effect=replace(known.effect, measure="offset_ns"), who=None)
    assert reach.with_reach(scene, clock).who is None


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_share_lies_within_its_interval(part: int, whole: int) -> None:
    share = reach.share_of(min(part, whole), whole)
    assert 0 <= share.share_low <= share.share + 1e-12
    assert share.share - 1e-12 <= share.share_high <= 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_radius_where_nobody_is_hurt(seed: int) -> None:
    assert blast.find(Scene(evidence({}, seed=seed), END, InsightConfig())) == []


def test_many_small_troubles_that_drown_in_the_traffic_are_told_at_once() -> None:
    hurt = {(f"t{number}", operation): 1.9 for number in range(10, 40) for operation in ("get", "set")}
    known = evidence(hurt)
    (found,) = findings(known, END, timedelta(hours=1))
    assert (found.kind, found.region) == ("blast_radius", "north")
    assert found.effect.value > 0.4
    assert "t0" not in found.tenants
    assert found.who is not None
    assert found.who.tenants.hurt >= 8
    assert found.who.spans.share < 0.1


def test_a_few_tenants_are_no_radius_and_large_troubles_have_another_name() -> None:
    few = {(f"t{number}", "get"): 1.9 for number in range(10, 14)}
    assert blast.find(Scene(evidence(few), END, InsightConfig())) == []
    many = {(f"t{number}", operation): 8.0 for number in range(40) for operation in ("get", "set")}
    kinds = [one.kind for one in findings(evidence(many), END, timedelta(hours=1))]
    assert kinds
    assert "blast_radius" not in kinds


@given(st.lists(st.floats(0, 0.2), min_size=4, max_size=20), st.integers(0, 40))
def test_a_share_that_was_there_before_does_not_stand_out(usual: list[float], count: int) -> None:
    shares = np.array([*usual, count / 40])
    if blast.stands_out(shares, count, 40):
        assert count / 40 > max(usual)
    assert not blast.stands_out(np.array([*usual, 0.9, 0.9]), 36, 40)
