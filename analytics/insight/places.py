"""Latency and errors: found at several levels of place, told once a region, at the place that holds the excess.

Which service is slow is told by time, not by how many spans are: the excess of a service's own time is that of the
spans it serves less that of the calls it makes; the excess of the network, of calls less that of the spans they cause.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from analytics.insight import telling
from analytics.insight.changes import began
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.locating import locate
from analytics.insight.measures import Bools, Floats, Measure, Rated
from analytics.insight.panel import Panel, cell_values_ns
from analytics.insight.scene import STRATA, Groups, Scene

LEVELS = (
    ("region",),
    ("region", "service_name"),
    ("region", "service_name", "component", "operation", "kind"),
    ("region", "tenant"),
)
_NETWORK = "network"
_CALLING, _SERVING = ("client", "producer"), ("server", "consumer")
_OWN_TIME_SHARE = 0.6
_BROAD = 0.5
_EFFECT_MIN = 1.25
_ERRORS_MIN = 0.003
_GOES_ON = 0.35


@dataclass(frozen=True)
class Trouble:
    """Something that stands out in one region: which series, since which minute, how sure."""

    region: str
    what: str
    since: int
    which: Bools
    z: float
    p: float
    p_corrected: float


def find(scene: Scene) -> list[Finding]:
    """Findings of latency and errors, of what regions, services, operations and tenants tell."""
    found = [_latency(scene, trouble) for trouble in troubles(scene, ("slow", "very_slow"))]
    found += [_errors(scene, trouble) for trouble in troubles(scene, ("errors",))]
    return [finding for finding in found if finding is not None]


def troubles(scene: Scene, whats: tuple[str, ...]) -> list[Trouble]:
    """What stands out, a region each, by the level and measure that show it most."""
    best: dict[str, tuple[str, Groups, int]] = {}
    for what in whats:
        for level in LEVELS:
            groups = scene.level("base", what, level)
            for index in np.flatnonzero(groups.flagged):
                region, z = str(groups.keys["region"][int(index)]), float(groups.scan.z[index])
                known = best.get(region)
                if known is None or (z > _z(known) and (what == known[0] or what != "very_slow")):
                    best[region] = (what, groups, int(index))
    panel = scene.panel("base")
    return [_trouble(groups, index, what, region, panel) for region, (what, groups, index) in best.items()]


def _z(candidate: tuple[str, Groups, int]) -> float:
    _, groups, index = candidate
    return float(groups.scan.z[index])


def _trouble(groups: Groups, index: int, what: str, region: str, panel: Panel) -> Trouble:
    scan = groups.scan
    which = (panel.keys["region"] == region).to_numpy()
    since = began(scan.residuals[index], int(scan.since[index]))
    return Trouble(
        region, what, since, which, float(scan.z[index]), float(scan.p[index]),
        float(groups.p_corrected[index]),
    )  # fmt: skip


def _excess(measure: Measure | Rated, since: int) -> tuple[Floats, Floats]:
    return (measure.observed - measure.expected)[:, since:].sum(1), measure.expected[:, since:].sum(1)


def _latency(scene: Scene, trouble: Trouble) -> Finding | None:
    panel, measure = scene.panel("base"), scene.measure("base", trouble.what)
    excess, expected = _excess(measure.rows(trouble.which), trouble.since)
    sub = panel.keys.filter(pl.Series(trouble.which))
    located, inside = locate(sub, excess, expected, ("tenant",))
    which = trouble.which.copy()
    which[trouble.which] = inside
    slow = slow_service(scene, which, trouble.since)
    operation = None
    if slow not in (None, _NETWORK):
        own = which & telling.every({"service_name": str(slow)}, panel.keys)
        part, part_expected = _excess(measure.rows(own), trouble.since)
        deeper, left = locate(panel.keys.filter(pl.Series(own)), part, part_expected, ("operation",))
        operation = deeper.get("operation")
        own[own] = left
        which = own
    worst = _worst_operation(panel, measure, which, trouble.since)
    effect = telling.latency_effect(panel, worst, trouble.since, trouble.what)
    hurt = telling.impact(scene, panel, measure, which, trouble.since)
    tenant = located.get("tenant")
    broad = tenant is None and slow in (None, _NETWORK) and hurt.share >= _BROAD
    kind: Kind = "region_slow" if broad else "latency"
    place = Place(trouble.region, None if slow in (None, _NETWORK) else slow, operation)
    return _told(scene, trouble, kind, place, tenant, hurt, effect, which, slow == _NETWORK)


def _worst_operation(panel: Panel, measure: Measure | Rated, which: Bools, since: int) -> Bools:
    """Of the series, those of the one operation that holds most of the excess: durations of different ones do not "
    "mix."""
    keys, of = panel.groups(("service_name", "operation", "kind"))
    excess = _excess(measure.rows(which), since)[0]
    top = int(np.bincount(of[which], weights=excess, minlength=keys.height).argmax())
    found: Bools = which & (of == top)
    return found


