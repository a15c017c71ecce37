"""Slow worsening towards a limit: what rises minute by minute, and when it will be exhausted.

A step is an incident; a ramp is something that fills up. A ramp is told where the mean duration since a beginning rises
with time (Kendall's tau, Mann 1945), rose by less than half of it at once, and a straight line through its logarithm
(slopes after Theil and Sen) fits better than a step at the best place. The time left is where the line meets the limit,
with the interval of the slope.

Few minutes are too few to tell order from chance; but against its peers, which share tenants, operations and time of
day, a host is steady. A ramp is told early where a straight line through the logarithm of its durations over theirs
rises steeply for what that usually varies by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from analytics.change import duration
from analytics.insight import baselines, telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Bools, Floats, Ints
from analytics.insight.panel import cell_values_ns
from analytics.insight.scene import HISTORY_MIN, Scene

LIMIT_RATIO = 20.0
"""Exhausted: durations of 20 times the usual, by when callers give up; no limit of the resource itself is known."""
_MINUTES = (8, 12, 18, 25, 40)
_EARLY_MINUTES = (5, 6, 7)
_EARLY_RATIO_MIN = 1.15
_EARLY_DEVIATION_MIN = 6.0
_PER_MINUTE_MIN = 60
_NORMAL_95 = 1.645
_TAU_MIN = 0.6
_RISE_MIN = 1.5
_SLOW_RATIO_MIN = 1.3
_COUNT_PER_MINUTE_MIN = 10
_BUSY_MINUTES = 8
_BY = ("region", "service_name", "host")
_SERVING = ("server", "consumer")
_TEST = "Kendall's tau of duration and time, slopes after Theil and Sen"
_EARLY_TEST = "slope of the duration over that of its peers, against what it varies by"


@dataclass(frozen=True)
class Ramp:
    """A rise over the last `minutes`, told by `test`: by `rise` in all; `left_minutes` (low, high) to LIMIT_RATIO."""

    minutes: int
    rise: float
    p: float
    left_minutes: tuple[float, float]
    test: str


def find(scene: Scene) -> list[Finding]:
    """A finding 'exhaustion' for each host of a service that gets slower and slower."""
    panel = scene.panel("host")
    if not panel.size:
        return []
    serving = panel.keys["kind"].is_in(_SERVING).to_numpy()
    keys, of = panel.groups(_BY)
    of_serving = np.where(serving, of, -1)
    late = panel.tally("count").last_by(of_serving, keys.height, min(_BUSY_MINUTES, scene.span.count))
    busiest = late.min(1) >= _COUNT_PER_MINUTE_MIN
    if not busiest.any():
        return []
    # The typical duration: of the mean cell, so that outliers weigh little.
    typical = cell_values_ns(panel.mean_cell(_BY, _SERVING))
    ramps = _early(scene, keys, typical, late)
    for index in np.flatnonzero(busiest & _may_rise(typical)):
        ramp = rising(typical[index], float(np.nanmedian(typical[index, : scene.span.baseline])))
        if ramp is not None:
            ramps[int(index)] = ramp
    if not ramps:
        return []
    ramps = dict(sorted(ramps.items()))
    count = panel.tally("count").by(of_serving, keys.height)[0]
    return [
        _told(scene, keys.row(index), ramp, typical[index], count[index])
        for (index, ramp), slow in zip(ramps.items(), _slow(scene, of, list(ramps)), strict=True)
        if slow
    ]


def _slow(scene: Scene, of: Ints, hosts: list[int]) -> Bools:
    """Which of some hosts (groups `of` the series, ascending) have clearly more slow spans than usual."""
    mine = np.isin(of, hosts)
    measure = scene.measure("host", "slow").rows(mine).by(np.searchsorted(hosts, of[mine]), len(hosts))
    found: Bools = baselines.scan(measure, scene.span).ratio > _SLOW_RATIO_MIN
    return found


def _may_rise(values: Floats) -> Bools:
    """Which rows go with time over one of _MINUTES as much as `rising` asks for."""
    found = np.zeros(len(values), dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        for minutes in _MINUTES:
            if minutes <= values.shape[1]:
                found |= concordance(np.log(values[:, -minutes:])) >= _TAU_MIN - 1e-6
    return found


def _early(scene: Scene, keys: pl.DataFrame, typical: Floats, late: Floats) -> dict[int, Ramp]:
    """Ramps of hosts against their peers, by row of `keys`; `late` has counts of spans by minute, the last ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        longer = np.log(typical)
    service = keys.select(pl.struct("region", "service_name").rank("dense")).to_series().to_numpy()
    busy = late[:, -max(_EARLY_MINUTES) :].min(1) >= _PER_MINUTE_MIN
    found = {}
    for index in np.flatnonzero(busy):
        peers = (service == service[index]) & (np.arange(len(service)) != index)
        if not (peers & busy).any():
            continue
        ramp = budding(longer[index] - longer[peers & busy].mean(0), scene.span.baseline)
        if ramp is not None:
            found[int(index)] = ramp
    return found


