"""Topics: how late messages reach their subscribers, and which never do.

How many deliveries a message has is learned: the median of deliveries a message by minute of the baseline, rounded
where it is close to a whole number. Fewer are missing. Messages of the newest minute may still be under way
(right-censored); a stretch takes two minutes at least, so that alone they are no finding.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.buckets import GAMMA
from analytics.change import duration
from analytics.insight import baselines, telling
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.panel import Cells, Counts, Floats, Ints, Measure, Panel, Rated, dense
from analytics.insight.scene import Scene
from analytics.insight.shares import Spot, spots
from analytics.insight.traced import LAG_CELL_BUCKETS

BY = ("region", "tenant", "destination")
LEVELS = (("tenant", "destination"), ("region",), ("region", "destination"), ("destination",), BY)
_ORDER = ("tenant", "destination", "region")
_CELLS = 600
_LAG_RATIO_MIN = 1.3


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
    found = [_lag(scene, keys, lags, spot, cells) for spot in spots(scene, keys, lags, LEVELS, _ORDER)]
    found = [one for one in found if one.effect.ratio >= _LAG_RATIO_MIN]
    return found + [
        _lost(scene, keys, missing, spot) for spot in spots(scene, keys, missing, LEVELS, _ORDER, "missing")
    ]


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


def _lag(scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot, cells: pl.DataFrame) -> Finding:
    mine = cells.join(keys.filter(pl.Series(spot.which)), on=BY, how="semi")
    begin = scene.span.time(spot.since)
    now, before = (
        _median_ns(mine.filter(part))
        for part in (pl.col("minute") >= begin, pl.col("minute") < scene.span.time(scene.span.baseline))
    )
    effect = Effect("lag_p50_ns", now, before, now / before if before else float("inf"))
    figure = f"half take longer than {duration(now)} (usually {duration(before)})"
    return _told(scene, keys, measure, spot, "delivery_lag", effect, f"late since {begin:%H:%M}: {figure}")


def _lost(scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot) -> Finding:
    effect = telling.share_effect("undelivered_share", measure, spot.which, spot.since)
    figure = f"{telling.percent(effect.value)} (usually {telling.percent(effect.baseline)})"
    begin = scene.span.time(spot.since)
    return _told(scene, keys, measure, spot, "lost_deliveries", effect, f"missing since {begin:%H:%M}: {figure}")


def _told(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, spot: Spot, kind: Kind, effect: Effect, words: str
) -> Finding:
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
        telling.confidence("scan of the last minutes against the topics' own baseline", spot.p, spot.p_corrected,
                           float(measure.trials[spot.which][:, spot.since :].sum())),
        f"Deliveries of {subject} are {words}{whom}.", tenants, tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(place.region), spot.since, errors=False, tenants=tenants),
        sql=telling.sql_of(scene, place, spot.since, "rollup_destination_1m"),
    )  # fmt: skip


def _median_ns(cells: pl.DataFrame) -> float:
    ordered = cells.group_by("cell").agg(pl.col("spans").sum()).sort("cell")
    if ordered.is_empty():
        return 0.0
    found = ordered.filter(pl.col("spans").cum_sum() >= 0.5 * pl.col("spans").sum())["cell"][0]
    return float(GAMMA ** ((found + 0.5) * LAG_CELL_BUCKETS)) if found >= 0 else 0.0
