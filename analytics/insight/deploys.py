"""Versions: the new one against the old, at the same time where both run, else against what was usual before.

A change of version is a change of state and may be a cause. New against old concurrently, stratified by region and
operation (Cochran-Mantel-Haenszel), needs no assumption about what else happened then. Of what is rare the old version
has too little beside a new one that is rolled out within minutes: as long as it does as ever, what it had before
counts, too. Where it is gone the baseline of the same operations takes its place. The finding says which it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats

from analytics.insight import telling
from analytics.insight.baselines import onset
from analytics.insight.finding import Finding, Place
from analytics.insight.locating import NEARLY_ALL
from analytics.insight.measures import Bools, Floats, Ints, Rated, summed
from analytics.insight.panel import Panel
from analytics.insight.scene import STRATA, Scene

NEW_MINUTES_MAX = 90
_RUNNING_BEFORE_MIN = 5
_SETTLED_MINUTES = 20
"""What came so long before a version is established, if new itself: a release takes a quarter of an hour."""
_CONCURRENT_SHARE_MIN = 0.02
_ODDS_LOW_MIN = 1.2
_EXCESS_MIN = 6
_RAN_WELL_MINUTES = 5
_RAN_WELL_P = 0.001
_ELSEWHERE_MAX = 0.6
_CALLING = ("client", "producer")
_CALLED_SHARE_MIN = 0.5
_LAST_MINUTES = 3
_FEW_EVENTS = 30.0
"""Of the old version at the same time: where fewer are to be expected, those before the new one came count as well."""
_AS_EVER_P = 0.01


@dataclass(frozen=True)
class Release:
    """A version of a service, first seen in minute `first` of the scene, and the regions that run it.

    `last`: the last minute in which it ran; `followers`: versions that came while it did.
    """

    service: str
    version: str
    first: int
    last: int
    regions: tuple[str, ...]
    followers: tuple[str, ...] = ()


def releases(scene: Scene) -> list[Release]:
    """Versions that appeared within the scene, where another version of the service ran before."""
    panel = scene.panel("version")
    if not panel.size:
        return []
    keys, of = panel.groups(("service_name", "service_version"))
    seen = summed(panel.counts["count"], of, keys.height) > 0
    first = np.where(seen.any(1), seen.argmax(1), scene.span.count)
    last = scene.span.count - 1 - seen[:, ::-1].argmax(1)
    frame = keys.with_columns(first=pl.Series(first), last=pl.Series(last), index=pl.Series(range(keys.height)))
    oldest = frame.group_by("service_name").agg(oldest=pl.col("first").min())
    new = frame.join(oldest, on="service_name", maintain_order="left").filter(
        pl.col("first") >= pl.col("oldest") + _RUNNING_BEFORE_MIN,
        pl.col("first") >= scene.span.count - NEW_MINUTES_MAX,
    )
    found = []
    for row in new.iter_rows(named=True):
        where = panel.keys.filter(pl.Series(of == row["index"]))["region"].unique().sort()
        found.append(Release(row["service_name"], row["service_version"], row["first"], row["last"], tuple(where)))
    return [replace(one, followers=_followers(one, found)) for one in found]


def _followers(release: Release, others: list[Release]) -> tuple[str, ...]:
    return tuple(
        one.version
        for one in others
        if one.service == release.service and release.first < one.first <= release.last + 1
        and not set(one.regions).isdisjoint(release.regions)
    )  # fmt: skip


def find(scene: Scene) -> list[Finding]:
    """A finding 'deploy' for each new version that does worse than the established ones, with those that followed it
    while it did."""
    found, new = [], releases(scene)
    for release in new:
        since = release.first - _SETTLED_MINUTES
        unsettled = {one.version for one in new if one.service == release.service and one.first > since}
        # What it serves is judged with its inner work, and without it: either may be bad by itself.
        told = [
            _judged(scene, release, unsettled, what, others)
            for what in ("errors", "very_slow", "slow")
            for others in (_CALLING, (*_CALLING, "internal"))
        ]
        best = max((one for one in told if one is not None), key=lambda one: one.score, default=None)
        if best is not None:
            found.append(best)
    return found


def _judged(scene: Scene, release: Release, unsettled: set[str], what: str, others: tuple[str, ...]) -> Finding | None:
    """Whether a release does worse than versions that are not `unsettled`, by a measure of all kinds of spans but
    `others`."""
    panel, measure = scene.panel("version"), scene.measure("version", what)
    of_service = (panel.keys["service_name"] == release.service).to_numpy()
    # Its calls are judged at the services that it calls.
    of_service &= ~panel.keys["kind"].is_in(others).to_numpy()
    is_new = of_service & (panel.keys["service_version"] == release.version).to_numpy()
    if release.followers and _got_worse(scene, what, is_new, release.first, release.last + 1):
        is_new |= of_service & panel.keys["service_version"].is_in(release.followers).to_numpy()
    is_old = of_service & ~panel.keys["service_version"].is_in(unsettled).to_numpy()
    since = max(release.first, scene.span.count - scene.config.recent_minutes)
    observed, expected, trials = (
        float(array[is_new][:, since:].sum()) for array in (measure.observed, measure.expected, measure.trials)
    )
    if trials < scene.config.volume_min or observed - expected < _EXCESS_MIN:
        return None
    events, tried, against = _compared(scene, what, is_new, is_old, (release.first, since))
    p, odds, low, high = telling.stratified_test(events, tried)
    ratio = _standardised_ratio(events, tried)
    if low < _ODDS_LOW_MIN or ratio < scene.config.ratio_min or p > scene.config.false_discovery_rate:
        return None
    last = max(since, scene.span.count - _LAST_MINUTES)
    # What was bad once is over.
    if not _got_worse(scene, what, is_new, last, scene.span.count) or _ran_well(scene, what, is_new, release.first):
        return None
    if _only_waits(scene, what, is_new, since):
        return None
    return _told(scene, release, what, is_new, since, against, (p, odds, low, high, ratio))


def _compared(
    scene: Scene, what: str, is_new: Bools, is_old: Bools, times: tuple[int, int]
) -> tuple[Floats, Floats, str]:
    """Events and trials by stratum, of the new version and of what it is held against, and that in words.

    `times`: when the new version came, and the minute from which on it is judged. At the same time few calls of the old
    one may be left, with too few events to tell anything: those that it had before are added, if it does as it did and
    not as the new one does.
    """
    first, since = times
    events, tried = _tables(scene, what, is_new, is_old, since)
    gone = tried[:, 1] < np.maximum(_CONCURRENT_SHARE_MIN * tried.sum(1), 1.0)
    if tried[~gone, 1].sum() < scene.config.volume_min:
        gone[:] = True
    before, tried_before = _usual(scene, what, is_old, first)
    against = "the old version at the same time"
    beside = ~gone & (tried[:, 0] > 0)
    usual = float((before / np.maximum(tried_before, 1.0) * tried[:, 1])[beside].sum())
    as_ever = usual < _FEW_EVENTS and stats.poisson.sf(events[beside, 1].sum() - 1, usual) >= _AS_EVER_P
    if as_ever and _standardised_ratio(events[beside], tried[beside]) >= scene.config.ratio_min:
        events[beside, 1] += before[beside]
        tried[beside, 1] += tried_before[beside]
        against = "the old version at the same time and before"
    if tried[gone, 0].sum() >= 0.5 * tried[:, 0].sum():
        against = "the time before it came; the old version is gone"
    events[gone, 1], tried[gone, 1] = before[gone], tried_before[gone]
    return events, tried, against


def _tables(scene: Scene, what: str, is_new: Bools, is_old: Bools, since: int) -> tuple[Floats, Floats]:
    """Events and trials by stratum: new and old version in the same minutes."""
    panel, measure = scene.panel("version"), scene.measure("version", what)
    keys, strata = panel.groups(STRATA["version"])

    def sums(array: Floats) -> Floats:
        return np.stack([_strata(array, which, strata, keys.height, since) for which in (is_new, is_old)], axis=1)

    return sums(measure.observed), sums(measure.trials)


def _strata(array: Floats, which: Bools, strata: Ints, count: int, since: int) -> Floats:
    found: Floats = np.bincount(strata[which], weights=array[which][:, since:].sum(1), minlength=count).astype(float)
    return found


def _usual(scene: Scene, what: str, is_old: Bools, first: int) -> tuple[Floats, Floats]:
    """Events and trials by stratum of the established versions, before the new one came."""
    panel, measure = scene.panel("version"), scene.measure("version", what)
    keys, strata = panel.groups(STRATA["version"])
    before = slice(max(0, first - 60), first)
    events, trials = (
        np.bincount(strata[is_old], array[is_old][:, before].sum(1), keys.height).astype(float, copy=False)
        for array in (measure.observed, measure.trials)
    )
    return events, trials


def _standardised_ratio(events: Floats, trials: Floats) -> float:
    """Events of the new version over those expected of it at the old one's rates (indirect standardisation)."""
    rate = (events[:, 1] + 0.5 * (events[:, 1].sum() / max(trials[:, 1].sum(), 1))) / np.maximum(trials[:, 1], 0.5)
    known = trials[:, 1] > 0
    expected = float((rate * trials[:, 0])[known].sum())
    return float(events[known, 0].sum() + 0.5) / (expected + 0.5)