def goes_on(measure: Measure | Rated, which: Bools, since: int) -> bool:
    """Whether the last two minutes still have a good part of the excess that the stretch has on average."""
    observed, expected = measure.rows(which).arrays()[:2]
    whole = observed[:, since:].sum() / max(expected[:, since:].sum(), 0.5)
    last = observed[:, -2:].sum() / max(expected[:, -2:].sum(), 0.5)
    return bool(last - 1 >= _GOES_ON * (whole - 1) and last >= _EFFECT_MIN)


def slow_service(scene: Scene, which: Bools, since: int) -> str | None:
    """The service whose own time holds most of the excess, _NETWORK where calls alone are slow, None where it spreads.

    Times are winsorised at the longest usual p99: a few spans of seconds would else decide.
    """
    panel = scene.panel("base")
    early = slice(0, scene.span.baseline)
    late = slice(since, None)
    before, now = (_winsorised_ns(scene, which, part) for part in (early, late))
    count_before, count_now = (panel.counts["count"][which][:, part].sum(1) for part in (early, late))
    excess = now - before / np.maximum(count_before, 1) * count_now
    frame = panel.keys.filter(pl.Series(which)).select("service_name", "component", "kind").with_columns(
        excess=pl.Series(excess), known=pl.Series(count_before > 0)
    ).filter("known")  # fmt: skip
    calls, serves = (pl.col("kind").is_in(kinds) for kinds in (_CALLING, _SERVING))
    own = frame.group_by("service_name", maintain_order=True).agg(
        own=pl.col("excess").filter(serves).sum() - pl.col("excess").filter(calls).sum()
    )
    wire = frame.group_by("component", maintain_order=True).agg(
        called=pl.col("excess").filter(calls).sum(),
        served=pl.col("excess").filter(serves).sum(),
        has_server=serves.any(),
    )
    network = float((wire["called"] - wire["served"]).filter(wire["has_server"] & (wire["called"] > 0)).sum())
    shares = {name: max(value, 0.0) for name, value in own.iter_rows()} | {_NETWORK: max(network, 0.0)}
    total = sum(shares.values())
    top = max(shares, key=lambda name: shares[name])
    return top if total > 0 and shares[top] >= _OWN_TIME_SHARE * total else None


def _winsorised_ns(scene: Scene, which: Bools, minutes: slice) -> Floats:
    """The time of each of the series in some minutes, no span counted as longer than the longest p99 of their strata.

    One bound for all: what waits for a call is not longer by it than the call.
    """
    panel = scene.panel("base")
    _, strata = panel.groups(STRATA["base"])
    timed = which & panel.keys["kind"].is_in([*_CALLING, *_SERVING]).to_numpy()
    bound = scene.thresholds("base")[1][strata[timed]].max(initial=0)
    found = np.zeros(panel.size)
    for block in panel.cells.blocks(slice(*minutes.indices(scene.span.count)[:2])):
        times = block.spans * cell_values_ns(np.minimum(block.cell, bound))
        found += np.bincount(block.series, weights=times, minlength=panel.size)
    return found[which]


