"""What was to be expected, and how far the last minutes are from it.

Expected counts come from each series' own baseline, drawn towards that of its stratum where it is thin (an empirical
Bayes shrinkage with PRIOR_TRIALS). How much such residuals spread from minute to minute is measured, not assumed: their
scale is the larger of 1 (what independent events give), 1.4826 x MAD, and the 95th percentile over that of the normal
distribution, so that series which burst by nature need a larger deviation (quasi-likelihood, McCullagh and Nelder
1989). The last 2, 3, 5, ... minutes are summed up, and the sum that stands out most counts (a scan statistic): large
effects are seen early, small ones later. A sum counts only where most of its minutes are high by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analytics.insight.measures import Bools, Floats, Ints, Measure, Rated, Span, summed
from analytics.insight.tallies import Tallied, Tally

PRIOR_TRIALS = 200.0
SCALES = (2, 3, 5, 8, 12)
RAISED = 1.5
CONSISTENT = 0.6
GOES_ON = 0.4
"""Least mean of the last two minutes, of the stretch's: what is over is not told as if it went on."""
_NORMAL_95 = 1.645
_BASELINE_MIN = 8
_NEARLY = 0.999
"""Of a bound: sums of the same are equal but for rounding."""


@dataclass(frozen=True)
class Least:
    """What stands out: so many trials, at least such a ratio to what is expected, so many standard deviations and
    events from it."""

    trials: float
    ratio: float
    deviation: float
    events: float = 10.0


@dataclass(frozen=True)
class Scan:
    """For each series the most striking stretch of `length` minutes up to the end; 0 minutes where none is.

    `z`: its sum in standard deviations; `p`: that as a one-sided probability; `observed`, `expected`, `trials`: sums
    over it; `since`: when it began (see `onset`).
    """

    z: Floats
    p: Floats
    length: Ints
    since: Ints
    observed: Floats
    expected: Floats
    trials: Floats
    scale: Floats
    residuals: Floats

    @property
    def ratio(self) -> Floats:
        """Observed over expected, both with half an event added."""
        found: Floats = (self.observed + 0.5) / (self.expected + 0.5)
        return found


def clean_minutes(observed: Floats, trials: Floats, span: Span) -> Floats:
    """1 for baseline minutes that a stratum's rate looks as usual in, else 0: past incidents are no baseline."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(trials > 0, observed / trials, np.nan)[:, : span.baseline]
    if rate.shape[1] == 0:
        return np.zeros_like(observed)
    middle = _nan_median(rate)
    noise = np.sqrt(np.maximum(middle, 1e-4) / np.maximum(_nan_median(trials[:, : span.baseline]), 1))
    limit = middle + 5 * np.maximum(1.4826 * _nan_median(np.abs(rate - middle)), noise)
    clean = np.zeros_like(observed)
    clean[:, : span.baseline] = np.where(np.isnan(rate), 0.0, rate <= limit)
    return clean


def rates(observed: Floats, trials: Floats, strata: Ints, count: int, span: Span) -> Rated:
    """Expect of every series the rate of its baseline, drawn towards its stratum's."""
    of_strata = summed(observed, strata, count), summed(trials, strata, count)
    stratum_rate, out = _of_strata(*of_strata, span)
    events, tried = (_of_baseline(array, out, strata, span) for array in (observed, trials))
    return Rated(observed, trials, _drawn(events, tried, stratum_rate[strata]))


def tallied_rates(observed: Tally, trials: Tally, by: tuple[str, ...], span: Span) -> Tallied:
    """As `rates`, of tallies; strata are groups of `by`."""
    stratum_rate, out = _of_strata(observed.by_names(by), trials.by_names(by), span)
    strata = observed.source.groups(by)[1]
    events, tried = (one.total(span.baseline, out, strata) for one in (observed, trials))
    return Tallied(observed, trials, _drawn(events, tried, stratum_rate[strata]))


def _of_strata(observed: Floats, trials: Floats, span: Span) -> tuple[Floats, Bools]:
    """The rate of each stratum, and what of its baseline is left out."""
    clean = clean_minutes(observed, trials, span)
    rate = (observed * clean).sum(1) / np.maximum((trials * clean).sum(1), 1.0)
    # Where nothing is, nothing needs to be left out.
    return rate, ((clean == 0) & (trials > 0))[:, : span.baseline]


def _drawn(events: Floats, tried: Floats, towards: Floats) -> Floats:
    rate = (events + PRIOR_TRIALS * towards) / (tried + PRIOR_TRIALS)
    found: Floats = np.clip(rate, 1e-5, 1 - 1e-5)[:, None].astype(np.float32)
    return found


