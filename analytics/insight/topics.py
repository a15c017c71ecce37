"""Topics: how late messages reach their subscribers, and which never do.

How many deliveries a message has is learned: the median of deliveries a message by minute of the baseline, rounded
where it is close to a whole number. Fewer are missing. What is missing is right-censored: it is known to take longer
than the time since the end of its minute. Lags and shares of what is lost are Kaplan-Meier estimates, now and in the
baseline, and a log-rank test tells whether they differ (`analytics.survival`). Deliveries of a message may be late or
missing together: all are counted as effective numbers, over the design effect (Rao and Scott 1992) that the baseline's
minutes show.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import stats

from analytics.buckets import GAMMA
from analytics.change import duration
from analytics.insight import baselines, telling
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.measures import Bools, Floats, Ints, Measure, Rated, dense
from analytics.insight.panel import Cells, Counts, Panel
from analytics.insight.scene import Scene
from analytics.insight.shares import Spot, clear, spots
from analytics.insight.traced import LAG_CELL_BUCKETS
from analytics.survival import Curve, Delays, Estimate, log_rank

BY = ("region", "tenant", "destination")
LEVELS = (("tenant", "destination"), ("region",), ("region", "destination"), ("destination",), BY)
_ORDER = ("tenant", "destination", "region")
_CELLS = 600
_LAG_RATIO_MIN = 1.3
_ALL_LOST = Estimate(1.0, None, None)


def find(scene: Scene) -> list[Finding]:
    """Findings 'delivery_lag' and 'lost_deliveries'."""
    within = (pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end)
    counts = scene.evidence.deliveries.filter(within)
    if counts.is_empty():
        return []
    keys = counts.select(BY).unique().sort(BY)
    cells = scene.evidence.delivery_cells.filter(within)
    messages, delivered = (dense(scene.span, counts, keys, name) for name in ("messages", "deliveries"))
    late = _late(scene, cells, keys)
    strata = np.zeros(keys.height, dtype=np.intp)
    lags = baselines.rates(late, delivered, strata, 1, scene.span)
    missing = _missing(messages, delivered, scene)
    found = [_lag(scene, keys, lags, spot, cells, missing) for spot in spots(scene, keys, lags, LEVELS, _ORDER)]
    found = [one for one in found if one.effect.ratio >= _LAG_RATIO_MIN]
    lost = [_lost(scene, keys, missing, spot, cells) for spot in spots(scene, keys, missing, LEVELS, _ORDER, "missing")]
    return clear(scene, [*found, *lost])


def _missing(messages: Floats, delivered: Floats, scene: Scene) -> Rated:
    """Deliveries that are missing, of those that there should be."""
    before = slice(0, scene.span.baseline)
    fan_out = delivered[:, before].sum(1) / np.maximum(messages[:, before].sum(1), 1)
    whole = np.round(fan_out)
    fan_out = np.where(np.abs(fan_out - whole) <= 0.02 * whole, whole, fan_out)[:, None]
    due = fan_out * messages
    missing = np.maximum(due - delivered, 0.0)
    return baselines.rates(missing, due, np.zeros(len(due), dtype=np.intp), 1, scene.span)


def _late(scene: Scene, cells: pl.DataFrame, keys: pl.DataFrame) -> Floats:
    """Deliveries later than the 95th percentile of their own topic's baseline."""
    numbered = cells.join(keys.with_row_index("series"), on=BY, maintain_order="left")
    series: Ints = numbered["series"].to_numpy().astype(np.intp)
    minute = scene.span.index(numbered["minute"])
    cell, spans = numbered["cell"].to_numpy().astype(np.intp) + 1, numbered["spans"].to_numpy().astype(float)
    early = minute < scene.span.baseline
    spread = np.bincount(series[early] * _CELLS + cell[early], weights=spans[early], minlength=keys.height * _CELLS)
    up_to = np.cumsum(spread.reshape(-1, _CELLS), axis=1)
    threshold = (up_to < 0.95 * up_to[:, -1:]).sum(1)
    late = cell > threshold[series]
    at = series[late] * scene.span.count + minute[late]
    found: Floats = np.bincount(at, weights=spans[late], minlength=keys.height * scene.span.count).astype(float)
    return found.reshape(keys.height, -1)


def _delays(scene: Scene, keys: pl.DataFrame, which: Bools, cells: pl.DataFrame, missing: Rated) -> tuple[Delays, ...]:
    """Lags of some topics by minute, those of what is missing known to be longer than the time since its minute."""
    mine = cells.join(keys.filter(pl.Series(which)), on=BY, how="semi")
    minute = scene.span.index(mine["minute"])
    lag, many = _lags_ns(mine["cell"].to_numpy()), mine["spans"].to_numpy().astype(float)
    absent = missing.observed[which].sum(0)
    age = (scene.span.count - 1 - np.arange(scene.span.count)) * 60e9
    return tuple(
        Delays.of(lag[minute == at], many[minute == at], age[at : at + 1], absent[at : at + 1])
        for at in range(scene.span.count)
    )


