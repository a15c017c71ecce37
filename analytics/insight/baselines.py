"""What was to be expected, and how far the last minutes are from it.

Expected counts come from each series' own baseline, drawn towards that of its stratum where it is thin (an empirical
Bayes shrinkage with PRIOR_TRIALS). How much such residuals spread from minute to minute is measured, not assumed: their
scale is the larger of 1 (what independent events give), 1.4826 x MAD, and the 95th percentile over that of the normal
distribution, so that series which burst by nature need a larger deviation (quasi-likelihood, McCullagh and Nelder
1989). The last 2, 3, 5, ... minutes are summed up, and the least probable sum counts (a scan statistic): large
effects are seen early, small ones later. A sum counts only where most of its minutes are high by themselves. Its
probability is that of counts, not of a normal distribution: of few events, six standard deviations are not rare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

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
_P_UNCLEAN = 1e-6
"""Of as many events in a minute of the baseline: one that has fewer chances is an incident."""
_INCIDENTS_SHARE = 0.3
"""Of the baseline, as much as incidents may take up without making its usual rate look higher."""
P_TOLD_MAX = 1e-7
"""Largest p of what stands out. On a platform of 48 tenants some 10,000 sums are looked at each minute (places,
measures, stretches, most of them of the same events): 14 million a day, of which that is one or two by chance; and what
is told must be worth it, be high in most of its minutes, and stand out a minute later, too."""
_Z_TESTED = 2.0
"""Of a sum; what stands out less has the probability of a normal distribution, which is nearly right there."""
_Z_OF_NO_P = 40.0
"""More than any probability that a float holds."""
_EVENTS_MANY = 10.0
"""Of a baseline; so many tell by themselves whether events come together."""
_PRIOR_EVENTS = 5.0
"""As many as the common dispersion counts for."""
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

    A value a series. `z`: its sum in standard deviations; `p`: its one-sided probability by the counts of baseline and
    stretch, which is larger where events are few; `observed`, `expected`, `trials`: sums over it; `since`: when it
    began (see `onset`); `scale`, `dispersion`: of the deviations and counts of its baseline. `residuals`: deviations, a
    row a series, a column a minute.
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
    dispersion: Floats

    @property
    def ratio(self) -> Floats:
        """Observed over expected, both with half an event added."""
        found: Floats = (self.observed + 0.5) / (self.expected + 0.5)
        return found


def clean_minutes(observed: Floats, trials: Floats, span: Span) -> Floats:
    """1 for baseline minutes that a stratum's rate looks as usual in, else 0: past incidents are no baseline.

    What is left out has a rate beyond five scales (1.4826 x MAD) of the median, and so many events that a Poisson
    distribution hardly ever has them: where events are rare, a minute with any is as usual as one without.
    """
    clean = np.zeros_like(observed)
    early, tried = (array[:, : span.baseline].astype(float) for array in (observed, trials))
    if early.shape[1] == 0:
        return clean
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = np.where(tried > 0, early / tried, np.nan)
    middle = _nan_median(rate)
    limit = middle + 5 * 1.4826 * _nan_median(np.abs(rate - middle))
    usual = np.maximum(middle, _calm_rate(early, tried, rate))
    improbable = poisson_sf(early, usual * tried) < _P_UNCLEAN
    clean[:, : span.baseline] = (tried > 0) & ~((rate > limit) & improbable)
    return clean


def _calm_rate(events: Floats, tried: Floats, rate: Floats) -> Floats:
    """The rate of each row without the minutes of its highest rates, with an event added (a column)."""
    order = np.argsort(np.where(np.isnan(rate), -np.inf, rate), axis=1)
    calm = order[:, : int(np.ceil((1 - _INCIDENTS_SHARE) * rate.shape[1]))]
    seen, of = (np.take_along_axis(array, calm, axis=1).sum(1, keepdims=True) for array in (events, tried))
    found: Floats = (seen + 1) / np.maximum(of, 1.0)
    return found


def poisson_sf(observed: Floats, expected: Floats) -> Floats:
    """The probability of at least as many events; of parts of events by the incomplete gamma function."""
    found: Floats = np.where(observed > 0, special.gammainc(np.maximum(observed, 1e-9), expected), 1.0)
    return found


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
    lengths = [k for k in scales if k <= span.recent]
    found = [_stretch(excess, measure.variance, residuals, raised, k) / scale for k in lengths]
    if not lengths:
        lengths, found = [0], [np.full(len(excess), -np.inf)]
    spread = dispersion(excess, measure.variance, scale, span)
    z = np.stack(found)
    p = np.stack([_p(measure, span, k, one, spread, sign) for k, one in zip(lengths, found, strict=True)])
    # Where p is too small for a float, the sum in standard deviations tells more.
    best = np.where(p > 0, stats.norm.isf(p), _Z_OF_NO_P + z).argmax(axis=0)[None, :]
    length = np.array(lengths, dtype=np.intp)[best[0]]
    last = np.arange(span.count)[None, :] >= span.count - length[:, None]
    observed, expected, trials = (
        np.where(last, array, 0.0).sum(1) for array in (measure.observed, measure.expected, measure.trials)
    )
    best_z, best_p = (np.take_along_axis(array, best, axis=0)[0] for array in (z, p))
    since = onset(excess, np.maximum(measure.variance, 0.25))
    return Scan(best_z, best_p, length, since, observed, expected, trials, scale, residuals, spread)


def dispersion(excess: Floats, variance: Floats, scale: Floats, span: Span) -> Floats:
    """How many times the variance of independent events the counts of each row have: events that come together, as
    the errors of all spans of a call, are worth that much less.

    The larger of the square of `scale` and Pearson's estimate of the baseline (McCullagh and Nelder 1989), no minute
    in it further away than five scales or events, drawn towards the median of rows with enough events.
    """
    early, of = excess[:, : span.baseline], variance[:, : span.baseline]
    furthest = 5 * np.maximum(scale[:, None] * np.sqrt(of), 1.0)
    squares, events = (np.minimum(np.abs(early), furthest) ** 2).sum(1), of.sum(1)
    many = events >= _EVENTS_MANY
    common = max(1.0, float(np.median(squares[many] / events[many]))) if many.any() else 1.0
    found: Floats = np.maximum(scale**2, (squares + _PRIOR_EVENTS * common) / (events + _PRIOR_EVENTS))
    return found


def _p(measure: Measure | Rated, span: Span, k: int, z: Floats, spread: Floats, sign: int) -> Floats:
    """The probability of so many events (few, for `sign` -1) in the last k minutes, given those of the baseline.

    Of two Poisson counts, given their sum, each is binomial (Przyborowski and Wilenski 1940), here of effective
    numbers: counts over `spread`, parts of events by the incomplete beta function. Sums that do not stand out (z) have
    a normal probability.
    """
    p: Floats = stats.norm.sf(z)
    which = np.flatnonzero(z >= _Z_TESTED)
    observed, expected, variance, _ = (array[which].astype(float) for array in measure.arrays())
    now = expected[:, -k:].sum(1)
    usual = expected[:, : span.baseline].sum(1)
    each = np.maximum(spread[which] * variance[:, -k:].sum(1), 1e-9) / np.maximum(now, 1e-9)
    seen, before, share = observed[:, -k:].sum(1) / each, usual / each, now / np.maximum(now + usual, 1e-9)
    if sign > 0:
        p[which] = np.where(seen > 0, special.betainc(np.maximum(seen, 1e-9), before + 1, share), 1.0)
    else:
        p[which] = special.betainc(np.maximum(before, 1e-9), seen + 1, 1 - share)
    return p


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