def _got_worse(scene: Scene, what: str, is_new: Bools, first: int, end: int) -> bool:
    """Whether the new version stands out by itself from minute `first` to before `end`."""
    measure = scene.measure("version", what).rows(is_new)
    observed, expected, variance = (
        array[:, first:end].sum() for array in (measure.observed, measure.expected, measure.variance)
    )
    return bool(observed - expected > 3 * np.sqrt(max(variance, 0.25)) and observed > 1.3 * expected)


def _only_waits(scene: Scene, what: str, is_new: Bools, since: int) -> bool:
    """Whether calls that the new versions make go wrong as well, and hold most of the excess of what they serve.

    It is then of what they call; but where calls of other versions there go well in the last minutes, of how they call.
    """
    panel, measure = scene.panel("version"), scene.measure("version", what)
    calls = panel.keys["kind"].is_in(_CALLING).to_numpy()
    is_made = calls & _like(panel, is_new, ("region", "service_name", "service_version"))
    served, called = (
        float((measure.observed[which] - measure.expected[which])[:, since:].sum()) for which in (is_new, is_made)
    )
    if called < _CALLED_SHARE_MIN * served:
        return False
    worst = _where(measure, panel, is_new, since)
    there = is_new & (panel.keys["region"] == worst).to_numpy() if worst else is_new
    others = calls & _like(panel, there, ("region", "service_name")) & ~is_made
    last = scene.span.count - _LAST_MINUTES
    known = float(measure.trials[others][:, last:].sum()) >= scene.config.volume_min
    return not known or _got_worse(scene, what, others, last, scene.span.count)


