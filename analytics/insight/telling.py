"""From a place and a stretch of minutes to a finding: effect with interval, exact test, who is hurt, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.proportion import proportion_confint

from analytics.change import duration
from analytics.insight.finding import Confidence, Effect, Finding, Place, Severity
from analytics.insight.locating import effective_number
from analytics.insight.measures import MINUTE, Bools, Floats, Measure, Rated
from analytics.insight.panel import Panel, cell_values_ns, quantile_ns
from analytics.insight.scene import STRATA, Scene

_SAMPLE_MAX = 3000
_HURT_DEVIATION = 3.0
_HURT_RATIO = 1.3


@dataclass(frozen=True)
class Impact:
    """Tenants hurt (most first) of those active there, with the Wilson interval of their share; `effective`: over how
    many the excess spreads."""

    tenants: tuple[str, ...]
    active: int
    low: float
    high: float
    effective: float

    @property
    def share(self) -> float:
        """Share of active tenants that are hurt."""
        return len(self.tenants) / self.active if self.active else 0.0

    def words(self) -> str:
        """`38 of 40 tenants`."""
        return f"{len(self.tenants)} of {self.active} tenants"


def impact(scene: Scene, panel: Panel, measure: Measure | Rated, which: Bools, since: int) -> Impact:
    """Who is hurt among the series `which` from minute `since` on: excess against the tenant's own baseline."""
    sub = panel.keys.filter(pl.Series(which))
    if "tenant" not in sub.columns or sub.is_empty():
        return Impact((), 0, 0.0, 0.0, 0.0)
    names = sub.select("tenant").unique().sort("tenant").with_row_index("group")
    of = sub.join(names, on="tenant", maintain_order="left")["group"].to_numpy().astype(np.intp)
    stretch = measure.rows(which).by(of, names.height)
    observed, expected, variance, trials = (array[:, since:].sum(1) for array in stretch.arrays())
    excess = observed - expected
    hurt = (excess > _HURT_DEVIATION * np.sqrt(np.maximum(variance, 0.25))) & (observed > _HURT_RATIO * expected)
    active = int((trials >= 5).sum())
    order = np.argsort(-excess)
    tenants = tuple(names["tenant"][int(i)] for i in order if hurt[i])
    low, high = proportion_confint(min(len(tenants), active), max(active, 1), method="wilson")
    return Impact(tenants, max(active, len(tenants)), float(low), float(high), effective_number(excess))


def latency_effect(panel: Panel, which: Bools, since: int, what: str = "slow") -> Effect:
    """p95 (p99 of what is 'very_slow') of some series now and in the baseline; the interval is that of now's order
    statistics."""
    q, name = (0.99, "p99_ns") if what == "very_slow" else (0.95, "p95_ns")
    now, before = panel.spread(which, slice(since, None)), panel.spread(which, slice(0, panel.span.baseline))
    value, base = quantile_ns(now, q) or 0.0, quantile_ns(before, q) or 0.0
    n = max(float(now.sum()), 1.0)
    width = 1.96 * float(np.sqrt(q * (1 - q) / n))
    low, high = (quantile_ns(now, min(max(q + sign * width, 0.0), 1.0)) or 0.0 for sign in (-1, 1))
    if base <= 0:
        return Effect(name, value, base, float("inf") if value else 1.0)
    return Effect(name, value, base, value / base, low / base, high / base)


def share_effect(name: str, measure: Measure | Rated, which: Bools, since: int) -> Effect:
    """A share now against what was expected; the interval is Wilson's of now."""
    observed, expected, _, trials = (float(array[:, since:].sum()) for array in measure.rows(which).arrays())
    trials = max(trials, 1.0)
    value, base = observed / trials, max(expected / trials, 1e-6)
    low, high = proportion_confint(min(observed, trials), trials, method="wilson")
    return Effect(name, value, base, value / base, float(low) / base, float(high) / base)


