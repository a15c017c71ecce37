"""Health of operations: a window against the one before it, from the rollups alone.

Which spans count: `Scope.kinds` empty takes all kinds, so an operation that is seen by its client and by its
server counts twice. `Scope(kinds=(INGRESS,))` counts each operation once, where it is served; of what is in scope:

- spans of kind `server`, `consumer` and `producer`;
- where a tenant has none of these for a component, its `client` spans of that component (a system that is
  only seen by its clients, such as a cache behind an instrumented client library);
- where a tenant has none of all these, its `internal` and `unspecified` spans.

Windows of 12 hours and more are answered from `rollup_1h`, but for the minutes before the first and after the
last whole hour; their steps are whole hours. How `change` is scored stands in `analytics.change`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from analytics import jobs
from analytics.buckets import cell_quantiles
from analytics.change import Figures, change
from analytics.health_source import (
    ALL,
    BASELINE_STEP,
    INGRESS,
    Plan,
    Scope,
    Source,
    check_dimensions,
)
from analytics.rollup.partials import DIMENSIONS
from analytics.window import MINUTE, Window
from collector.lake.lake import Reader

__all__ = [
    "DIMENSIONS",
    "INGRESS",
    "Freshness",
    "Scope",
    "Window",
    "choices",
    "freshness",
    "health_rows",
    "health_series",
]

QUANTILES = (0.5, 0.95, 0.99)
_COMPARED = ("count", "rate_per_second", "error_rate", "p50_ns", "p95_ns", "p99_ns", "hit_ratio")
_SUMS = ("count", "errors", "hits", "misses", "bytes", "unknown_weight_count")


@dataclass(frozen=True)
class Freshness:
    """How new the rollups are.

    `latest_span`: the end of the newest minute that holds a rolled up span, None without any (aware UTC).
    `spans`: spans in the rollups. `rollup_lag_seconds`: age of the oldest commit whose spans are not rolled up
    yet, 0 where all are, None where there was never anything to roll up.
    """

    latest_span: datetime | None
    spans: int
    rollup_lag_seconds: float | None


def health_rows(
    reader: Reader,
    window: Window,
    scope: Scope,
    by: Sequence[str] = ("region",),
    sparkline_points: int = 30,
) -> pl.DataFrame:
    """One row for each value of `by` (of DIMENSIONS) with spans in `window` or `window.previous()`.

    Columns: *by, count, rate_per_second, error_rate, p50_ns, p95_ns, p99_ns, hit_ratio (null without lookups),
    bytes, unknown_weight_share, baseline_count, baseline_rate_per_second, baseline_error_rate,
    baseline_p50_ns, baseline_p95_ns, baseline_p99_ns, baseline_hit_ratio, change, change_in ('rate',
    'error_rate', 'p95' or 'hit_ratio'; null where nothing moved), change_text, sparkline (List[Float64], spans
    per second of each step), sparkline_p95_ns (List[Float64]). Ratios and quantiles are null without spans.
    Ordered by change, largest first; what went silent has rate 0. Raises ValueError for an unknown dimension.
    """
    check_dimensions(by)
    keys = list(by) or [ALL]
    plan = Plan.of(window, sparkline_points)
    source = Source(reader, plan, scope, window.previous())
    counts, cells = source.counts(by), source.cells(by)
    is_baseline = pl.col("step") == BASELINE_STEP
    now = _figures(counts.filter(~is_baseline), cells.filter(~is_baseline), keys, pl.lit(window.seconds))
    before = _figures(counts.filter(is_baseline), cells.filter(is_baseline), keys, pl.lit(window.seconds))
    baseline = before.select(*keys, pl.col(*_COMPARED, "lookups").name.prefix("baseline_"))
    rows = (
        counts.select(keys)
        .unique()
        .join(now, on=keys, how="left")
        .join(baseline, on=keys, how="left")
        .with_columns(pl.col("^(baseline_)?(count|rate_per_second|lookups|bytes)$").fill_null(0))
        .join(_sparklines(counts, cells, keys, plan), on=keys)
    )
    return _with_change(rows).select(
        *by,
        *_COMPARED,
        "bytes",
        "unknown_weight_share",
        *(f"baseline_{name}" for name in _COMPARED),
        "change",
        "change_in",
        "change_text",
        "sparkline",
        "sparkline_p95_ns",
    )


def health_series(
    reader: Reader, window: Window, scope: Scope, by: str | None = None, points: int = 60
) -> pl.DataFrame:
    """At most `points` steps of `window`, for each value of `by` or for all spans together.

    Columns: time (Datetime of UTC, start of the step), <by> (where given), count, rate_per_second, error_rate,
    p50_ns, p95_ns, p99_ns, hit_ratio; in order of time and `by`. Steps without spans are there with count 0 and
    null ratios and quantiles. Raises ValueError for an unknown dimension.
    """
    dimensions = [by] if by else []
    check_dimensions(dimensions)
    keys = dimensions or [ALL]
    plan = Plan.of(window, points)
    source = Source(reader, plan, scope)
    counts, cells = source.counts(dimensions), source.cells(dimensions)
    steps = plan.steps()
    values = counts.select(keys).unique() if by else pl.DataFrame({ALL: [""]})
    grid = values.join(steps, how="cross")
    figures = _figures(counts.join(steps, on="step"), cells, [*keys, "step"], pl.col("seconds").first())
    return (
        grid.join(figures, on=[*keys, "step"], how="left")
        .with_columns(pl.col("count", "rate_per_second").fill_null(0))
        .sort("time", *keys)
        .select("time", *dimensions, *_COMPARED)
    )


def choices(reader: Reader, window: Window) -> dict[str, list[str]]:
    """The values of each of DIMENSIONS in `window` and the one before it, most spans first."""
    found = Source(reader, Plan.of(window, 1), Scope(), window.previous()).choices()
    return {name: found.filter(pl.col("dimension") == name)["choice"].to_list() for name in DIMENSIONS}


def freshness(reader: Reader) -> Freshness:
    """How new the rollups are, and how many spans they hold."""
    latest, spans = reader.row(
        "SELECT (SELECT max(window_start) FROM rollup_1m), COALESCE(sum(count), 0)::BIGINT FROM rollup_1h"
    )
    lag = max(jobs.lag(reader), key=lambda job: job.seconds_behind)
    return Freshness(
        None if latest is None else latest.replace(tzinfo=UTC) + MINUTE,
        int(spans),
        None if lag.position is None and not lag.spans_behind else lag.seconds_behind,
    )


def _figures(counts: pl.DataFrame, cells: pl.DataFrame, keys: list[str], seconds: pl.Expr) -> pl.DataFrame:
    """Columns: *keys, _COMPARED, bytes, unknown_weight_share, lookups."""
    sums = counts.group_by(keys).agg(pl.col(_SUMS).sum(), seconds.alias("seconds"))
    lookups = pl.col("hits") + pl.col("misses")
    return sums.join(cell_quantiles(cells.lazy(), keys, QUANTILES).collect(), on=keys, how="left").select(
        *keys,
        "count",
        "bytes",
        rate_per_second=pl.col("count") / pl.col("seconds"),
        error_rate=pl.col("errors") / pl.col("count"),
        hit_ratio=pl.when(lookups > 0).then(pl.col("hits") / lookups),
        lookups=lookups,
        unknown_weight_share=pl.col("unknown_weight_count") / pl.col("count"),
        **{name: pl.col(name) for name in ("p50_ns", "p95_ns", "p99_ns")},
    )


def _sparklines(counts: pl.DataFrame, cells: pl.DataFrame, keys: list[str], plan: Plan) -> pl.DataFrame:
    """Columns: *keys, sparkline, sparkline_p95_ns: a value for each step of the plan."""
    steps = plan.steps()
    grid = counts.select(keys).unique().join(steps, how="cross")
    p95 = cell_quantiles(cells.lazy(), [*keys, "step"], (0.95,)).collect()
    filled = grid.join(counts, on=[*keys, "step"], how="left").join(p95, on=[*keys, "step"], how="left")
    return (
        filled.sort("step")
        .group_by(keys, maintain_order=True)
        .agg(sparkline=pl.col("count").fill_null(0) / pl.col("seconds"), sparkline_p95_ns=pl.col("p95_ns"))
    )


def _with_change(rows: pl.DataFrame) -> pl.DataFrame:
    changes = [change(_compared(row, ""), _compared(row, "baseline_")) for row in rows.iter_rows(named=True)]
    scored = rows.with_columns(
        pl.Series("change", [found.score for found in changes], pl.Float64),
        pl.Series("change_in", [found.figure for found in changes], pl.String),
        pl.Series("change_text", [found.text for found in changes], pl.String),
    )
    return scored.sort("change", "count", "baseline_count", descending=True)


def _compared(row: Mapping[str, Any], prefix: str) -> Figures:
    return Figures(
        count=row[prefix + "count"],
        rate_per_second=row[prefix + "rate_per_second"],
        error_rate=row[prefix + "error_rate"],
        p95_ns=row[prefix + "p95_ns"],
        hit_ratio=row[prefix + "hit_ratio"],
        lookups=row[prefix + "lookups"],
    )
