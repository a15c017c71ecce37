"""Hot keys: one key that draws a share of a cache's traffic far above what its hottest key usually draws."""

from __future__ import annotations

from typing import Any

import polars as pl
from scipy import stats

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.scene import Scene

_RECENT_MINUTES = 3
_SHARE_MIN = 0.25
_RATIO_MIN = 2.5
_COUNT_MIN = 50
_BY = ("region", "tenant", "destination")


def find(scene: Scene) -> list[Finding]:
    """A finding 'hot_key' for each tenant's cache in a region of which one key became hot."""
    known = scene.evidence.hot_keys.filter(pl.col("minute") >= scene.span.start, pl.col("minute") < scene.span.end)
    if known.is_empty():
        return []
    recent = pl.col("minute") >= scene.span.time(scene.span.count - _RECENT_MINUTES)
    before = pl.col("minute") < scene.span.time(scene.span.baseline)
    # Rows of a minute may come from several stretches of spans, each with a total of its own.
    totals = known.group_by("minute", *_BY).agg(pl.col("total").unique().sum())
    usual = (
        known.filter(before)
        .group_by(*_BY, "minute")
        .agg(pl.col("total").unique().sum(), top=pl.col("count").max())
        .group_by(_BY)
        .agg(
            usual=pl.col("top").sum() / pl.col("total").sum(),
            busiest=(pl.col("top") / pl.col("total")).quantile(0.95),
        )
    )
    total = totals.filter(recent).group_by(_BY).agg(pl.col("total").sum())
    now = (
        known.filter(recent)
        .group_by(*_BY, "key")
        .agg(
            pl.col("count").sum(),
            pl.col("service_name", "host").sort_by("minute", "service_name", "host").last(),
            minutes=pl.col("minute").n_unique(),
        )
        .join(total, on=_BY)
        .join(usual, on=_BY)
        .with_columns(share=pl.col("count") / pl.col("total"))
        .filter(
            pl.col("minutes") >= 2,
            pl.col("count") >= _COUNT_MIN,
            pl.col("share") >= _SHARE_MIN,
            pl.col("share") >= _RATIO_MIN * pl.col("usual"),
            pl.col("share") > pl.col("busiest"),
        )
        .sort("share", *_BY, "key", descending=[True, *[False] * (len(_BY) + 1)])
        .unique(_BY, keep="first", maintain_order=True)
    )
    return [found for row in now.iter_rows(named=True) if (found := _told(scene, known, row, now.height)) is not None]


def _told(scene: Scene, known: pl.DataFrame, row: dict[str, Any], tests: int) -> Finding | None:
    count, total, usual, share = (float(row[name]) for name in ("count", "total", "usual", "share"))
    p = float(stats.binomtest(int(count), int(total), min(usual, 1.0), alternative="greater").pvalue)
    corrected = min(1.0, p * tests)
    if corrected > scene.config.false_discovery_rate:
        return None
    region, tenant, destination, key = (str(row[name]) for name in (*_BY, "key"))
    of_key = known.filter(
        pl.col("region") == region, pl.col("tenant") == tenant, pl.col("destination") == destination,
        pl.col("key") == key, pl.col("count") >= 0.5 * share * pl.col("total"),
    )["minute"].sort(descending=True)  # fmt: skip
    since = scene.span.count - 1
    for index in scene.span.index(of_key):
        if since - index > 2:
            break
        since = int(index)
    effect = Effect("top_key_share", share, usual, share / max(usual, 1e-6))
    place = Place(region, str(row["service_name"]), host=_one(row["host"]), destination=destination)
    sentence = (
        f"One key ({key}) draws {telling.percent(share)} of the lookups of tenant {tenant} in {destination} in "
        f"{region} since {scene.span.time(since):%H:%M}; the hottest key usually draws {telling.percent(usual)}."
    )
    return Finding(
        "hot_key", place, "warning", telling.score(5.0, effect.ratio, count), telling.aware(scene, since), scene.until,
        effect, telling.confidence("binomial test of the key's share, Bonferroni-corrected", p, corrected, total),
        sentence, (tenant,), (f"key={key}", f"tenant={tenant}"), tenant_scope=tenant,
        exemplars=telling.exemplars(scene, Place(region, place.service), since, errors=False, tenants=(tenant,)),
        sql=telling.sql_of(scene, Place(region, destination=destination), since, "rollup_destination_1m"),
    )  # fmt: skip


def _one(host: object) -> str | None:
    return None if host is None else str(host)