def _like(panel: Panel, which: Bools, names: tuple[str, ...]) -> Bools:
    """Series that agree in these dimensions with one of `which`."""
    _, of = panel.groups(names)
    found: Bools = np.isin(of, np.unique(of[which]))
    return found


def _ran_well(scene: Scene, what: str, is_new: Bools, first: int) -> bool:
    """Whether the trouble began long after the version came: what it had before is clearly less than that would be.

    The version is then no change of state that could have brought it. Counts are those of a Poisson distribution at
    the rate since the trouble began (see `baselines.onset`).
    """
    measure = scene.measure("version", what).rows(is_new)
    observed, expected, variance, trials = (array.sum(0, dtype=float) for array in measure.arrays())
    began = int(onset((observed - expected)[None], np.maximum(variance, 0.25)[None])[0])
    if began - first < _RAN_WELL_MINUTES:
        return False
    rate = observed[began:].sum() / max(float(trials[began:].sum()), 1.0)
    return bool(stats.poisson.cdf(observed[first:began].sum(), rate * trials[first:began].sum()) < _RAN_WELL_P)


def _told(
    scene: Scene, release: Release, what: str, is_new: Bools, since: int, against: str, test: tuple[float, ...]
) -> Finding:
    panel, measure = scene.panel("version"), scene.measure("version", what)
    p, odds, low, high, ratio = test
    everywhere = tuple(
        scene.panel("base").keys.filter(pl.col("service_name") == release.service)["region"].unique().sort()
    )
    alone = len(release.regions) == 1 and len(everywhere) > 1
    region = release.regions[0] if alone else _where(measure, panel, is_new, since)
    place = Place(region, release.service, version=release.version)
    effect = telling.share_effect("error_rate" if what == "errors" else f"{what}_share", measure, is_new, since)
    hurt = _hurt(scene, release, what, region)
    word = {"errors": "errors", "slow": "spans beyond the usual p95", "very_slow": "spans beyond the usual p99"}[what]
    sentence = (
        f"Version {release.version} of {release.service}, new since {scene.span.time(release.first):%H:%M}"
        f"{f' in {region}' if region else ''}, has {ratio:.1f} times the {word} ({telling.percent(effect.value)}) "
        f"of {against}; {hurt.words()} are hurt."
    )
    excess = float((measure.observed - measure.expected)[is_new][:, since:].sum())
    return Finding(
        "deploy", place, telling.severity(ratio, hurt.share), telling.score(7.0, ratio, excess, hurt.share),
        telling.aware(scene, release.first), scene.until, effect,
        telling.confidence(
            f"Cochran-Mantel-Haenszel by region and operation: odds ratio {odds:.1f} ({low:.1f} to {high:.1f})",
            p, p, float(measure.trials[is_new][:, since:].sum()), telling.unknown_share(panel, is_new, since),
        ),
        sentence, hurt.tenants, (f"version={release.version}",),
        exemplars=telling.exemplars(scene, Place(region, release.service), since, errors=what == "errors"),
        sql=telling.sql_of(scene, place, since, "rollup_version_1m"),
    )  # fmt: skip


