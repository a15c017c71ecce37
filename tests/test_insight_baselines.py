"""What is usual, and how improbable the last minutes are: p values against draws of which nothing is wrong."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analytics.insight.baselines import SCALES, clean_minutes, dispersion, rates, scan
from analytics.insight.measures import Measure, Span

SPAN = Span.until(datetime(2026, 3, 1, 12), 75, 15)
ROWS = 20_000


def drawn(expected: float, together: int = 1, seed: int = 1, rows: int = ROWS) -> Measure:
    """Counts of so many events expected a minute, `together` at a time; all of it known."""
    rng = np.random.default_rng(seed)
    observed = together * rng.poisson(expected / together, (rows, SPAN.count)).astype(float)
    usual = np.full_like(observed, expected)
    return Measure(observed, usual, usual, 1000 * np.ones_like(observed))


@pytest.mark.parametrize("expected", [0.2, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("together", [1, 3])
def test_quiet_counts_are_as_rarely_improbable_as_their_p_says(expected: float, together: int) -> None:
    """However few they are, and if they come three at a time; a normal p says 1e-6 ten times too often."""
    for minutes in (2, 5):
        p = scan(drawn(expected, together), SPAN, scales=(minutes,)).p
        for limit in (1e-2, 1e-3, 1e-4):
            assert (p <= limit).sum() <= 1.3 * limit * ROWS + 4 * np.sqrt(limit * ROWS)


def test_few_events_are_less_improbable_than_their_deviations_look() -> None:
    """Three events a minute instead of 0.3: 9 standard deviations of a normal distribution, but p of counts."""
    observed = np.random.default_rng(1).poisson(0.3, (1, SPAN.count)).astype(float)
    observed[0, -3:] = 3.0
    usual = np.full_like(observed, 0.3)
    found = scan(Measure(observed, usual, usual, 1000 * usual), SPAN, scales=(3,))
    assert found.p[0] > stats.norm.sf(found.z[0]) * 100
    assert stats.poisson.sf(8, 0.9) < found.p[0] < 1e-3


@given(st.integers(1, 40), st.floats(0.5, 10.0))
def test_p_is_that_of_a_binomial_test_of_now_against_the_baseline(more: int, each: float) -> None:
    """Whole events, as many in the baseline as expected, and no more spread than they have."""
    observed = np.full((1, SPAN.count), each)
    observed[0, -2:] += more
    usual = np.full_like(observed, each)
    found = scan(Measure(observed, usual, usual, 1000 * usual), SPAN, scales=(2,))
    if not np.isfinite(found.z[0]) or found.z[0] < 2:
        return
    now, before = observed[0, -2:].sum(), each * SPAN.baseline
    # Between those of the whole numbers on both sides.
    low, high = (
        stats.binom.sf(np.floor(now) + up - 1, np.floor(now) + up + np.floor(before) + 1 - up, 2 / (2 + SPAN.baseline))
        for up in (1, 0)
    )
    assert low * 0.5 <= found.p[0] <= high * 2


@given(st.integers(0, 2**32))
def test_more_events_are_more_improbable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    measure = drawn(2.0, seed=seed, rows=50)
    observed = measure.observed.copy()
    observed[:, -2:] += 10 + rng.integers(0, 10, (50, 2))
    more = observed.copy()
    more[:, -2:] += 1
    usual = measure.expected
    p = [scan(Measure(one, usual, usual, 1000 * usual), SPAN, scales=(2,)).p for one in (observed, more)]
    assert (p[1] <= p[0]).all()


def test_too_few_events_are_judged_by_their_counts_as_well() -> None:
    measure = drawn(20.0)
    measure.observed[:, -3:] = 0.0
    found = scan(measure, SPAN, sign=-1)
    assert np.median(found.p) < 1e-15
    quiet = scan(drawn(20.0), SPAN, sign=-1)
    assert (quiet.p <= 1e-4).sum() <= len(SCALES) * 1e-4 * ROWS + 4 * np.sqrt(1e-4 * ROWS)


@pytest.mark.parametrize("together", [1, 2, 6])
def test_dispersion_is_how_many_events_come_together(together: int) -> None:
    measure = drawn(12.0, together)
    found = dispersion(measure.observed - measure.expected, measure.variance, np.ones(ROWS), SPAN)
    assert np.median(found) == pytest.approx(together, rel=0.25)


def test_dispersion_is_not_that_of_a_past_incident() -> None:
    measure = drawn(3.0)
    measure.observed[:, 30:32] = 300.0
    found = dispersion(measure.observed - measure.expected, measure.variance, np.ones(ROWS), SPAN)
    assert np.median(found) < 2.5


@pytest.mark.parametrize("expected", [0.05, 0.3, 1.0, 20.0])
def test_rare_events_of_a_stratum_are_a_part_of_what_is_usual(expected: float) -> None:
    """A minute with an event is as usual as one without: their rate is that of all minutes."""
    rng = np.random.default_rng(3)
    trials = np.full((200, SPAN.count), 50.0)
    observed = rng.poisson(expected, trials.shape).astype(float)
    of_each = np.arange(200)
    found = rates(observed, trials, of_each, 200, SPAN).expected[:, -1].mean()
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("minutes", [3, 10, 15])
def test_a_past_incident_is_no_part_of_what_is_usual(minutes: int) -> None:
    rng = np.random.default_rng(4)
    trials = np.full((50, SPAN.count), 1000.0)
    observed = rng.binomial(1000, 0.01, trials.shape).astype(float)
    observed[:, 20 : 20 + minutes] = rng.binomial(1000, 0.10, (50, minutes))
    clean = clean_minutes(observed, trials, SPAN)
    assert not clean[:, 20 : 20 + minutes].any()
    assert clean[:, : SPAN.baseline].sum(1).mean() > 0.98 * (SPAN.baseline - minutes)
    assert not clean[:, SPAN.baseline :].any()
