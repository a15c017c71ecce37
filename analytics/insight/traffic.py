"""How much is asked for: bursts of a tenant, surges and drops of many, and retry storms.

A surge that many tenants share at the same time, while calls fail, is no demand: clients repeat what failed. Whether
many share it is told by the effective number of tenants (inverse Simpson index of the shares of the excess), against
that of the usual traffic.
"""

from __future__ import annotations

import numpy as np

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.locating import effective_number, located
from analytics.insight.measures import Bools
from analytics.insight.scene import Groups, Scene

_BROAD = 0.5
_STORM_RATIO = 1.2
_STORM_ERROR_RATIO = 2.0
_FEW_EXPECTED = 30.0
_BURST_RATIO = 2.0
_BURST_SPANS_A_MINUTE = 90


def find(scene: Scene) -> list[Finding]:
    """Findings 'burst', 'traffic_surge', 'traffic_drop' and 'retry_storm'."""
    return [*_bursts(scene), *_regions(scene, 1), *_regions(scene, -1), *_drops(scene)]


def _bursts(scene: Scene) -> list[Finding]:
    """Tenants whose steady demand multiplies, a finding each, in the region that holds the excess where it is one."""
    keys, steady = scene.demand
    groups = scene.demand_by(("tenant",))
    of = groups.of
    found = []
    for index in np.flatnonzero(groups.flagged):
        scan = groups.scan
        more = float(scan.observed[index] - scan.expected[index]) / int(scan.length[index])
        lasts = _lasts(groups, int(index), _BURST_RATIO)
        if scan.ratio[index] < _BURST_RATIO or more < _BURST_SPANS_A_MINUTE or not lasts:
            continue
        since = int(scan.since[index])
        usual = np.median(steady[:, : scene.span.baseline], axis=1)
        excess = (steady - usual[:, None])[:, since:].sum(1)
        values, _ = located(keys, excess, np.maximum(usual, 1.0), ("region",), of == index)
        tenant = str(groups.keys["tenant"][int(index)])
        found.append(_told(scene, groups, int(index), "burst", Place(values.get("region")), tenant, since))
    return found


def _lasts(groups: Groups, index: int, ratio: float, sign: int = 1) -> bool:
    """Whether each of the last two minutes is beyond `ratio` times the usual (below it, for `sign` -1).

    One minute does not make it, however high: that is what tenants do every day, and what a region does of which one
    tenant is most. It is far beyond what its usual minutes vary by, for these bursts are rare; only time tells it from
    a change that stays.
    """
    last, usual = groups.measure.observed[index, -2:], groups.measure.expected[index, 0]
    return bool(last.min() >= ratio * usual if sign > 0 else last.max() <= usual / ratio)


def _drops(scene: Scene) -> list[Finding]:
    groups = scene.demand_by(("region", "tenant"), -1)
    found = []
    for index in np.flatnonzero(groups.flagged):
        expected_a_minute = groups.scan.expected[index] / max(int(groups.scan.length[index]), 1)
        if expected_a_minute >= _FEW_EXPECTED and groups.scan.observed[index] < 0.2 * groups.scan.expected[index]:
            region, tenant = (str(value) for value in groups.keys.row(int(index)))
            found.append(
                _told(scene, groups, int(index), "traffic_drop", Place(region), tenant, int(groups.scan.since[index]))
            )
    return found


def _regions(scene: Scene, sign: int) -> list[Finding]:
    groups = scene.demand_by(("region",), sign)
    found = []
    for index in range(groups.keys.height):
        storm = _storm_since(scene, groups, index) if sign > 0 else None
        since = int(groups.scan.since[index]) if storm is None else storm
        lasts = groups.flagged[index] and _lasts(groups, index, scene.config.ratio_min, sign)
        if storm is None and not lasts:
            continue
        if sign > 0 and _breadth(scene, groups, index, sign, since) < _BROAD:
            continue
        kind: Kind = "traffic_drop" if sign < 0 else "traffic_surge" if storm is None else "retry_storm"
        found.append(_told(scene, groups, index, kind, Place(str(groups.keys["region"][index])), None, since))
    return found


