"""What the relations between spans tell by minute: deliveries, hot keys, clock skew, exemplars. Of frames of spans."""

from __future__ import annotations

import polars as pl

from analytics.buckets import bucket_index
from analytics.rollup.partials import UNKNOWN

_TIME = {"minute": pl.Datetime("us")}
_TOPIC = dict.fromkeys(("region", "tenant", "destination"), pl.String())
DELIVERIES_SCHEMA = pl.Schema({**_TIME, **_TOPIC, **dict.fromkeys(("messages", "deliveries"), pl.Int64())})
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

DEMAND_SCHEMA = pl.Schema(
    {**_TIME, **dict.fromkeys(("region", "tenant"), pl.String()), "count": pl.Int64(), "steady_count": pl.Float64()}
)
SLOTS = 6

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
            _minute(), _text("region").fill_null(UNKNOWN), _text("service_name"), _text("operation"),
            _text("tenant"), is_error=pl.col("status") == "error", duration_ns="duration_ns", trace_id="trace_id",
        )
        .sort("duration_ns", descending=True)
        .group_by("minute", "region", "service_name", "operation", "is_error")
        .agg(pl.col("tenant", "duration_ns", "trace_id").first())
        .select(EXEMPLARS_SCHEMA.names())
        .cast(EXEMPLARS_SCHEMA)
        .collect()
    )  # fmt: skip


def demand(spans: pl.DataFrame) -> pl.DataFrame:
    """Served spans by minute, region and tenant (DEMAND_SCHEMA): of kind server and consumer, all where there are none.

    `steady_count`: SLOTS times the median of the minute's ten-second counts, which short bursts do not move.
    """
    served = spans["kind"].cast(pl.String).is_in(["server", "consumer"])
    slot = pl.col("start_time").cast(pl.Int64) // (60_000_000_000 // SLOTS) % SLOTS
    by_slot = (
        (spans.lazy().filter(served) if served.any() else spans.lazy())
        .select(_minute(), _text("region").fill_null(UNKNOWN), _text("tenant"), slot=slot)
        .group_by("minute", "region", "tenant", "slot")
        .agg(count=pl.len())
    )
    return steady(by_slot.collect())


