"""Cache hit ratios: more misses than the same caches, tenants and operations usually have."""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.insight import telling
from analytics.insight.finding import Finding, Place
from analytics.insight.locating import locate
from analytics.insight.scene import Groups, Scene

LEVELS = (("region",), ("region", "tenant"), ("region", "destination"), ("region", "tenant", "destination"))


def find(scene: Scene) -> list[Finding]:
    """A finding 'hit_ratio' for each region where misses stand out, at the tenant and cache that hold the excess."""
    if not scene.panel("destination").size:
        return []
    best: dict[str, tuple[Groups, int]] = {}
    for level in LEVELS:
        groups = scene.level("destination", "misses", level)
        for index in np.flatnonzero(groups.flagged):
            region = str(groups.keys["region"][int(index)])
            if region not in best or groups.scan.z[index] > best[region][0].scan.z[best[region][1]]:
                best[region] = (groups, int(index))
    return [_told(scene, region, *one) for region, one in best.items()]


def _told(scene: Scene, region: str, groups: Groups, index: int) -> Finding:
    panel, measure = scene.panel("destination"), scene.measure("destination", "misses")
    since = int(groups.scan.since[index])
    which = (panel.keys["region"] == region).to_numpy()
    excess = (measure.observed - measure.expected)[which][:, since:].sum(1)
    expected = measure.expected[which][:, since:].sum(1)
    located, inside = locate(panel.keys.filter(pl.Series(which)), excess, expected, ("destination", "tenant"))
    which[which] = inside
    tenant = located.get("tenant")
    hurt = telling.impact(scene, panel, measure, which, since)
    tenants = (tenant,) if tenant else hurt.tenants
    effect = telling.share_effect("miss_ratio", measure, which, since)
    p, odds, low, high = telling.stratified_test(*telling.now_and_before(scene, "destination", "misses", which, since))
    place = Place(region, destination=located.get("destination"))
    sentence = (
        f"The cache hit ratio {place.words()} fell since {scene.span.time(since):%H:%M} to "
        f"{telling.percent(1 - effect.value)} (usually {telling.percent(1 - effect.baseline)}), for "
        f"{telling.tenants_words(tenants) if tenants else 'all tenants'} ({hurt.words()} are hurt)."
    )
    return Finding(
        "hit_ratio", place, telling.severity(effect.ratio, hurt.share),
        telling.score(5.0, effect.ratio, float(excess[inside].sum()), hurt.share), telling.aware(scene, since), scene.until,
        effect,
        telling.confidence(
            f"Cochran-Mantel-Haenszel, now against the baseline: odds ratio {odds:.1f} ({low:.1f} to {high:.1f})",
            p, max(p, float(groups.p_corrected[index])), float(measure.trials[which][:, since:].sum()),
            telling.unknown_share(panel, which, since),
        ),
        sentence, tenants, tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(region), since, errors=False, tenants=tenants),
        sql=telling.sql_of(scene, place, since, "rollup_destination_1m",
                           "sum(hits) / nullif(sum(hits + misses), 0) AS hit_ratio"),
    )  # fmt: skip
