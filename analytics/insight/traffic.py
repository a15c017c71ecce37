"""How much is asked for: bursts of a tenant, surges and drops of many, and retry storms.

A surge that many tenants share at the same time, while calls fail, is no demand: clients repeat what failed. Whether
many share it is told by the effective number of tenants (inverse Simpson index of the shares of the excess).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.locating import effective_number, located
from analytics.insight.panel import Bools, summed
from analytics.insight.scene import Groups, Scene
from analytics.insight.scene import traffic as measured
from analytics.insight.shares import dense

_MANY = 3.0
_LATER_MINUTES = 2
_STORM_RATIO = 1.25
_STORM_ERROR_RATIO = 2.0
_FEW_EXPECTED = 30.0
_BURST_RATIO = 2.0
_BURST_SPANS_A_MINUTE = 90


def find(scene: Scene) -> list[Finding]:
    """Findings 'burst', 'traffic_surge', 'traffic_drop' and 'retry_storm'."""
    return [*_bursts(scene), *_regions(scene, 1), *_regions(scene, -1), *_drops(scene)]


def _bursts(scene: Scene) -> list[Finding]:
    """Tenants whose steady demand multiplies, a finding each, in the region that holds the excess where it is one."""
    known = scene.evidence.demand.filter(pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end)
    if known.is_empty():
        return []
    keys = known.select("tenant", "region").unique().sort("tenant", "region")
    steady = dense(scene, known, keys, lambda frame: frame["steady_count"])
    tenants = keys.select("tenant").unique(maintain_order=True).with_row_index("group")
    of = keys.join(tenants, on="tenant", maintain_order="left")["group"].to_numpy().astype(np.intp)
    groups = scene.judged(tenants.drop("group"), of, measured(summed(steady, of, tenants.height), scene.span))
    found = []
    for index in np.flatnonzero(groups.flagged):
        scan = groups.scan
        more = float(scan.observed[index] - scan.expected[index]) / int(scan.length[index])
        if scan.ratio[index] < _BURST_RATIO or more < _BURST_SPANS_A_MINUTE:
            continue
        excess = (steady - np.median(steady[:, : scene.span.baseline], axis=1)[:, None])[
            :, int(scan.since[index]) :
        ].sum(1)
        expected = np.maximum(np.median(steady[:, : scene.span.baseline], axis=1), 1.0)
        values, _ = located(keys, excess, expected, ("region",), of == index)
        tenant = str(groups.keys["tenant"][int(index)])
        found.append(_told(scene, groups, int(index), "burst", Place(values.get("region")), tenant))
    return found


def _drops(scene: Scene) -> list[Finding]:
    groups = scene.level("base", "demand", ("region", "tenant"), -1)
    found = []
    for index in np.flatnonzero(groups.flagged):
        expected_a_minute = groups.scan.expected[index] / max(int(groups.scan.length[index]), 1)
        if expected_a_minute >= _FEW_EXPECTED and groups.scan.observed[index] < 0.2 * groups.scan.expected[index]:
            region, tenant = (str(value) for value in groups.keys.row(int(index)))
            found.append(_told(scene, groups, int(index), "traffic_drop", Place(region), tenant))
    return found


def _regions(scene: Scene, sign: int) -> list[Finding]:
    groups = scene.level("base", "demand", ("region",), sign)
    found = []
    for index in range(groups.keys.height):
        storm = sign > 0 and _is_storm(scene, groups, index)
        if not groups.flagged[index] and not storm:
            continue
        tenants = _tenants(scene, groups, index, sign)
        if sign > 0 and tenants < _MANY:
            continue
        kind: Kind = "traffic_drop" if sign < 0 else "retry_storm" if storm else "traffic_surge"
        found.append(_told(scene, groups, index, kind, Place(str(groups.keys["region"][index])), None))
    return found


def _tenants(scene: Scene, groups: Groups, index: int, sign: int) -> float:
    """Over how many tenants the excess spreads."""
    panel, demand = scene.panel("base"), scene.demand
    since = int(groups.scan.since[index])
    which = groups.of == index
    keys, of = panel.groups(("tenant",))
    excess = sign * (demand.observed - np.median(demand.observed[:, : scene.span.baseline], axis=1)[:, None])
    return effective_number(np.bincount(of[which], weights=excess[which][:, since:].sum(1), minlength=keys.height))


def _is_storm(scene: Scene, groups: Groups, index: int) -> bool:
    """Many tenants ask for more in the same minutes in which calls fail, not before."""
    region = str(groups.keys["region"][index])
    errors = scene.level("base", "errors", ("region",))
    row = np.flatnonzero((errors.keys["region"] == region).to_numpy())
    if not len(row) or not errors.flagged[row[0]] or errors.scan.ratio[row[0]] < _STORM_ERROR_RATIO:
        return False
    begun = int(errors.scan.since[row[0]])
    demand = groups.measure.observed[index]
    before = np.median(demand[max(0, begun - 15) : begun]) if begun else 0.0
    spread = 1.4826 * np.median(np.abs(demand[:begun] - np.median(demand[:begun]))) if begun else 0.0
    now = demand[begun:]
    raised = (now > before + 3 * max(spread, np.sqrt(before))).mean() if len(now) else 0.0
    return bool(
        len(now) >= 2
        and now.mean() >= _STORM_RATIO * before
        and raised >= 0.6
        and groups.scan.since[index] >= begun - _LATER_MINUTES
        and _tenants(scene, errors, int(row[0]), 1) >= _MANY
    )


def _told(scene: Scene, groups: Groups, index: int, kind: Kind, place: Place, tenant: str | None) -> Finding:
    panel, scan = scene.panel("base"), groups.scan
    since = int(scan.since[index])
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
    tenants = (tenant,) if tenant else ()
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
