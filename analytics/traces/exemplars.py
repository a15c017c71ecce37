"""A trace to look at for every figure: exemplars by minute, the rollups' dimensions, and latency.

As OpenTelemetry's aligned histogram reservoir keeps an exemplar a bucket, this keeps the slowest span of each cell
of CELL_BUCKETS latency buckets, errors apart, and how many spans fell there. Rows of any spans merge to those of all;
from them follow the slowest span, the slowest error, and a typical one: of the cell that holds the median, so within
a factor of CELL_FACTOR of it.
"""

from __future__ import annotations

import polars as pl

from analytics.buckets import GAMMA, bucket_index
from analytics.traces.forest import UNKNOWN_REGION

CELL_BUCKETS = 16
CELL_FACTOR = GAMMA**CELL_BUCKETS
PLACE = ("region", "tenant", "service_name", "component", "operation", "kind")
KEYS = ("window_start", *PLACE, "is_error", "cell")
SPAN_COLUMNS = ("trace_id", "span_id", "start_time", "duration_ns", "status", *PLACE)
EXEMPLARS_SCHEMA = pl.Schema(
    {
        "window_start": pl.Datetime("us"),
        **dict.fromkeys(PLACE, pl.String()),
        "is_error": pl.Boolean(),
        "cell": pl.Int16(),
        "spans": pl.Int64(),
        "duration_ns": pl.Int64(),
        "trace_id": pl.String(),
        "span_id": pl.String(),
    }
)
KINDS = ("slowest", "error", "typical")


def rows(spans: pl.DataFrame) -> pl.DataFrame:
    """One row of EXEMPLARS_SCHEMA for each minute, PLACE, error or not, and cell of latency.

    `spans` has SPAN_COLUMNS, ids as text. `cell` counts CELL_BUCKETS latency buckets, `spans` the spans in it;
    duration and ids are those of the slowest.
    """
    found = spans.select(
        pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")).alias("window_start"),
        *PLACE,
        (pl.col("status") == "error").alias("is_error"),
        bucket_index(pl.col("duration_ns")).floordiv(CELL_BUCKETS).alias("cell"),
        pl.lit(1, pl.Int64).alias("spans"),
        "duration_ns",
        "trace_id",
        "span_id",
    )
    return _labelled(_slowest(found))


def merged(found: pl.DataFrame) -> pl.DataFrame:
    """The same in one row for each minute, PLACE, error or not, and cell."""
    return _labelled(_slowest(found))


def picked(found: pl.DataFrame) -> pl.DataFrame:
    """The exemplars of each minute and PLACE: `window_start`, *PLACE, `exemplar` (of KINDS), `duration_ns`, ids.

    `found` are rows of EXEMPLARS_SCHEMA. Without an error there is no `error`. The typical one is of the cell of the
    median: the first whose cumulative count reaches half of the spans.
    """
    place = ["window_start", *PLACE]
    ordered = merged(found).sort(*place, "cell", "duration_ns", "trace_id", "span_id")
    is_half = 2 * pl.col("spans").cum_sum().over(place) >= pl.col("spans").sum().over(place)
    typical = ordered.filter(is_half).unique(place, keep="first", maintain_order=True)
    by_duration = ordered.sort(*place, "duration_ns", "trace_id", "span_id")
    slowest = by_duration.unique(place, keep="last", maintain_order=True)
    error = by_duration.filter("is_error").unique(place, keep="last", maintain_order=True)
    parts = zip(KINDS, (slowest, error, typical), strict=True)
    columns = (*place, "exemplar", "duration_ns", "trace_id", "span_id")
    return pl.concat(part.with_columns(pl.lit(kind).alias("exemplar")).select(columns) for kind, part in parts)


def _slowest(found: pl.DataFrame) -> pl.DataFrame:
    # Of equally slow spans the one of the greatest ids is kept, whichever came first.
    slowest = ("duration_ns", "trace_id", "span_id")
    return found.sort(slowest).group_by(KEYS).agg(pl.col("spans").sum(), *(pl.col(name).last() for name in slowest))


def _labelled(frame: pl.DataFrame) -> pl.DataFrame:
    named = frame.select(EXEMPLARS_SCHEMA.names()).cast(EXEMPLARS_SCHEMA)
    return named.with_columns(pl.col("region").fill_null(UNKNOWN_REGION))
