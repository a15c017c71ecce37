"""Topics: how late messages reach their subscribers, and which never do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analytics.buckets import GAMMA
from analytics.change import duration
from analytics.insight import baselines, telling
from analytics.insight.finding import Effect, Finding, Kind, Place
from analytics.insight.locating import locate
from analytics.insight.panel import Floats, Measure, Panel
from analytics.insight.scene import Groups, Scene
from analytics.insight.traced import LAG_CELL_BUCKETS

BY = ("region", "tenant", "destination")
LEVELS: tuple[Sequence[str], ...] = (("region",), ("region", "destination"), BY)
_CELLS = 600


def find(scene: Scene) -> list[Finding]:
    """Findings 'delivery_lag' and 'lost_deliveries', one a region at most of each."""
    counts = scene.evidence.deliveries.filter(
        pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end
    )
    if counts.is_empty():
        return []
    keys = counts.select(BY).unique().sort(BY).with_row_index("series")
    at = _at(scene, counts, keys)
    delivered, undelivered = (_dense(scene, at, counts[name], keys.height) for name in ("deliveries", "undelivered"))
    slow, cells = _slow(scene, keys)
    strata = np.zeros(keys.height, dtype=np.intp)
    found = _located(scene, keys, baselines.rates(slow, delivered, strata, 1, scene.span), "delivery_lag", cells)
    lost = baselines.rates(undelivered, delivered + undelivered, strata, 1, scene.span)
    return found + _located(scene, keys, lost, "lost_deliveries", cells)


def _at(scene: Scene, frame: pl.DataFrame, keys: pl.DataFrame) -> np.ndarray:
    series = frame.join(keys, on=BY, how="left", maintain_order="left")["series"].to_numpy().astype(np.intp)
    return series * scene.span.count + scene.span.index(frame["minute"])


def _dense(scene: Scene, at: np.ndarray, values: pl.Series, series: int) -> Floats:
    size = series * scene.span.count
    return np.bincount(at, weights=values.to_numpy(), minlength=size).reshape(series, -1)


def _slow(scene: Scene, keys: pl.DataFrame) -> tuple[Floats, pl.DataFrame]:
    """Deliveries later than the 95th percentile of their own topic's baseline, and the cells with their series."""
    cells = scene.evidence.delivery_cells.filter(
        pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end
    ).join(keys, on=BY, how="left", maintain_order="left")
    series = cells["series"].to_numpy().astype(np.intp)
    minute = scene.span.index(cells["minute"])
    cell, spans = cells["cell"].to_numpy().astype(np.intp) + 1, cells["spans"].to_numpy().astype(float)
    early = minute < scene.span.baseline
    spread = np.bincount(series[early] * _CELLS + cell[early], weights=spans[early], minlength=keys.height * _CELLS)
    up_to = np.cumsum(spread.reshape(-1, _CELLS), axis=1)
    threshold = (up_to < 0.95 * up_to[:, -1:]).sum(1)
    late = cell > threshold[series]
    at = series[late] * scene.span.count + minute[late]
    dense = np.bincount(at, weights=spans[late], minlength=keys.height * scene.span.count)
    return dense.reshape(keys.height, -1), cells.with_columns(at=pl.Series(minute))


def _located(
    scene: Scene, keys: pl.DataFrame, measure: Measure, kind: Kind, cells: pl.DataFrame
) -> list[Finding]:
    best: dict[str, tuple[Groups, int]] = {}
    for level in LEVELS:
        names = keys.select(level).unique(maintain_order=True).with_row_index("group")
        of = keys.join(names, on=list(level), maintain_order="left")["group"].to_numpy().astype(np.intp)
        groups = scene.judged(names.drop("group"), of, measure.by(of, names.height))
        for index in np.flatnonzero(groups.flagged):
            region = str(groups.keys["region"][int(index)])
            if region not in best or groups.scan.z[index] > best[region][0].scan.z[best[region][1]]:
                best[region] = (groups, int(index))
    return [_told(scene, keys, measure, kind, region, *one, cells) for region, one in best.items()]


def _told(
    scene: Scene, keys: pl.DataFrame, measure: Measure, kind: Kind, region: str, groups: Groups, index: int,
    cells: pl.DataFrame,
) -> Finding:  # fmt: skip
    since = int(groups.scan.since[index])
    which = (keys["region"] == region).to_numpy()
    excess = (measure.observed - measure.expected)[which][:, since:].sum(1)
    expected = measure.expected[which][:, since:].sum(1)
    located, inside = locate(keys.filter(pl.Series(which)), excess, expected, ("destination", "tenant"))
    which[which] = inside
    panel = Panel(scene.span, keys, {}, *(np.empty(0, dtype=np.intp),) * 3, np.empty(0))
    hurt = telling.impact(scene, panel, measure, which, since)
    tenant = located.get("tenant")
    tenants = (tenant,) if tenant else hurt.tenants
    place = Place(region, destination=located.get("destination"))
    begin = f"since {scene.span.time(since):%H:%M}"
    subject = f"messages {place.words()}" + (f" of tenant {tenant}" if tenant else "")
    if kind == "delivery_lag":
        effect = _lag_effect(scene, keys, which, since, cells)
        sentence = (
            f"Deliveries of {subject} are late {begin}: half take longer than {duration(effect.value)} "
            f"(usually {duration(effect.baseline)}); {hurt.words()} are hurt."
        )
    else:
        effect = telling.share_effect("undelivered_share", measure, which, since)
        sentence = (
            f"Deliveries of {subject} are missing {begin}: {telling.percent(effect.value)} "
            f"(usually {telling.percent(effect.baseline)}); {hurt.words()} are hurt."
        )
    return Finding(
        kind, place, telling.severity(effect.ratio, hurt.share),
        telling.score(5.0, effect.ratio, float(excess[inside].sum()), hurt.share), telling.aware(scene, since), scene.until,
        effect,
        telling.confidence("scan of the last minutes against the topics' own baseline", float(groups.scan.p[index]),
                           float(groups.p_corrected[index]), float(measure.trials[which][:, since:].sum())),
        sentence, tenants, tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(region), since, errors=False, tenants=tenants),
        sql=telling.sql_of(scene, place, since, "rollup_destination_1m"),
    )  # fmt: skip


def _lag_effect(scene: Scene, keys: pl.DataFrame, which: np.ndarray, since: int, cells: pl.DataFrame) -> Effect:
    wanted = cells.filter(pl.col("series").is_in(np.flatnonzero(which).tolist()))
    now, before = (
        _median_ns(wanted.filter(part)) for part in (pl.col("at") >= since, pl.col("at") < scene.span.baseline)
    )
    return Effect("lag_p50_ns", now, before, now / before if before else float("inf"))


def _median_ns(cells: pl.DataFrame) -> float:
    ordered = cells.group_by("cell").agg(pl.col("spans").sum()).sort("cell")
    if ordered.is_empty():
        return 0.0
    found = ordered.filter(pl.col("spans").cum_sum() >= 0.5 * pl.col("spans").sum())["cell"][0]
    return float(GAMMA ** ((found + 0.5) * LAG_CELL_BUCKETS)) if found >= 0 else 0.0