def budding(gap: Floats, baseline: int) -> Ramp | None:
    """The longest of _EARLY_MINUTES over which `gap`, a logarithm by minute, ramps up, None where none does.

    How much it varies is measured in the first `baseline` minutes, as that of `baselines.scan`; least squares.
    """
    usual = gap[:baseline][np.isfinite(gap[:baseline])]
    if len(usual) < HISTORY_MIN or not np.isfinite(gap[-max(_EARLY_MINUTES) :]).all():
        return None
    middle = float(np.median(usual))
    now = float(gap[-2:].mean()) - middle
    if now < np.log(_EARLY_RATIO_MIN):
        return None
    high = (float(np.quantile(usual, 0.95)) - middle) / _NORMAL_95
    spread = max(1.4826 * float(np.median(np.abs(usual - middle))), high, 1e-6)
    best = None
    for minutes in _EARLY_MINUTES:
        y, x = gap[-minutes:] - middle, np.arange(minutes, dtype=float)
        squares = float(((x - x.mean()) ** 2).sum())
        slope, error = float((x - x.mean()) @ y) / squares, spread / float(np.sqrt(squares))
        is_ramp = concordance(y) >= _TAU_MIN - 1e-6 and _is_ramp(y, x, slope, float(y.mean()) - slope * float(x.mean()))
        if slope >= _EARLY_DEVIATION_MIN * error and is_ramp:
            to_go = max(float(np.log(LIMIT_RATIO)) - now, 0.0)
            left = (to_go / (slope + 1.96 * error), to_go / (slope - 1.96 * error))
            p = float(stats.norm.sf(slope / error))
            best = Ramp(minutes, float(np.exp(slope * (minutes - 1))), p, left, _EARLY_TEST)
    return best


def rising(values: Floats, usual: float) -> Ramp | None:
    """The longest stretch up to the end over which `values` ramp up from `usual`, None where none does."""
    best = None
    for minutes in _MINUTES:
        if minutes > len(values) // 2 or not np.isfinite(values[-minutes:]).all() or usual <= 0:
            continue
        y = np.log(values[-minutes:])
        x = np.arange(minutes, dtype=float)
        if concordance(y) < _TAU_MIN - 1e-6:
            continue
        tau, p = stats.kendalltau(x, y)
        if tau < _TAU_MIN or p > 0.001:
            continue
        slope, intercept, low, high = stats.theilslopes(y, x, alpha=0.95)
        rise = float(np.exp(slope * (minutes - 1)))
        if low <= 0 or rise < _RISE_MIN or not _is_ramp(y, x, float(slope), float(intercept)):
            continue
        to_go = np.log(LIMIT_RATIO * usual) - float(y[-3:].mean())
        best = Ramp(minutes, rise, float(p), (max(to_go / high, 0.0), max(to_go / low, 0.0)), _TEST)
    return best


def concordance(y: Floats) -> Floats:
    """Kendall's tau of values and their order by row, without a p value: most series rise too little to ask for one."""
    later, earlier = np.tril_indices(y.shape[-1], -1)
    signs = np.sign(y[..., later] - y[..., earlier])
    differing = np.maximum(np.count_nonzero(signs, axis=-1), 1)
    found: Floats = signs.sum(axis=-1) / np.sqrt(len(later) * differing)
    return found


def _is_ramp(y: Floats, x: Floats, slope: float, intercept: float) -> bool:
    line = float(((y - slope * x - intercept) ** 2).sum())
    steps = [((y[:k] - y[:k].mean()) ** 2).sum() + ((y[k:] - y[k:].mean()) ** 2).sum() for k in range(1, len(y))]
    jump = float(np.diff(y).max())
    return line < 0.8 * float(min(steps)) and jump < 0.5 * float(y[-1] - y[0])


def _told(scene: Scene, names: tuple[str, ...], ramp: Ramp, values: Floats, count: Floats) -> Finding:
    region, service, host = names
    since = scene.span.count - ramp.minutes
    usual = float(np.nanmedian(values[: scene.span.baseline]))
    now = float(values[-2:].mean())
    place = Place(region, service, host=host)
    low, high = ramp.left_minutes
    sentence = (
        f"{service} on host {host} in {region} gets slower minute by minute since {scene.span.time(since):%H:%M}: a "
        "typical "
        f"span takes {duration(now)} (usually {duration(usual)}); at this pace {LIMIT_RATIO:.0f} times the usual is "
        "reached "
        f"in {low:.0f} to {high:.0f} minutes."
    )
    panel, measure = scene.panel("host"), scene.measure("host", "slow")
    which = telling.every({"region": region, "service_name": service, "host": host}, panel.keys)
    hurt = telling.impact(scene, panel, measure, which, since)
    return Finding(
        "exhaustion", place, telling.severity(now / usual, hurt.share),
        telling.score(5.8, now / usual, float(count[-ramp.minutes :].sum()), hurt.share), telling.aware(scene, since),
        scene.until, Effect("typical_duration_ns", now, usual, now / usual),
        telling.confidence(ramp.test, ramp.p, ramp.p, float(count[-ramp.minutes :].sum())),
        sentence, hurt.tenants, (f"host={host}",),
        exemplars=telling.exemplars(scene, Place(region, service), since, errors=False),
        sql=telling.sql_of(scene, place, since, "rollup_host_1m"),
    )  # fmt: skip