def _errors(scene: Scene, trouble: Trouble) -> Finding | None:
    panel, measure = scene.panel("base"), scene.measure("base", "errors")
    excess, expected = _excess(measure.rows(trouble.which), trouble.since)
    sub = panel.keys.filter(pl.Series(trouble.which))
    located, inside = locate(sub, excess, expected, ("tenant",))
    which = trouble.which.copy()
    which[trouble.which] = inside
    service = failing_service(panel, measure, which, trouble.since)
    if service:
        which = which & telling.every({"service_name": service}, panel.keys)
    part, part_expected = _excess(measure.rows(which), trouble.since)
    deeper, left = locate(panel.keys.filter(pl.Series(which)), part, part_expected, ("operation",))
    which[which] = left
    effect = telling.share_effect("error_rate", measure, which, trouble.since)
    if effect.value - effect.baseline < _ERRORS_MIN:
        return None
    hurt = telling.impact(scene, panel, measure, which, trouble.since)
    tenant = located.get("tenant")
    broad = tenant is None and hurt.share >= _BROAD and not service and "operation" not in deeper
    kind: Kind = "region_errors" if broad else "errors"
    place = Place(trouble.region, service, deeper.get("operation"))
    return _told(scene, trouble, kind, place, tenant, hurt, effect, which, network=False)


def failing_service(panel: Panel, measure: Measure | Rated, which: Bools, since: int) -> str | None:
    """The service whose own serving spans hold errors that its calls do not; the deepest where a chain fails."""
    excess, _ = _excess(measure.rows(which), since)
    frame = panel.keys.filter(pl.Series(which)).select("service_name", "kind").with_columns(excess=pl.Series(excess))
    calls = pl.col("kind").is_in(_CALLING)
    own = frame.group_by("service_name", maintain_order=True).agg(
        served=pl.col("excess").filter(~calls).sum(), called=pl.col("excess").filter(calls).sum()
    ).with_columns(own=pl.col("served") - pl.col("called"))  # fmt: skip
    total = float(own["served"].to_numpy().max(initial=0.0))
    found = own.filter(pl.col("own") > 0.5 * total).sort("own", descending=True)
    return str(found["service_name"][0]) if found.height and total > 0 else None


def _told(
    scene: Scene, trouble: Trouble, kind: Kind, place: Place, tenant: str | None, hurt: telling.Impact,
    effect: Effect, which: Bools, network: bool,
) -> Finding | None:  # fmt: skip
    errors = trouble.what == "errors"
    panel, measure = scene.panel("base"), scene.measure("base", trouble.what)
    if effect.ratio < _EFFECT_MIN or not goes_on(measure, which, trouble.since):
        return None
    if errors:
        p, *_ = telling.stratified_test(*telling.now_and_before(scene, "base", "errors", which, trouble.since))
        test = "Cochran-Mantel-Haenszel, now against the baseline, by operation"
    else:
        p, delta, _ = telling.rank_test(panel, which, trouble.since)
        test = f"Mann-Whitney, now against the baseline (Cliff's delta {delta:+.2f})"
    tenants = (tenant,) if tenant else hurt.tenants
    excess = float(_excess(measure.rows(which), trouble.since)[0].sum())
    breadth = f"tenant {tenant} alone is hurt" if tenant else f"{hurt.words()} are hurt"
    verb = "fails more often" if errors else "is slow"
    where = place.words() if place.service else f"the region {place.region}"
    also = ", on the network between services" if network else ""
    figure = times(effect, errors)
    sentence = (
        f"{where[0].upper()}{where[1:]} {verb}{also} since {scene.span.time(trouble.since):%H:%M}: {figure}; {breadth}."
    )
    weight = 4.0 if kind.startswith("region") else 3.0
    return Finding(
        kind, place, telling.severity(effect.ratio, hurt.share), telling.score(weight, effect.ratio, excess,
        hurt.share), telling.aware(scene, trouble.since), scene.until, effect,
        telling.confidence(test, p, max(p, trouble.p_corrected), measure.trials[which][:, trouble.since :].sum(),
                           telling.unknown_share(panel, which, trouble.since)),
        sentence, tenants,
        exemplars=telling.exemplars(scene, place, trouble.since, errors=errors, tenants=tenants if tenant else ()),
        sql=telling.sql_of(scene, place, trouble.since), tenant_scope=tenant,
    )  # fmt: skip


def times(effect: Effect, errors: bool) -> str:
    """The effect in words."""
    return f"errors {telling.times(effect)}" if errors else telling.times(effect)
