"""One row a trace: what it was, how long it took, who took part, and what took its time.

A row is an event of its own: where spans come late it is taken back, and the trace has another instead.
"""

from __future__ import annotations

import polars as pl

from analytics.traces.additive import Shape, weighed
from analytics.traces.critical_path import path
from analytics.traces.forest import UNKNOWN_REGION, Forest

SUMMARIES = Shape(
    keys={
        "window_start": pl.Datetime("us"),
        "trace_id": pl.String(),
        "start_time": pl.Datetime("ns"),
        **dict.fromkeys(("duration_ns", "spans", "errors", "services", "missing_parents"), pl.Int64()),
        "is_complete": pl.Boolean(),
        **dict.fromkeys(("root_service_name", "root_operation", "root_kind", "root_status"), pl.String()),
        **dict.fromkeys(("tenant", "region", "regions"), pl.String()),
        **dict.fromkeys(("top_service_name", "top_operation"), pl.String()),
        **dict.fromkeys(("top_exclusive_ns", "path_ns"), pl.Int64()),
    },
    counts=("traces",),
)


def rows(forest: Forest) -> pl.DataFrame:
    """One row of SUMMARIES a trace; ids of the spans are text.

    The root is the first span without a parent, or the first span where none is there (`is_complete` is then false);
    tenant, region, operation, kind and status are the root's. `duration_ns` runs from the first start to the last
    end, `path_ns` is the root's own. `top_*` is what takes most of the root's critical path. `regions` are in order,
    with commas between; `missing_parents` counts spans whose parent is not there.
    """
    return events(forest, path(forest))


def changes(after: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """Rows that replace those of `before` by those of `after`, both from `events`."""
    known = before.select("trace_id")
    new = after.join(known, on="trace_id", how="anti")
    return pl.concat([new, SUMMARIES.rows(weighed(after.join(known, on="trace_id", how="semi"), before))])


def events(forest: Forest, measured: pl.DataFrame) -> pl.DataFrame:
    """One row a trace, as `rows`; `measured` is `path(forest)`."""
    spans = forest.spans.with_columns(
        pl.Series("parent_row", forest.parent),
        pl.Series("path_root", forest.path_root),
        pl.Series("end_ns", forest.end_ns),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
        pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION),
        measured["exclusive_ns"],
    )
    sums = spans.group_by("trace_id").agg(*_SUMS)
    root = spans.select(
        root_row="row",
        path_ns="duration_ns",
        **{f"root_{name}": pl.col(name).cast(pl.String) for name in ("service_name", "operation", "kind", "status")},
        **{name: pl.col(name).cast(pl.String) for name in ("tenant", "region")},
    )
    minute = pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us"))
    joined = sums.join(root, on="root_row").join(_top(spans), left_on="root_row", right_on="path_root")
    placed = joined.with_columns(window_start=minute, traces=pl.lit(1, pl.Int64))
    return placed.select(SUMMARIES.schema.names()).cast(SUMMARIES.schema)


_HAS_PARENT = pl.col("parent_span_id").is_not_null()
_SUMS = (
    pl.col("start_time").first(),
    # Spans lie in order of start; the first moment is before 2262, so that no difference overflows.
    (pl.col("end_ns").max() - pl.col("start_time").first().cast(pl.Int64)).alias("duration_ns"),
    pl.len().cast(pl.Int64).alias("spans"),
    (pl.col("status") == "error").sum().cast(pl.Int64).alias("errors"),
    pl.col("service_name").n_unique().cast(pl.Int64).alias("services"),
    (_HAS_PARENT & (pl.col("parent_row") < 0)).sum().cast(pl.Int64).alias("missing_parents"),
    (~_HAS_PARENT).any().alias("is_complete"),
    pl.col("region").unique().sort().str.join(",").alias("regions"),
    pl.coalesce(pl.col("row").filter(~_HAS_PARENT).first(), pl.col("row").first()).alias("root_row"),
)


def _top(spans: pl.DataFrame) -> pl.DataFrame:
    """The service and operation with the longest exclusive time on each path, the first by name of equal ones."""
    place = spans.group_by("path_root", "service_name", "operation").agg(pl.col("exclusive_ns").sum())
    named = place.select(
        "path_root",
        pl.col("service_name").cast(pl.String).alias("top_service_name"),
        pl.col("operation").cast(pl.String).alias("top_operation"),
        pl.col("exclusive_ns").alias("top_exclusive_ns"),
    )
    order = ("path_root", "top_exclusive_ns", "top_service_name", "top_operation")
    return named.sort(order, descending=[False, True, False, False]).unique("path_root", keep="first")
