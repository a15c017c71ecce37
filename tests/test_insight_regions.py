"""A region against the others, and p values corrected over a family of tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.insight import regions
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Confidence, Effect, Finding, Kind, Place
from analytics.insight.grains import COUNTS
from analytics.insight.scene import Scene
from collector.config import InsightConfig
from tests.reference.grains import grain_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, BEGIN = 40, 30
SHARES = {"good": 0.01, "bad": 0.10}
KEYS = ["region", "tenant", "service_name", "component", "operation", "kind"]


def scene(north: float = 1.0, south: float = 1.0, longer: int = 0) -> Scene:
    """Two tenants: `bad` fails ten times as often, and nearly all of its traffic is in the north.

    From BEGIN on errors of a region multiply by `north` or `south`; spans in the north fall `longer` cells higher.
    """
    rng = np.random.default_rng(2)
    rows, cells = [], []
    for minute in range(MINUTES):
        time = (NOON + timedelta(minutes=minute)).replace(tzinfo=None)
        for region, factor in (("north", north), ("south", south)):
            for tenant, share in SHARES.items():
                count = 900 if (region == "north") == (tenant == "bad") else 100
                key = (region, tenant, "cache", "cache", "get", "server")
                errors = int(rng.binomial(count, share * (factor if minute >= BEGIN else 1.0)))
                rows.append((time, *key, count, errors, 0, 0, count * 1000, 0))
                shift = longer if region == "north" and minute >= BEGIN else 0
                spread = np.bincount(rng.binomial(10, 0.3, count), minlength=11)
                cells += [(time, *key, 80 + shift + i, int(n)) for i, n in enumerate(spread) if n]
    frames = [
        pl.DataFrame(data, schema=["minute", *KEYS, *names], orient="row").with_columns(
            pl.col("minute").cast(pl.Datetime("us"))
        )
        for data, names in ((rows, COUNTS), (cells, ("cell", "spans")))
    ]
    evidence = replace(Evidence.empty(), base=grain_of(tuple(KEYS), frames[0], frames[1]))
    return Scene(evidence, NOON + timedelta(minutes=MINUTES), InsightConfig())


def finding(kind: Kind = "region_errors", p: float | None = 0.01, **more: Any) -> Finding:
    place = more.pop("place", Place("north"))
    return Finding(
        kind, place, "warning", 1.0, NOON + timedelta(minutes=BEGIN), NOON + timedelta(minutes=MINUTES),
        Effect("error_rate", 2.0, 1.0, 2.0), Confidence(str(more.pop("test", "t")), p, p, 10), "s", **more,
    )  # fmt: skip


def test_who_is_there_does_not_pass_for_how_well_it_goes() -> None:
    """The north fails far more often for its tenant alone; in the strata it is as the south."""
    found = regions.against_others(scene(), finding())
    assert found is not None
    assert found.low < 1 < found.high
    assert found.p > 0.01


def test_a_region_that_fails_more_often_is_told_against_the_others() -> None:
    found = regions.against_others(scene(north=3.0), finding())
    assert found is not None
    assert found.low > 2
    assert found.p < 1e-9
    (told,) = regions.with_others(scene(north=3.0), [finding(baselines=("before",))])
    assert told.baselines[0] == "before"
    assert "times their odds of an error" in told.baselines[1]


def test_what_goes_wrong_everywhere_is_not_the_regions() -> None:
    found = regions.against_others(scene(north=3.0, south=3.0), finding())
    assert found is not None
    assert found.low < 1.1


@pytest.mark.parametrize(("longer", "is_slower"), [(0, False), (3, True)])
def test_latency_is_compared_by_a_quantile_of_the_same_operation(longer: int, is_slower: bool) -> None:
    found = regions.against_others(scene(longer=longer), finding("region_slow"))
    assert found is not None
    assert (found.low > 2) == is_slower
    assert (found.p < 1e-6) == is_slower


def test_what_has_no_other_region_is_left_as_it_is() -> None:
    known = scene()
    others = [
        finding(place=Place("mars")), finding(tenant_scope="bad"), finding("deploy"),
        finding(place=Place("north", "nothing")), finding(place=Place(None)),
    ]  # fmt: skip
    assert regions.with_others(known, others) == others


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_a_family_only_makes_less_sure_and_tests_of_other_kinds_are_other_families(values: list[float | None]) -> None:
    found = [finding(p=p) for p in values]
    told = regions.family(found)
    for one, other in zip(found, told, strict=True):
        if one.confidence.p is None:
            assert other == one
        else:
            assert one.confidence.p <= (other.confidence.p_corrected or 0.0) <= 1
    apart = [finding(p=p, test=f"test {number}, now") for number, p in enumerate(values)]
    assert regions.family(apart) == apart


def test_a_family_is_corrected_by_rank() -> None:
    told = regions.family([finding(p=p, test="Mann-Whitney, now") for p in (0.01, 0.02, 0.2)])
    assert [one.confidence.p_corrected for one in told] == pytest.approx([0.03, 0.03, 0.2])
