"""What the relations between spans tell by minute: deliveries, hot keys, clock skew, exemplars. Of frames of spans."""

from __future__ import annotations

import polars as pl

from analytics.buckets import bucket_index
from analytics.rollup.partials import UNKNOWN_REGION

_TIME = {"minute": pl.Datetime("us")}
_TOPIC = dict.fromkeys(("region", "tenant", "destination"), pl.String())
DELIVERIES_SCHEMA = pl.Schema(
    {**_TIME, **_TOPIC, **dict.fromkeys(("messages", "deliveries", "undelivered"), pl.Int64())}
)
DELIVERY_CELLS_SCHEMA = pl.Schema({**_TIME, **_TOPIC, "cell": pl.Int16(), "spans": pl.Int64()})
HOT_KEYS_SCHEMA = pl.Schema(
    {**_TIME, **_TOPIC, "service_name": pl.String(), "host": pl.String(), "key": pl.String(), "count": pl.Int64(),
     "total": pl.Int64()}
)  # fmt: skip
SKEW_SCHEMA = pl.Schema(
    {**_TIME, **dict.fromkeys(("region", "parent_host", "host"), pl.String()),
     **dict.fromkeys(("pairs", "outside"), pl.Int64()), "offset_ns": pl.Float64()}
)  # fmt: skip
EXEMPLARS_SCHEMA = pl.Schema(
    {**_TIME, **dict.fromkeys(("region", "service_name", "operation", "tenant"), pl.String()), "is_error": pl.Boolean(),
     "duration_ns": pl.Int64(), "trace_id": pl.String()}
)  # fmt: skip

KEY_ATTRIBUTES = ("cache.key.hash", "cache.key", "db.redis.key", "messaging.kafka.message.key")
HOT_KEYS_KEPT = 5
LAG_CELL_BUCKETS = 4


def _minute() -> pl.Expr:
    return pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")).alias("minute")


def _has(spans: pl.DataFrame, *names: str) -> bool:
    return set(names) <= set(spans.columns)


def _text(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.String)


def exemplars(spans: pl.DataFrame) -> pl.DataFrame:
    """The slowest span and the slowest error by minute, region, service and operation (EXEMPLARS_SCHEMA)."""
    if not _has(spans, "trace_id"):
        return EXEMPLARS_SCHEMA.to_frame()
    return (
        spans.lazy()
        .select(
            _minute(), _text("region").fill_null(UNKNOWN_REGION), _text("service_name"), _text("operation"),
            _text("tenant"), is_error=pl.col("status") == "error", duration_ns="duration_ns", trace_id="trace_id",
        )
        .sort("duration_ns", descending=True)
        .group_by("minute", "region", "service_name", "operation", "is_error")
        .agg(pl.col("tenant", "duration_ns", "trace_id").first())
        .select(EXEMPLARS_SCHEMA.names())
        .cast(dict(EXEMPLARS_SCHEMA))
        .collect()
    )  # fmt: skip


def skew(spans: pl.DataFrame) -> pl.DataFrame:
    """How far children on another host lie outside their parents, by minute and pair of hosts (SKEW_SCHEMA).

    Of client spans and the server spans they cause. `outside`: children that begin before their parent or end
    after it; `offset_ns`: the median of (child's middle - parent's middle), which is 0 for clocks that agree and
    a network that takes as long both ways (Cristian's algorithm, 1989).
    """
    if not _has(spans, "trace_id", "span_id", "parent_span_id", "host"):
        return SKEW_SCHEMA.to_frame()
    columns = ["trace_id", "start_time", "duration_ns", "host", "region"]
    children = spans.lazy().filter(pl.col("kind") == "server", pl.col("parent_span_id").is_not_null())
    parents = spans.lazy().filter(pl.col("kind").is_in(["client", "producer"]))
    middle = pl.col("start_time").cast(pl.Int64) + pl.col("duration_ns") // 2
    pairs = children.select(*columns, "parent_span_id", middle=middle).join(
        parents.select("trace_id", "span_id", "start_time", "duration_ns", parent_host="host", parent_middle=middle),
        left_on=["trace_id", "parent_span_id"], right_on=["trace_id", "span_id"], suffix="_parent",
    )  # fmt: skip
    begin, begin_parent = pl.col("start_time").cast(pl.Int64), pl.col("start_time_parent").cast(pl.Int64)
    ends_after = begin + pl.col("duration_ns") > begin_parent + pl.col("duration_ns_parent")
    timed_out = pl.col("duration_ns") > pl.col("duration_ns_parent")
    return (
        pairs.select(
            _minute(), _text("region").fill_null(UNKNOWN_REGION), _text("parent_host"), _text("host"),
            outside=(begin < begin_parent) | (ends_after & ~timed_out),
            offset_ns=(pl.col("middle") - pl.col("parent_middle")).cast(pl.Float64),
        )
        .drop_nulls()
        .group_by("minute", "region", "parent_host", "host")
        .agg(pairs=pl.len(), outside=pl.col("outside").sum(), offset_ns=pl.col("offset_ns").median())
        .select(SKEW_SCHEMA.names())
        .cast(dict(SKEW_SCHEMA))
        .collect()
    )  # fmt: skip


