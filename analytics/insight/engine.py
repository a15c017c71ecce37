"""All detectors on one look at the evidence: findings, folded and ranked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from analytics.insight import (
    blast,
    clocks,
    compositions,
    deploys,
    forecasting,
    headroom,
    hosts,
    keys,
    lookups,
    mix,
    objectives,
    places,
    reach,
    regions,
    retries,
    rhythm,
    telling,
    topics,
    traffic,
    trends,
)
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Finding
from analytics.insight.folding import fold
from analytics.insight.scene import Scene
from collector.config import InsightConfig

DETECTORS: tuple[Callable[[Scene], list[Finding]], ...] = (
    places.find,
    deploys.find,
    hosts.find,
    lookups.find,
    traffic.find,
    retries.find,
    topics.find,
    keys.find,
    clocks.find,
    trends.find,
    mix.find,
    compositions.find,
    objectives.find,
    forecasting.find,
    blast.find,
    headroom.find,
)


def findings(
    evidence: Evidence,
    until: datetime,
    window: timedelta,
    config: InsightConfig | None = None,
    past: rhythm.Past | None = None,
) -> list[Finding]:
    """What is wrong at `until` (aware), most important first; pure but for `past`.

    Judges the last minutes (`recent_minutes`, at most `window`) of evidence against those before them. Without
    HISTORY_MIN minutes before them there is nothing to compare with, and no finding: see `has_history`. `past` tells of
    the same time of other days (`rhythm.of_reader`); it is asked where something was found.
    """
    settings = config or InsightConfig()
    recent = max(3, min(settings.recent_minutes, int(window / timedelta(minutes=1))))
    scene = Scene(evidence, until, settings.model_copy(update={"recent_minutes": recent}))
    if not scene.has_history:
        return []
    found = regions.family([finding for detector in DETECTORS for finding in detector(scene)])
    told = fold(rhythm.weighed(found, past, until, settings) if past else found)
    reaching = [reach.with_reach(scene, telling.with_unknown_share(scene, finding)) for finding in told]
    return regions.with_others(scene, reaching)


def has_history(evidence: Evidence, until: datetime, config: InsightConfig | None = None) -> bool:
    """Whether there is enough history at `until` to say anything; else the answer is "insufficient history"."""
    return Scene(evidence, until, config or InsightConfig()).has_history
