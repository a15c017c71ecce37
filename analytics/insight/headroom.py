"""How much more load a service takes before it gets slow: the knee of latency over load.

By minute, p95 latency of served spans against their rate, fitted by a + b x / (m - x): with x / m the utilisation this
is how the mean wait of a single queue grows (Pollaczek-Khinchine for M/G/1, Kingman, "The single server queue in heavy
traffic", 1961). The capacity m is profiled, a and b are least squares. It is information, no alarm, and silent unless
the data can say: load that varies, a monotonic relation (Spearman), a fit much better than a constant (F test), and a
capacity that is bounded from above by the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analytics.change import duration
from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Bools, Floats, Ints, summed
from analytics.insight.panel import Panel, cell_values_ns
from analytics.insight.scene import Scene
from analytics.insight.slices import CELLS

_SERVED = ("server", "consumer")
_MINUTES_MIN = 40
_VARIATION_MIN = 1.3
_P_MAX = 1e-4
_EXPLAINED_MIN = 0.5
_SLOWER = 2.0
_TOLD_MAX = 2.0
_WIDTH_MAX = 1.5
_GROUPS_AT_ONCE = 32
_CAPACITIES = np.geomspace(1.02, 20.0, 120)


@dataclass(frozen=True)
class Headroom:
    """How many times the peak rate the p95 reaches `limit_ns`, with its 95 % interval."""

    times: float
    low: float
    high: float
    limit_ns: float
    p: float


def headroom(rate: Floats, latency: Floats) -> Headroom | None:
    """Of rates and latencies (any unit) by minute: when latency is _SLOWER times what it is at the peak rate.

    None where the data cannot say.
    """
    if not _varies(rate):
        return None
    relation = stats.spearmanr(rate, latency)
    if not relation.statistic > 0 or relation.pvalue > _P_MAX:
        return None
    peak = float(rate.max())
    fits = [_fit(rate, latency, capacity * peak) for capacity in _CAPACITIES]
    errors = np.array([error for _, _, error in fits])
    best, free = int(errors.argmin()), len(rate) - 3
    total = float(((latency - latency.mean()) ** 2).sum())
    within = errors <= errors[best] * (1 + stats.f.ppf(0.95, 1, free) / free)
    p = float(stats.f.sf((total - errors[best]) / 2 / max(errors[best] / free, 1e-12), 2, free))
    if within[-1] or p > _P_MAX or errors[best] > (1 - _EXPLAINED_MIN) * total or fits[best][1] <= 0:
        return None
    limit = _SLOWER * _at(peak, _CAPACITIES[best] * peak, fits[best])
    reached = [_reached(limit, capacity, fit) for capacity, fit in zip(_CAPACITIES, fits, strict=True)]
    bounds = [reached[index] for index in np.flatnonzero(within)]
    return Headroom(reached[best], min(bounds), max(bounds), limit, p)


def _fit(rate: Floats, latency: Floats, capacity: float) -> tuple[float, float, float]:
    """a, b and the sum of squared errors."""
    wait = rate / (capacity - rate)
    spread = float(((wait - wait.mean()) ** 2).sum())
    slope = float(((wait - wait.mean()) * (latency - latency.mean())).sum()) / max(spread, 1e-300)
    base = float(latency.mean()) - slope * float(wait.mean())
    return base, slope, float(((latency - base - slope * wait) ** 2).sum())


def _at(rate: float, capacity: float, fit: tuple[float, float, float]) -> float:
    return fit[0] + fit[1] * rate / (capacity - rate)


def _reached(limit: float, capacity: float, fit: tuple[float, float, float]) -> float:
    """The rate, in peaks, at which a fit of a capacity (in peaks) comes to the limit."""
    over = (limit - fit[0]) / fit[1] if fit[1] > 0 else np.inf
    return float(capacity * over / (1 + over)) if np.isfinite(over) else float(capacity)


def find(scene: Scene) -> list[Finding]:
    """A finding 'headroom' for each service and region that gets slow at less than _TOLD_MAX times its peak."""
    panel = scene.coarse("base")
    keys, of = panel.groups(("region", "service_name"))
    of = np.where(panel.keys["kind"].is_in(_SERVED).to_numpy(), of, -1)
    totals = summed(panel.counts["count"], of, keys.height)
    enough = totals >= scene.config.volume_min
    candidates = [group for group in range(keys.height) if _varies(totals[group][enough[group]])]
    found = []
    for start in range(0, len(candidates), _GROUPS_AT_ONCE):
        chosen = candidates[start : start + _GROUPS_AT_ONCE]
        for group, latency in zip(chosen, _p95_ns(panel, of, chosen), strict=True):
            rate = totals[group][enough[group]].astype(float) / 60
            room = headroom(rate, latency[enough[group]])
            if room is not None and room.times <= _TOLD_MAX and room.high <= _WIDTH_MAX * room.low:
                found.append(_told(scene, keys.row(group), of == group, rate, room))
    return found


def _varies(rate: Floats) -> bool:
    """Whether there are enough minutes of different load."""
    if len(rate) < _MINUTES_MIN:
        return False
    low, high = np.quantile(rate, (0.05, 0.95))
    return bool(high >= _VARIATION_MIN * low)


def _p95_ns(panel: Panel, of: Ints, chosen: Sequence[int]) -> Floats:
    """By chosen group and minute, interpolated within its cell."""
    renumbered = np.full(max(int(of.max(initial=-1)) + 2, 1), -1, dtype=np.intp)
    renumbered[list(chosen)] = np.arange(len(chosen))
    up_to = np.cumsum(panel.minute_spreads(renumbered[of], len(chosen)), axis=2)
    target = 0.95 * up_to[..., -1]
    cell = np.minimum((up_to < target[..., None]).sum(2), CELLS - 1)
    before = np.where(cell > 0, _of_cell(up_to, np.maximum(cell - 1, 0)), 0.0)
    share = (target - before) / np.maximum(_of_cell(up_to, cell) - before, 1e-9)
    return cell_values_ns(cell + share - 0.5)


def _of_cell(up_to: Floats, cell: Ints) -> Floats:
    found: Floats = np.take_along_axis(up_to, cell[..., None], axis=2)[..., 0]
    return found


def _told(scene: Scene, names: tuple[str, ...], which: Bools, rate: Floats, room: Headroom) -> Finding:
    region, service = names
    peak = float(rate.max())
    place = Place(region, service)
    effect = Effect("spans_per_second", room.times * peak, peak, room.times, room.low, room.high)
    sentence = (
        f"At {room.times:.2f} times the busiest minute of the last {len(rate)} ({peak:.0f} spans/s), p95 of {service} "
        f"in {region} exceeds {duration(room.limit_ns)}, {_SLOWER:g} times what it is then ({room.low:.2f} to "
        f"{room.high:.2f} times)."
    )
    return Finding(
        "headroom", place, "info", telling.score(0.0, 1.0, 1.0), telling.aware(scene, 0), scene.until, effect,
        telling.confidence("F test of latency over load against a constant", room.p, None, float(rate.sum() * 60),
                           telling.unknown_share(scene.coarse("base"), which, 0)),
        sentence, sql=telling.sql_of(scene, place, 15, figure="sum(count) / 60 AS spans_per_second, "
        "latency_quantile_ns(list(latency_buckets), 0.95) / 1e6 AS p95_ms"),
    )  # fmt: skip