def _of_baseline(array: Floats, out: Bools, strata: Ints, span: Span) -> Floats:
    """Sums of each series over the baseline, without the minutes that its stratum leaves `out`; few have such."""
    early = array[:, : span.baseline]
    found: Floats = early @ np.ones(span.baseline, dtype=array.dtype)
    for stratum in np.flatnonzero(out.any(1)):
        mine = strata == stratum
        found[mine] = early[mine] @ (~out[stratum]).astype(array.dtype)
    return found.astype(float)


def may_stand_out(measure: Measure | Rated, sign: int, least: Least, scales: tuple[int, ...] = SCALES) -> Bools:
    """Which series `scan` may find to stand out by more than `least`, by their last minutes alone.

    It finds none of the others to, whatever their baseline is: deviations are never measured by a scale below 1.
    """
    late = max(scales)
    of_scale = (np.arange(late)[:, None] >= late - np.array(scales)).astype(float)
    observed, expected, variance, trials = (
        array[:, -late:].astype(float) @ of_scale[-array.shape[1] :] for array in measure.arrays()
    )
    excess = sign * (observed - expected)
    ratio = (observed + 0.5) / (expected + 0.5)
    striking = (
        (trials >= least.trials)
        & (excess >= least.deviation * np.sqrt(np.maximum(variance, 0.25)) * _NEARLY)
        & ((ratio if sign > 0 else 1 / ratio) >= least.ratio * _NEARLY)
        & (excess >= least.events * _NEARLY)
    )
    found: Bools = np.asarray(striking.any(axis=1))
    return found


def scan(measure: Measure | Rated, span: Span, sign: int = 1, scales: tuple[int, ...] = SCALES) -> Scan:
    """Look for too many events (`sign` 1) or too few (-1) in the last minutes of each series."""
    excess = sign * (measure.observed - measure.expected)
    residuals = excess / np.sqrt(np.maximum(measure.variance, 0.25))
    scale = _scale(residuals, measure.trials, span)
    raised = residuals > RAISED * scale[:, None]
    found = [_stretch(excess, measure.variance, residuals, raised, k) / scale for k in scales if k <= span.recent]
    if not found:
        found = [np.full(len(excess), -np.inf)]
    z = np.stack(found)
    best = z.argmax(axis=0)
    length = np.array([k for k in scales if k <= span.recent] or [0], dtype=np.intp)[best]
    last = np.arange(span.count)[None, :] >= span.count - length[:, None]
    observed, expected, trials = (
        np.where(last, array, 0.0).sum(1) for array in (measure.observed, measure.expected, measure.trials)
    )
    best_z = z.max(axis=0)
    since = onset(excess, np.maximum(measure.variance, 0.25))
    return Scan(best_z, stats.norm.sf(best_z), length, since, observed, expected, trials, scale, residuals)


def onset(excess: Floats, variance: Floats) -> Ints:
    """The minute from which on the excess is most striking: of all ends of the series, that of the largest sum in
    standard deviations (the maximum likelihood estimate of when a step began)."""
    total, spread = (np.cumsum(array[:, ::-1], axis=1) for array in (excess, variance))
    striking = total / np.sqrt(np.maximum(spread, 0.25))
    found: Ints = excess.shape[1] - 1 - striking.argmax(axis=1)
    return found


def _stretch(excess: Floats, variance: Floats, residuals: Floats, raised: Bools, k: int) -> Floats:
    """The sum of the last k minutes in standard deviations, -inf where they are no stretch that goes on."""
    total = excess[:, -k:].sum(1) / np.sqrt(np.maximum(variance[:, -k:].sum(1), 0.25))
    consistent = raised[:, -k:].mean(1) >= CONSISTENT
    goes_on = residuals[:, -2:].mean(1) >= GOES_ON * residuals[:, -k:].mean(1)
    found: Floats = np.where(consistent & goes_on & (residuals[:, -1] > 0), total, -np.inf)
    return found


def _scale(residuals: Floats, trials: Floats, span: Span) -> Floats:
    usual = np.where(trials > 0, residuals, np.nan)[:, : span.baseline]
    if usual.shape[1] < _BASELINE_MIN:
        return np.full(len(residuals), np.inf)
    middle = _nan_median(usual)
    mad = 1.4826 * _nan_median(np.abs(usual - middle))[:, 0]
    ordered = np.sort(np.where(np.isnan(usual), -np.inf, usual), axis=1)
    high = ordered[:, int(0.95 * (ordered.shape[1] - 1))] / _NORMAL_95
    scale: Floats = np.maximum(1.0, np.fmax(np.nan_to_num(mad), np.where(np.isfinite(high), high, 0.0)))
    return scale


def _nan_median(values: Floats) -> Floats:
    """Medians of rows, of what is not NaN; 0 where nothing is."""
    ordered = np.sort(values, axis=1)
    known = np.isfinite(ordered).sum(1)
    middle = np.maximum(known - 1, 0) // 2
    found: Floats = np.where(known > 0, ordered[np.arange(len(values)), middle], 0.0)[:, None]
    return found