def rank_test(panel: Panel, which: Bools, since: int) -> tuple[float, float, int]:
    """Mann-Whitney of durations now against the baseline: p, Cliff's delta, and spans compared."""
    now, before = panel.spread(which, slice(since, None)), panel.spread(which, slice(0, panel.span.baseline))
    return mann_whitney(now, before)


def mann_whitney(now: Floats, before: Floats) -> tuple[float, float, int]:
    """Mann-Whitney of two spreads over cells (one-sided: `now` is longer), on at most _SAMPLE_MAX spans of each.

    Returns p, Cliff's delta (2 U / (n m) - 1, from -1 to 1) and the number of spans that stand behind both.
    """
    samples = [_sample(spread) for spread in (now, before)]
    if not len(samples[0]) or not len(samples[1]):
        return 1.0, 0.0, 0
    u, p = stats.mannwhitneyu(samples[0], samples[1], alternative="greater", method="asymptotic")
    return float(p), float(2 * u / (len(samples[0]) * len(samples[1])) - 1), int(now.sum() + before.sum())


def stratified_test(events: Floats, trials: Floats) -> tuple[float, float, float, float]:
    """Cochran-Mantel-Haenszel over strata: arrays of strata x (now, before) of events and trials.

    Returns p, the pooled odds ratio and its 95 % interval. Strata without trials on a side are left out.
    """
    used = (trials > 0).all(1) & (events.sum(1) > 0) & ((trials - events).sum(1) > 0)
    if not used.any():
        return 1.0, 1.0, 0.0, float("inf")
    good = np.maximum(trials - events, 0)
    tables = [np.array([[e[0], g[0]], [e[1], g[1]]]) for e, g in zip(events[used], good[used], strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        table = StratifiedTable(tables)
        low, high = table.oddsratio_pooled_confint()
        p = float(table.test_null_odds(correction=True).pvalue)
        return (p if np.isfinite(p) else 1.0), float(table.oddsratio_pooled), float(low), float(high)


def now_and_before(scene: Scene, name: str, what: str, which: Bools, since: int) -> tuple[Floats, Floats]:
    """Events and trials by stratum, now and in the baseline: what `stratified_test` takes."""
    panel, measure = scene.panel(name), scene.measure(name, what)
    keys, strata = panel.groups(STRATA[name])
    sub = measure.rows(which).by(strata[which], keys.height)
    late, early = slice(since, None), slice(0, scene.span.baseline)
    events, trials = (
        np.stack([array[:, late].sum(1), array[:, early].sum(1)], axis=1) for array in (sub.observed, sub.trials)
    )
    return events, trials


def unknown_share(panel: Panel, which: Bools, since: int) -> float:
    """Share of spans whose sampling probability is unknown."""
    unknown, count = (panel.counts[name][which][:, since:].sum() for name in ("unknown_weight_count", "count"))
    return float(unknown / count) if count else 0.0


def with_unknown_share(scene: Scene, finding: Finding) -> Finding:
    """With the share of spans of unknown sampling at its place since it began, where its detector does not count it."""
    if finding.confidence.unknown_weight_share is not None:
        return finding
    place, panel = finding.place, scene.panel("base")
    names = {"region": place.region, "service_name": place.service, "operation": place.operation}
    names["tenant"] = finding.tenant_scope
    which = every({name: value for name, value in names.items() if value is not None}, panel.keys)
    begin = int((finding.since.replace(tzinfo=None) - scene.span.start) / MINUTE)
    share = unknown_share(panel, which, min(max(begin, 0), scene.span.count - 1))
    return replace(finding, confidence=replace(finding.confidence, unknown_weight_share=share))


def confidence(
    test: str, p: float | None, corrected: float | None, n: float, unknown: float | None = None
) -> Confidence:
    """With p values within [0, 1], None for what is no test."""
    within = [None if value is None else min(max(value, 0.0), 1.0) for value in (p, corrected)]
    return Confidence(test, within[0], within[1], int(n), unknown)


def exemplars(
    scene: Scene, place: Place, since: int, *, errors: bool, tenants: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Up to three trace ids that show it: errors or the slowest, from `since` on."""
    found = scene.evidence.exemplars.filter(pl.col("minute") >= scene.span.time(since), pl.col("is_error") == errors)
    wanted = {"region": place.region, "service_name": place.service, "operation": place.operation}
    for name, value in wanted.items():
        found = found if value is None else found.filter(pl.col(name) == value)
    if len(tenants) == 1:
        found = found.filter(pl.col("tenant") == tenants[0])
    return tuple(
        found.sort("duration_ns", "trace_id", descending=[True, False])["trace_id"].unique(maintain_order=True).head(3)
    )


def sql_of(scene: Scene, place: Place, since: int, table: str = "rollup_1m", figure: str | None = None) -> str:
    """A query that shows it by minute, from a quarter of an hour before it began."""
    names = {"region": place.region, "service_name": place.service, "operation": place.operation, "host": place.host}
    names |= {"service_version": place.version, "destination": place.destination}
    conditions = [f"{name} = '{_quoted(value)}'" for name, value in names.items() if value is not None]
    begin = scene.span.time(max(0, since - 15))
    conditions.append(f"window_start >= TIMESTAMP '{begin:%Y-%m-%d %H:%M}'")
    conditions.append(f"window_start < TIMESTAMP '{scene.span.end:%Y-%m-%d %H:%M}'")
    figures = figure or "latency_quantile_ns(list(latency_buckets), 0.95) / 1e6 AS p95_ms"
    return (
        f"SELECT window_start, sum(count) AS spans, sum(errors) AS errors, {figures} FROM {table} "
        f"WHERE {' AND '.join(conditions)} GROUP BY window_start ORDER BY window_start"
    )


def aware(scene: Scene, index: int) -> datetime:
    """The start of a minute of the scene."""
    return scene.span.time(index).replace(tzinfo=UTC)


def severity(ratio: float, share_of_tenants: float) -> Severity:
    """critical from 3x on and a quarter of the tenants, warning else."""
    return "critical" if ratio >= 3 and share_of_tenants >= 0.25 else "warning"


def score(weight: float, ratio: float, excess: float, share: float = 0.0) -> float:
    """A rank: `weight` of the kind, plus doublings, plus decades of spans concerned, plus the share of tenants hurt."""
    return round(
        weight
        + min(abs(float(np.log2(max(ratio, 1e-3)))), 6.0) / 2
        + float(np.log10(max(excess, 1.0))) / 2
        + 2 * share,
        3,
    )


def percent(share: float) -> str:
    """`4.2 %`."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def times(effect: Effect) -> str:
    """`p95 is 3.1 times the usual (12.4 ms, was 4 ms)`."""
    if effect.measure in ("p95_ns", "p99_ns"):
        figures = f"{duration(effect.value)}, was {duration(effect.baseline)}"
        return f"{effect.measure[:3]} is {effect.ratio:.1f} times the usual ({figures})"
    return f"{percent(effect.value)} (usually {percent(effect.baseline)})"


def every(condition: dict[str, str], keys: pl.DataFrame) -> Bools:
    """Which rows of `keys` have these values."""
    mask = np.ones(keys.height, dtype=bool)
    for name, value in condition.items():
        mask &= (keys[name] == value).fill_null(value=False).to_numpy()
    return mask


def tenants_words(tenants: tuple[str, ...]) -> str:
    """`tenant a`, `tenants a, b and 3 more`."""
    if len(tenants) <= 3:
        return f"tenant{'s' if len(tenants) != 1 else ''} {', '.join(tenants)}"
    return f"tenants {', '.join(tenants[:2])} and {len(tenants) - 2} more"


def _sample(spread: Floats) -> Floats:
    total = float(spread.sum())
    if not total:
        return np.empty(0)
    scaled = spread * min(1.0, _SAMPLE_MAX / total)
    return np.repeat(cell_values_ns(np.arange(len(spread), dtype=float)), np.round(scaled).astype(np.intp))


def _quoted(text: str) -> str:
    return text.replace("'", "''")