def _breadth(scene: Scene, groups: Groups, index: int, sign: int, since: int) -> float:
    """Over how many tenants the excess spreads, of those over which the traffic there usually does (about 0 to 1)."""
    demand = scene.demand[1][groups.of == index]
    usual = np.median(demand[:, : scene.span.baseline], axis=1)
    excess = (sign * (demand - usual[:, None]))[:, since:].sum(1)
    spread, expected = effective_number(excess), effective_number(usual)
    return spread / max(expected, 1.0)


def _storm_since(scene: Scene, groups: Groups, index: int) -> int | None:
    """Since when calls fail in a region while many tenants ask for more in these minutes, and did not before."""
    region = str(groups.keys["region"][index])
    errors = scene.level("base", "errors", ("region",))
    row = np.flatnonzero((errors.keys["region"] == region).to_numpy())
    if not len(row) or not errors.flagged[row[0]] or errors.scan.ratio[row[0]] < _STORM_ERROR_RATIO:
        return None
    begun = int(errors.scan.since[row[0]])
    demand = groups.measure.observed[index]
    usual, now = demand[max(0, begun - 15) : begun], demand[begun:]
    if len(usual) < 5 or len(now) < 2:
        return None
    before = float(np.median(usual))
    spread = max(1.4826 * float(np.median(np.abs(usual - before))), float(np.sqrt(before)))
    is_storm = (
        np.median(now) >= _STORM_RATIO * before
        and (now > before + 2 * spread).mean() >= 0.6
        and np.median(demand[begun - 5 : begun - 1]) < 0.5 * (before + float(np.median(now)))
        and _breadth(scene, groups, index, 1, begun) >= _BROAD
    )
    return begun if is_storm else None


def _told(
    scene: Scene, groups: Groups, index: int, kind: Kind, place: Place, tenant: str | None, since: int
) -> Finding:
    panel, scan = scene.panel("base"), groups.scan
    which: Bools = telling.every(
        {name: value for name, value in (("region", place.region), ("tenant", tenant)) if value}, panel.keys
    )
    now = float(groups.measure.observed[index, since:].mean()) / 60
    usual = float(groups.measure.expected[index, 0]) / 60
    ratio = now / max(usual, 1e-9)
    scale = float(scan.scale[index]) * float(np.sqrt(max(usual * 60, 1.0))) / 60
    width = 1.96 * scale / float(np.sqrt(scene.span.count - since))
    effect = Effect("spans_per_second", now, usual, ratio, (now - width) / usual, (now + width) / usual)
    who = f"Tenant {tenant}" if tenant else {"retry_storm": "Clients"}.get(kind, "Traffic")
    more = f"{ratio:.1f} times the usual" if ratio >= 1 else f"{telling.percent(ratio)} of the usual"
    sentence = (
        f"{who} {place.words()} {'sends' if tenant else 'send' if kind == 'retry_storm' else 'is'} {more} "
        f"({now:.0f} spans/s, usually {usual:.0f}) since {scene.span.time(since):%H:%M}"
    )
    sentence += " while calls fail: the pattern of retries, in many tenants at once." if kind == "retry_storm" else "."
    tenants: tuple[str, ...] = (tenant,) if tenant else ()
    if kind == "retry_storm":
        region = (panel.keys["region"] == place.region).to_numpy()
        tenants = telling.impact(scene, panel, scene.measure("base", "errors"), region, since).tenants
    weight = {"burst": 3.5, "retry_storm": 5.5, "traffic_surge": 2.5, "traffic_drop": 3.5}[kind]
    return Finding(
        kind, place, "critical" if kind == "retry_storm" else "warning",
        telling.score(weight, ratio, float(abs(scan.observed[index] - scan.expected[index]))),
        telling.aware(scene, since), scene.until, effect,
        telling.confidence("scan of the last minutes against the baseline's median and MAD", float(scan.p[index]),
                           float(groups.p_corrected[index]), float(scan.observed[index]),
                           telling.unknown_share(panel, which, since)),
        sentence, tenants, (f"tenant={tenant}",) if kind == "burst" else (), tenant_scope=tenant,
        exemplars=telling.exemplars(scene, place, since, errors=kind == "retry_storm", tenants=tenants),
        sql=telling.sql_of(scene, place, since, figure="sum(count) / 60 AS spans_per_second"),
    )  # fmt: skip