def hot_keys(spans: pl.DataFrame) -> pl.DataFrame:
    """The HOT_KEYS_KEPT most frequent keys by minute, region, tenant and destination (HOT_KEYS_SCHEMA).

    `total`: spans with a key there. The key is the first of KEY_ATTRIBUTES that a server span carries.
    """
    if not _has(spans, "attributes", "destination") or spans.schema["attributes"] == pl.Null:
        return HOT_KEYS_SCHEMA.to_frame()
    by = ["minute", "region", "tenant", "destination"]
    host = _text("host") if _has(spans, "host") else pl.lit(None, pl.String).alias("host")
    keyed = (
        spans.lazy()
        .filter(pl.col("kind") == "server")
        .select(
            _minute(), _text("region").fill_null(UNKNOWN_REGION), _text("tenant"), _text("destination"),
            _text("service_name"), host,
            key=pl.coalesce(pl.col("attributes").map.get(name) for name in KEY_ATTRIBUTES),
        )
        .drop_nulls(["key", "destination"])
    )  # fmt: skip
    counted = keyed.group_by(*by, "key").agg(pl.len().alias("count"), pl.col("service_name", "host").first())
    return (
        counted.with_columns(total=pl.col("count").sum().over(by))
        .sort("count", "key", descending=[True, False])
        .group_by(by)
        .head(HOT_KEYS_KEPT)
        .select(HOT_KEYS_SCHEMA.names())
        .cast(dict(HOT_KEYS_SCHEMA))
        .collect()
    )


def deliveries(spans: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Messages, deliveries and expected but missing deliveries by minute of the producer (DELIVERIES_SCHEMA), and lags
    from the producer's start to the consumer's by cell (DELIVERY_CELLS_SCHEMA; negative lags are in cell -1).

    A consumer belongs to the producer that it has as parent or first link. `undelivered`: subscribers that the
    fan-out names (`topics.subscription.count`) and that have no span here.
    """
    if not _has(spans, "trace_id", "span_id", "parent_span_id", "links", "destination"):
        return DELIVERIES_SCHEMA.to_frame(), DELIVERY_CELLS_SCHEMA.to_frame()
    producers = (
        spans.lazy()
        .filter(pl.col("kind") == "producer", pl.col("status") != "error")
        .select(
            _minute(), _text("region").fill_null(UNKNOWN_REGION), _text("tenant"), _text("destination").fill_null(""),
            "trace_id", "span_id", sent=pl.col("start_time").cast(pl.Int64),
        )
    )  # fmt: skip
    link = pl.col("links").list.first()
    consumers = (
        spans.lazy()
        .filter(pl.col("kind") == "consumer")
        .select(
            trace_id=pl.coalesce(link.struct.field("trace_id"), "trace_id"),
            span_id=pl.coalesce(link.struct.field("span_id"), "parent_span_id"),
            begun=pl.col("start_time").cast(pl.Int64),
        )
    )
    by = ["minute", *_TOPIC]
    matched = producers.join(consumers, on=["trace_id", "span_id"])
    lag = pl.col("begun") - pl.col("sent")
    cells = matched.with_columns(
        cell=pl.when(lag < 0).then(-1).otherwise(bucket_index(lag) // LAG_CELL_BUCKETS).cast(pl.Int16)
    )
    sent, delivered, by_cell, expected = pl.collect_all(
        [
            producers.group_by(by).agg(messages=pl.len()),
            matched.group_by(by).agg(deliveries=pl.len()),
            cells.group_by(*by, "cell").agg(spans=pl.len()),
            _expected(spans, producers).group_by(by).agg(pl.col("expected").sum()),
        ]
    )
    counts = (
        sent.join(delivered, on=by, how="left")
        .join(expected, on=by, how="left")
        .with_columns(pl.col("deliveries", "expected").fill_null(0))
        .with_columns(undelivered=(pl.col("expected") - pl.col("deliveries")).clip(lower_bound=0))
    )
    return (
        counts.select(DELIVERIES_SCHEMA.names()).cast(dict(DELIVERIES_SCHEMA)),
        by_cell.select(DELIVERY_CELLS_SCHEMA.names()).cast(dict(DELIVERY_CELLS_SCHEMA)),
    )


def _expected(spans: pl.DataFrame, producers: pl.LazyFrame) -> pl.LazyFrame:
    """Producers with the number of subscribers that a span of the same trace names."""
    if not _has(spans, "attributes"):
        return producers.with_columns(expected=pl.lit(0, pl.Int64))
    fan_out = (
        spans.lazy()
        .filter(pl.col("kind") == "internal", pl.col("component") == "topic")
        .select("trace_id", expected=pl.col("attributes").map.get("topics.subscription.count").cast(pl.Int64, strict=False))
        .unique("trace_id")
    )
    return producers.join(fan_out, on="trace_id", how="left").with_columns(pl.col("expected").fill_null(0))