def _now_and_before(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot, cells: pl.DataFrame, missing: Rated
) -> tuple[Delays, Delays, float]:
    """Delays, in effective numbers, and p of the log-rank test of them."""
    by_minute = _delays(scene, keys, spot.which, cells, missing)
    now, before = Delays.concat(by_minute[spot.since :]), Delays.concat(by_minute[: scene.span.baseline])
    spread = measure.rows(spot.which).by(np.zeros(int(spot.which.sum()), dtype=np.intp), 1)
    together = float(baselines.scan(spread, scene.span).dispersion[0])
    p = float(stats.chi2.sf(log_rank(now, before)[0] / together, 1))
    return now.over(together), before.over(together), p


def _lag(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot, cells: pl.DataFrame, missing: Rated
) -> Finding:
    now, before, p = _now_and_before(scene, keys, measure, spot, cells, missing)
    (middle, tail), (usual, _) = ([_estimate(one, q) for q in (0.5, 0.95)] for one in (now, before))
    value, base = middle.value or _followed(now), usual.value or 0.0
    low, high = ((None if bound is None or not base else bound / base) for bound in (middle.low, middle.high))
    effect = Effect("lag_p50_ns", value, base, value / base if base else float("inf"), low, high)
    figure = f"half take longer than {duration(value)} (usually {duration(base)}), {_words(tail)}"
    begin = scene.span.time(spot.since)
    return _told(
        scene, keys, measure, spot, "delivery_lag", effect, f"late since {begin:%H:%M}: {figure}", p,
    )  # fmt: skip


def _lost(scene: Scene, keys: pl.DataFrame, measure: Rated, spot: Spot, cells: pl.DataFrame) -> Finding:
    now, before, p = _now_and_before(scene, keys, measure, spot, cells, measure)
    # Shares of both at the same time after sending: the longest that both were followed.
    at = min(_followed(now), _followed(before))
    share, usual = (Curve(one).lasting(at) if one.ended.sum() else _ALL_LOST for one in (now, before))
    value, base = share.value or 0.0, max(usual.value or 0.0, 1e-6)
    effect = Effect(
        "undelivered_share", value, base, value / base, (share.low or 0.0) / base, (share.high or 0.0) / base
    )
    figure = f"{telling.percent(value)} (usually {telling.percent(base)})"
    begin = scene.span.time(spot.since)
    words = f"missing since {begin:%H:%M}: {figure}"
    return _told(scene, keys, measure, spot, "lost_deliveries", effect, words, p)


def _estimate(delays: Delays, q: float) -> Estimate:
    return Curve(delays).quantile(q) if delays.ended.sum() else Estimate(None, None, None)


def _followed(delays: Delays) -> float:
    return float(delays.times_ns[-1]) if len(delays.times_ns) else 0.0


def _words(tail: Estimate) -> str:
    """The figure with its interval; a bound that the curve does not reach is not known yet."""
    if tail.value is None:
        return "of the slowest one in 20 nothing is known yet"
    bounds = [duration(bound) if bound is not None else "unknown" for bound in (tail.low, tail.high)]
    return f"one in 20 longer than {duration(tail.value)} ({' to '.join(bounds)})"


def _told(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot, kind: Kind, effect: Effect, words: str,
    p: float,
) -> Finding:  # fmt: skip
    panel = Panel(scene.span, keys, Counts(lambda _: np.empty((0, 0))), Cells.none())
    hurt = telling.impact(scene, panel, measure, spot.which, spot.since)
    tenant = spot.values.get("tenant")
    tenants = (tenant,) if tenant else hurt.tenants
    place = Place(spot.values.get("region"), destination=spot.values.get("destination"))
    subject = f"messages {place.words()}" + (f" of tenant {tenant}" if tenant else "")
    whom = "" if tenant else f"; {hurt.words()} are hurt"
    return Finding(
        kind, place, telling.severity(effect.ratio, hurt.share),
        telling.score(5.0, effect.ratio, spot.excess, 0 if tenant else hurt.share), telling.aware(scene, spot.since),
        scene.until, effect,
        telling.confidence("log-rank test, now against before; Kaplan-Meier", p, max(p, spot.p_corrected),
                           float(measure.trials[spot.which][:, spot.since :].sum())),
        f"Deliveries of {subject} are {words}{whom}.", tenants, tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(place.region), spot.since, errors=False, tenants=tenants),
        sql=telling.sql_of(scene, place, spot.since, "rollup_destination_1m"),
    )  # fmt: skip


def _lags_ns(cells: Ints) -> Floats:
    found: Floats = np.where(cells >= 0, GAMMA ** ((np.maximum(cells, 0) + 0.5) * LAG_CELL_BUCKETS), 0.0)
    return found
