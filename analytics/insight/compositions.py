"""Traffic that goes over from some tenants to others: the mix changes, the whole does not.

Each tenant's demand (steady, see `traced.demand`) in the last minutes is set against that of the _BEFORE minutes before
them, and this change against the tenant's own usual ones: all changes of the baseline, over windows of the same length.
A slow rhythm cancels out, and a tenant that comes and goes by nature must change more. A shift is what some gain and
others lose at once, beyond anything that they did before, and beyond their medians: what a burst leaves at its end is
none. Moved is the smaller of both, as a share of the whole: a burst loses nothing, an outage gains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import sliding_window_view

from analytics.insight import telling
from analytics.insight.baselines import SCALES
from analytics.insight.changes import began
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Bools, Floats
from analytics.insight.mix import by_mix_of
from analytics.insight.scene import Scene

_BEFORE = 10
_WINDOWS_MIN = 8
_MOVED_MIN = 0.05
_GAIN_DEVIATION_MIN = 5.0
_LOSS_DEVIATION_MIN = 4.0
_BALANCE_MIN = 0.25
"""Least ratio of what is gained to what is lost, or the other way round: a burst beside an ordinary ebb is no shift.
Far from 1, for spans are counted, of which an operation of one tenant has many more than that of another."""
_MEDIAN_VARIANCE = np.pi / 2
"""Of a median of counts, to that of their mean: what independent requests make steady demand vary by."""
_NORMAL_95 = 1.645
_NEARLY_ALL = 1.001
"""Sums of the same are equal but for rounding."""


@dataclass(frozen=True)
class Shift:
    """What went over in the last `minutes`: `gains` and `losses` (a row a tenant) say who is a part of it, `share` how
    much of the whole, `usual_share` the median of that over earlier windows; `deviation` is the lesser of the largest
    gain's and the largest loss's."""

    minutes: int
    gains: Bools
    losses: Bools
    share: float
    usual_share: float
    deviation: float


def find(scene: Scene) -> list[Finding]:
    """A finding 'mix_shift' for each region in which traffic went over from tenants to others."""
    keys, demand = scene.demand
    found = []
    for region in keys["region"].unique().sort():
        here = keys["region"] == region
        mine = demand[here.to_numpy()]
        shift = shifted(mine, scene.span.baseline, scene.span.recent)
        if shift is not None:
            found.append(_told(scene, str(region), keys["tenant"].filter(here), mine, shift))
    return found


def shifted(demand: Floats, baseline: int, recent: int) -> Shift | None:
    """The clearest shift up to the end of demand by tenant and minute, within the last `recent` ones; None where there
    is none. The first `baseline` minutes tell what is usual."""
    usual = np.median(demand[:, :baseline], axis=1) if baseline else np.zeros(len(demand))
    lengths = [k for k in SCALES if k <= recent and baseline - _BEFORE - k >= _WINDOWS_MIN]
    found = [_over(demand, usual, baseline, minutes) for minutes in lengths]
    return max((one for one in found if one is not None), key=lambda one: one.deviation, default=None)


def changes(demand: Floats, minutes: int) -> Floats:
    """Means over `minutes` less those over the _BEFORE minutes before them: of all such windows, in their order."""
    up_to = np.cumsum(np.pad(demand.astype(float), ((0, 0), (1, 0))), axis=1)
    middle = np.arange(_BEFORE, demand.shape[1] - minutes + 1)
    late = (up_to[:, middle + minutes] - up_to[:, middle]) / minutes
    found: Floats = late - (up_to[:, middle] - up_to[:, middle - _BEFORE]) / _BEFORE
    return found


def _over(demand: Floats, usual: Floats, baseline: int, minutes: int) -> Shift | None:
    whole = max(float(usual.sum()), 1.0)
    if _MOVED_MIN * whole > _moved_last(demand, usual, minutes) * _NEARLY_ALL:
        return None
    change = changes(demand, minutes)
    lasting = _lasting(change, _means(demand, minutes) - usual[:, None])
    before, now = lasting[:, : baseline - _BEFORE - minutes + 1], lasting[:, -1]
    rose, fell = now > before.max(1), now < before.min(1)
    if _MOVED_MIN * whole > min(now[rose & (now > 0)].sum(), -now[fell & (now < 0)].sum()):
        return None
    least = _spread(change[:, : before.shape[1]], usual, minutes)
    up, down = (np.maximum(least, np.quantile(side, 0.95, axis=1) / _NORMAL_95) for side in (before, -before))
    gains, losses = (now >= _GAIN_DEVIATION_MIN * up) & rose, (now <= -_LOSS_DEVIATION_MIN * down) & fell
    gained, lost = now[gains].sum(), -now[losses].sum()
    share = float(min(gained, lost)) / whole
    if share < _MOVED_MIN or share * whole < _BALANCE_MIN * max(gained, lost):
        return None
    clearest = float(min((now / up).max(), (-now / down).max()))
    return Shift(minutes, gains, losses, share, float(np.median(_moved(before))) / whole, clearest)


def _moved_last(demand: Floats, usual: Floats, minutes: int) -> float:
    """What went over at most up to the end of demand, whoever is a part of it."""
    late = demand[:, -minutes:].mean(1)
    now = _lasting(late - demand[:, -minutes - _BEFORE : -minutes].mean(1), late - usual)
    return float(min(now[now > 0].sum(), -now[now < 0].sum()))


def _lasting(change: Floats, level: Floats) -> Floats:
    """What of a change leads away from the usual: `level` is how far from it each window is."""
    found: Floats = np.where(change > 0, np.clip(level, 0, change), np.clip(level, change, 0))
    return found


def _means(demand: Floats, minutes: int) -> Floats:
    """The means that `changes` tells the changes of."""
    found: Floats = sliding_window_view(demand[:, _BEFORE:], minutes, axis=1).mean(axis=2)
    return found


def _spread(change: Floats, usual: Floats, minutes: int) -> Floats:
    """The usual scale of changes, which bursts do not move: that of independent requests, or 1.4826 x MAD."""
    counting = np.sqrt(_MEDIAN_VARIANCE * np.maximum(usual, 1.0) * (1 / minutes + 1 / _BEFORE))
    mad = np.median(np.abs(change - np.median(change, axis=1)[:, None]), axis=1)
    found: Floats = np.maximum(counting, 1.4826 * mad)
    return found


def _moved(change: Floats) -> Floats:
    """What went over by window: the smaller of all gains and all losses."""
    found: Floats = np.minimum(np.maximum(change, 0).sum(0), np.maximum(-change, 0).sum(0))
    return found


def _told(scene: Scene, region: str, tenants: pl.Series, demand: Floats, shift: Shift) -> Finding:
    gaining, losing = (tenants.filter(pl.Series(which)) for which in (shift.gains, shift.losses))
    since = began(demand[shift.gains].sum(0), scene.span.count - shift.minutes)
    by_rates, by_mix = by_mix_of(scene, region, since)
    place = Place(region)
    effect = Effect("moved_share", shift.share, shift.usual_share, shift.share / max(shift.usual_share, 0.01))
    whom = f"from {telling.tenants_words(tuple(losing))} to {telling.tenants_words(tuple(gaining))}"
    sentence = (
        f"Traffic in {region} goes over {whom} since {scene.span.time(since):%H:%M} "
        f"({telling.percent(shift.share)} of it); the share of slow spans changes by {100 * by_mix:+.1f} points for "
        f"that mix alone, and by {100 * by_rates:+.1f} for how fast each of them is."
    )
    return Finding(
        "mix_shift", place, "info", telling.score(1.0, effect.ratio, 1.0), telling.aware(scene, since), scene.until,
        effect,
        telling.confidence("changes of demand against each tenant's usual ones; Kitagawa decomposition", None, None,
                           float(scene.panel("base").counts["count"][:, since:].sum())),
        sentence, (*gaining, *losing), tuple(f"tenant={name}" for name in gaining),
        sql=telling.sql_of(scene, place, since, figure="count(DISTINCT tenant) AS tenants"),
    )  # fmt: skip
