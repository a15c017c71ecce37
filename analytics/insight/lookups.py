"""Cache hit ratios: more misses than the same caches, tenants and operations usually have."""

from __future__ import annotations

from analytics.insight import telling
from analytics.insight.finding import Finding, Place
from analytics.insight.scene import Scene
from analytics.insight.shares import Spot, clear, spots

LEVELS = (("tenant", "destination"), ("region",), ("region", "tenant"), ("region", "destination"),
          ("region", "tenant", "destination"))  # fmt: skip


def find(scene: Scene) -> list[Finding]:
    """Findings 'hit_ratio', each at the regions, tenants and caches that hold the excess of misses."""
    panel = scene.panel("destination")
    if not panel.size:
        return []
    measure = scene.measure("destination", "misses")
    found = spots(scene, panel.keys, measure, LEVELS, ("tenant", "destination", "region", "operation"))
    return clear(scene, [_told(scene, spot) for spot in found])


def _told(scene: Scene, spot: Spot) -> Finding:
    panel, measure = scene.panel("destination"), scene.measure("destination", "misses")
    tenant, since = spot.values.get("tenant"), spot.since
    hurt = telling.impact(scene, panel, measure, spot.which, since)
    tenants = (tenant,) if tenant else hurt.tenants
    effect = telling.share_effect("miss_ratio", measure, spot.which, since)
    p, odds, low, high = telling.stratified_test(
        *telling.now_and_before(scene, "destination", "misses", spot.which, since)
    )
    place = Place(
        spot.values.get("region"), operation=spot.values.get("operation"), destination=spot.values.get("destination")
    )
    whom = f"for tenant {tenant}" if tenant else f"({hurt.words()} are hurt)"
    sentence = (
        f"The cache hit ratio {place.words()} fell since {scene.span.time(since):%H:%M} to "
        f"{telling.percent(1 - effect.value)} (usually {telling.percent(1 - effect.baseline)}) {whom}."
    )
    return Finding(
        "hit_ratio", place, telling.severity(effect.ratio, hurt.share),
        telling.score(5.0, effect.ratio, spot.excess, 0 if tenant else hurt.share), telling.aware(scene, since),
        scene.until, effect,
        telling.confidence(
            f"Cochran-Mantel-Haenszel, now against the baseline: odds ratio {odds:.1f} ({low:.1f} to {high:.1f})",
            p, max(p, spot.p_corrected), float(measure.trials[spot.which][:, since:].sum()),
            telling.unknown_share(panel, spot.which, since),
        ),
        sentence, tenants, tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(place.region), since, errors=False, tenants=tenants),
        sql=telling.sql_of(scene, place, since, "rollup_destination_1m",
                           "sum(hits) / nullif(sum(hits + misses), 0) AS hit_ratio"),
    )  # fmt: skip