def steady(by_slot: pl.DataFrame) -> pl.DataFrame:
    """DEMAND_SCHEMA of counts by minute, region, tenant and slot (0 to SLOTS - 1; empty ones may be missing)."""
    counts = pl.col("count").sort()
    # The lower middle one of SLOTS, of which those that are missing are 0.
    middle = counts.get(pl.len().cast(pl.Int64) - 1 - SLOTS // 2, null_on_oob=True)
    half_there = pl.when(pl.len() > SLOTS // 2).then(middle).otherwise(0)
    return (
        by_slot.group_by("minute", "region", "tenant")
        .agg(pl.col("count").sum(), steady_count=SLOTS * half_there.cast(pl.Float64))
        .select(DEMAND_SCHEMA.names())
        .cast(DEMAND_SCHEMA)
    )


def skew(spans: pl.DataFrame) -> pl.DataFrame:
    """How spans lie against those that cause them on another host, by minute and pair of hosts (SKEW_SCHEMA).

    Of server spans and the client or producer spans above them, and of consumer spans and their producers of the same
    region. `outside`: those that begin before their cause or, for servers, end after it. `offset_ns`: medians; for
    servers of (its middle - the caller's), which is 0 for clocks that agree and a network that takes as long both ways
    (Cristian, "Probabilistic clock synchronization", 1989); for consumers of the time from the producer's start to
    theirs, which moves with the clock but is not 0.
    """
    if not _has(spans, "trace_id", "span_id", "parent_span_id", "host"):
        return SKEW_SCHEMA.to_frame()
    causes = spans.lazy().filter(pl.col("kind").is_in(["client", "producer"])).select(
        "trace_id", "span_id", cause_begin=_begin(), cause_ns="duration_ns", parent_host=_text("host"),
        parent_region=_text("region"),
    )  # fmt: skip
    pairs = _caused(spans).join(causes, on=["trace_id", "span_id"])
    same_region = pl.col("region").eq_missing(pl.col("parent_region"))
    middle = pl.col("begin") + pl.col("duration_ns") // 2 - pl.col("cause_begin") - pl.col("cause_ns") // 2
    after = pl.col("begin") - pl.col("cause_begin")
    ends_after = pl.col("begin") + pl.col("duration_ns") > pl.col("cause_begin") + pl.col("cause_ns")
    late = pl.col("is_server") & ends_after & (pl.col("duration_ns") <= pl.col("cause_ns"))
    return (
        pairs.filter(pl.col("is_server") | same_region)
        .select(
            "minute", pl.col("region").fill_null(UNKNOWN), "parent_host", "host",
            outside=(pl.col("begin") < pl.col("cause_begin")) | late,
            offset_ns=pl.when("is_server").then(middle).otherwise(after).cast(pl.Float64),
        )
        .drop_nulls()
        .group_by("minute", "region", "parent_host", "host")
        .agg(pairs=pl.len(), outside=pl.col("outside").sum(), offset_ns=pl.col("offset_ns").median())
        .select(SKEW_SCHEMA.names())
        .cast(SKEW_SCHEMA)
        .collect()
    )  # fmt: skip


def _caused(spans: pl.DataFrame) -> pl.LazyFrame:
    """Server and consumer spans with the ids of the span that causes them: the first link's, else the parent's."""
    trace, span = pl.col("trace_id"), pl.col("parent_span_id")
    if _has(spans, "links"):
        link = pl.when(pl.col("kind") == "consumer").then(pl.col("links").list.first())
        trace = pl.coalesce(link.struct.field("trace_id"), trace)
        span = pl.coalesce(link.struct.field("span_id"), span)
    return (
        spans.lazy()
        .filter(pl.col("kind").is_in(["server", "consumer"]))
        .select(
            _minute(), _text("region"), _text("host"), "duration_ns", trace_id=trace, span_id=span, begin=_begin(),
            is_server=pl.col("kind") == "server",
        )
        .filter(pl.col("span_id").is_not_null())
    )  # fmt: skip


def _begin() -> pl.Expr:
    return pl.col("start_time").cast(pl.Int64)


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
            _minute(), _text("region").fill_null(UNKNOWN), _text("tenant"), _text("destination"),
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
        .cast(HOT_KEYS_SCHEMA)
        .collect()
    )


def deliveries(spans: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Messages and their deliveries by minute of the producer (DELIVERIES_SCHEMA), and lags from the producer's start
    to the consumer's by cell (DELIVERY_CELLS_SCHEMA; negative lags are in cell -1).

    A consumer belongs to the producer that its first link names, else to its parent.
    """
    if not _has(spans, "trace_id", "span_id", "parent_span_id", "destination"):
        return DELIVERIES_SCHEMA.to_frame(), DELIVERY_CELLS_SCHEMA.to_frame()
    producers = (
        spans.lazy()
        .filter(pl.col("kind") == "producer", pl.col("status") != "error")
        .select(
            _minute(), _text("region").fill_null(UNKNOWN), _text("tenant"), _text("destination").fill_null(""),
            "trace_id", "span_id", sent=_begin(),
        )
    )  # fmt: skip
    by = ["minute", *_TOPIC]
    consumers = _caused(spans).filter(~pl.col("is_server")).select("trace_id", "span_id", "begin")
    matched = producers.join(consumers, on=["trace_id", "span_id"])
    lag = pl.col("begin") - pl.col("sent")
    cells = matched.with_columns(
        cell=pl.when(lag < 0).then(-1).otherwise(bucket_index(lag) // LAG_CELL_BUCKETS).cast(pl.Int16)
    )
    sent, delivered, by_cell = pl.collect_all(
        [
            producers.group_by(by).agg(messages=pl.len()),
            matched.group_by(by).agg(deliveries=pl.len()),
            cells.group_by(*by, "cell").agg(spans=pl.len()),
        ]
    )
    counts = sent.join(delivered, on=by, how="left").with_columns(pl.col("deliveries").fill_null(0))
    return (
        counts.select(DELIVERIES_SCHEMA.names()).cast(DELIVERIES_SCHEMA),
        by_cell.select(DELIVERY_CELLS_SCHEMA.names()).cast(DELIVERY_CELLS_SCHEMA),
    )
