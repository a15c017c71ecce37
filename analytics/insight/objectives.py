"""Service level objectives: how fast error budgets burn, in two windows at once, and when they are gone.

The multi-window, multi-burn-rate alerts of Google's Site Reliability Workbook (chapter 5): the share of bad spans, over
what the objective allows, must exceed the factor in a long and in a short window: 14.4 in 1 h and 5 min, 6 in 6 h and
30 min, 1 in 3 d and 6 h. Pairs longer than the evidence are left out. Bad: failed, or slower than the objective's
latency (to the cell of durations, 17 %). Served spans count, of kind server and consumer.
"""

from __future__ import annotations

import math

import numpy as np

from analytics.buckets import LOG_GAMMA
from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.grains import BUCKETS_PER_CELL
from analytics.insight.measures import Bools, Floats
from analytics.insight.panel import Panel
from analytics.insight.scene import Scene
from collector.config import Objective

PAIRS = ((60, 5, 14.4), (360, 30, 6.0), (4320, 360, 1.0))
"""Minutes of the long and the short window, and the burn rate that both must exceed."""
BUDGET_HOURS = 30 * 24
_LAST_MINUTES = 2
"""That must burn too: an incident that is over does not begin to burn when the long window is full of it."""
_SERVED = ("server", "consumer")


def find(scene: Scene) -> list[Finding]:
    """A finding 'slo_burn' for each objective and region that burns its budget."""
    panel = scene.coarse("base")
    found = []
    for name, objective in scene.config.objectives.items():
        of_class = _of(objective, panel)
        slow = _slow(objective, panel)
        for region in panel.keys["region"].unique().sort():
            which = of_class & (panel.keys["region"] == region).to_numpy()
            if which.any():
                told = _burning(scene, name, objective, str(region), which, slow)
                found += [told] if told is not None else []
    return found


def burn_rate(bad: float, total: float, target: float) -> float:
    """The share of bad spans over the share that the objective allows; 0 without spans."""
    return bad / total / (1 - target) if total else 0.0


def _of(objective: Objective, panel: Panel) -> Bools:
    wanted = {"component": objective.component, "service_name": objective.service, "operation": objective.operation}
    mask = telling.every({name: value for name, value in wanted.items() if value}, panel.keys)
    served: Bools = mask & panel.keys["kind"].is_in(_SERVED).to_numpy()
    return served


def _slow(objective: Objective, panel: Panel) -> Floats:
    """Spans slower than the objective's latency, by series and minute."""
    if objective.latency_ms is None:
        return np.zeros_like(panel.counts["count"])
    cell = math.ceil(math.log(objective.latency_ms * 1e6) / LOG_GAMMA) // BUCKETS_PER_CELL + 1
    return panel.beyond(np.full(panel.size, float(cell)))


def _burning(scene: Scene, name: str, objective: Objective, region: str, which: Bools, slow: Floats) -> Finding | None:
    counts = scene.coarse("base").counts
    total = counts["count"][which].sum(0)
    # What is slow and failed counts once at most as often as there are spans.
    bad = np.minimum(counts["errors"][which].sum(0) + slow[which].sum(0), total)
    for long, short, factor in PAIRS:
        if long > scene.span.count or total[-long:].sum() < scene.config.volume_min:
            continue
        rates = [burn_rate(bad[-length:].sum(), total[-length:].sum(), objective.target) for length in (long, short)]
        goes_on = burn_rate(bad[-_LAST_MINUTES:].sum(), total[-_LAST_MINUTES:].sum(), objective.target) > 1
        if min(rates) > factor and goes_on:
            return _told(scene, name, objective, region, which, (long, short, factor), rates, bad, total)
    return None


def _told(
    scene: Scene, name: str, objective: Objective, region: str, which: Bools, pair: tuple[int, int, float],
    rates: list[float], bad: Floats, total: Floats,
) -> Finding:  # fmt: skip
    long, short, factor = pair
    over = bad / np.maximum(total, 1) > factor * (1 - objective.target)
    since = scene.span.count - long + int(over[-long:].argmax())
    hours = BUDGET_HOURS / rates[0]
    share = float(bad[-long:].sum() / total[-long:].sum())
    effect = Effect("bad_share", share, 1 - objective.target, rates[0])
    place = Place(region, objective.service or None, objective.operation or None)
    panel = scene.coarse("base")
    sentence = (
        f"The objective {name!r} ({100 * objective.target:g} % good) burns its budget {rates[0]:.0f} times too fast in "
        f"{region} over {long} minutes ({rates[1]:.0f} times over {short}): at this pace a budget of 30 days lasts "
        f"{hours:.0f} hours."
    )
    return Finding(
        "slo_burn", place, "critical" if factor >= 6 else "warning",
        telling.score(2.0, rates[0], float(bad[-long:].sum())), telling.aware(scene, since), scene.until, effect,
        telling.confidence("burn rate in two windows", None, None, float(total[-long:].sum()),
                           telling.unknown_share(panel, which, since)),
        sentence, exemplars=telling.exemplars(scene, place, since, errors=True), sql=telling.sql_of(scene, place,
        since), tenant_scope=None,
    )  # fmt: skip
