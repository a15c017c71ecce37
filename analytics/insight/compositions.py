"""Traffic that goes over from some tenants to others: the mix changes, the whole does not.

What is gained and what is lost is counted apart, in steady demand (see `traced.demand`), against each tenant's median.
Moved is the smaller of both, as a share of the whole: a burst loses nothing, an outage gains nothing, and neither is a
shift.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.insight import telling
from analytics.insight.changes import began
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.mix import by_mix_of
from analytics.insight.panel import Floats, dense
from analytics.insight.scene import Scene

_MINUTES = 3
_MOVED_MIN = 0.06
_DEVIATION_MIN = 6.0
_NAMED_SHARE = 0.25
_BALANCE_MIN = 0.25
"""Least ratio of what is gained to what is lost, or the other way round: a burst beside an ordinary ebb is no shift.
Far from 1, for spans are counted, of which an operation of one tenant has many more than that of another."""


def find(scene: Scene) -> list[Finding]:
    """A finding 'mix_shift' for each region in which traffic went over from tenants to others."""
    known = scene.evidence.demand.filter(pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end)
    found = []
    for region in known["region"].unique().sort():
        here = known.filter(pl.col("region") == region)
        keys = here.select("tenant").unique().sort("tenant")
        demand = dense(scene.span, here, keys, "steady_count")
        told = _shift(scene, str(region), keys["tenant"], demand)
        found += [told] if told is not None else []
    return found


def moved(demand: Floats, usual: Floats) -> Floats:
    """The share of the usual whole that went over, by minute: demand by tenant and minute, `usual` by tenant."""
    change = demand - usual[:, None]
    gained, lost = np.maximum(change, 0).sum(0), np.maximum(-change, 0).sum(0)
    share: Floats = np.minimum(gained, lost) / max(float(usual.sum()), 1.0)
    return share


def _shift(scene: Scene, region: str, tenants: pl.Series, demand: Floats) -> Finding | None:
    smooth = np.stack([np.convolve(row, np.full(_MINUTES, 1 / _MINUTES), mode="valid") for row in demand])
    baseline = slice(0, scene.span.baseline - _MINUTES + 1)
    usual = np.median(demand[:, : scene.span.baseline], axis=1)
    share = moved(smooth, usual)
    middle = float(np.median(share[baseline]))
    noise = 1.4826 * float(np.median(np.abs(share[baseline] - middle)))
    raised = share[-1] - middle
    if raised < max(_MOVED_MIN, _DEVIATION_MIN * noise) or share[-1] < float(share[baseline].max()):
        return None
    change = (smooth[:, -1] - usual) / max(float(usual.sum()), 1.0)
    lost_by_minute = np.maximum(usual[:, None] - smooth, 0).sum(0)
    if lost_by_minute[-1] < lost_by_minute[baseline].max():
        return None
    gains, losses = change > _NAMED_SHARE * raised, change < -_NAMED_SHARE * raised
    gained, lost = change[gains].sum(), -change[losses].sum()
    if not gains.any() or not losses.any() or min(gained, lost) < _BALANCE_MIN * max(gained, lost):
        return None
    since = began(np.concatenate([np.full(_MINUTES - 1, middle), share]), scene.span.count - _MINUTES)
    gaining, losing = (tenants.filter(pl.Series(which)) for which in (gains, losses))
    return _told(scene, region, gaining, losing, since, raised, middle)


def _told(
    scene: Scene, region: str, gaining: pl.Series, losing: pl.Series, since: int, raised: float, middle: float
) -> Finding:
    by_rates, by_mix = by_mix_of(scene, region, since)
    place = Place(region)
    effect = Effect("moved_share", middle + raised, middle, (middle + raised) / max(middle, 0.01))
    whom = f"from {telling.tenants_words(tuple(losing))} to {telling.tenants_words(tuple(gaining))}"
    sentence = (
        f"Traffic in {region} goes over {whom} since {scene.span.time(since):%H:%M} ({telling.percent(raised)} of it); "
        f"the share of slow spans changes by {100 * by_mix:+.1f} points for that mix alone, "
        f"and by {100 * by_rates:+.1f} for how fast each of them is."
    )
    return Finding(
        "mix_shift", place, "info", telling.score(1.0, effect.ratio, 1.0), telling.aware(scene, since), scene.until,
        effect,
        telling.confidence("moved share against its usual spread (MAD); Kitagawa decomposition", None, None,
                           float(scene.panel("base").counts["count"][:, since:].sum())),
        sentence, (*gaining, *losing), tuple(f"tenant={name}" for name in gaining),
        sql=telling.sql_of(scene, place, since, figure="count(DISTINCT tenant) AS tenants"),
    )  # fmt: skip