def _where(measure: Rated, panel: Panel, is_new: Bools, since: int) -> str | None:
    """The region that holds nearly all of a new version's excess, while it does clearly better in the others."""
    mine, regions = measure.rows(is_new), panel.keys["region"].filter(pl.Series(is_new))
    names, of = np.unique(regions.to_numpy(), return_inverse=True)
    sides = np.stack([array[:, since:].sum(1) for array in (mine.observed, mine.expected)], axis=1)
    observed, expected = summed(sides, of.astype(np.intp), len(names)).T
    top = int((observed - expected).argmax())
    excess = np.maximum(observed - expected, 0)
    here = float(observed[top] / max(expected[top], 0.5))
    there = float((observed.sum() - observed[top]) / max(expected.sum() - expected[top], 0.5))
    is_alone = excess[top] >= NEARLY_ALL * excess.sum() and there <= _ELSEWHERE_MAX * here
    return str(names[top]) if is_alone and len(names) > 1 else None


def _hurt(scene: Scene, release: Release, what: str, region: str | None) -> telling.Impact:
    panel = scene.panel("base")
    which = (panel.keys["service_name"] == release.service).to_numpy()
    if region:
        which &= (panel.keys["region"] == region).to_numpy()
    since = max(release.first, scene.span.count - scene.config.recent_minutes)
    return telling.impact(scene, panel, scene.measure("base", what), which, since)
