"""Who calls and tells whom: edges between services, and to what has no spans of its own.

A call is a server span below a caller's span; a message is a consumer span joined to a producer's by parent or link
(see `Forest.calls` and `Forest.messages`). Both sides are counted on the edge: the caller's spans with their latency
and errors, and the called side's with theirs. What lacks its other half is on an edge as well, `is_matched` false:
- a client span without a server span leads to a node of its component's type (cache, database, ...) that is named by
  its destination; so does a producer span without server or consumer span to its topic;
- a server or consumer span whose parent or link is not there comes from an `unknown` node.
A server or consumer span that names no parent comes from an `entry` node, which is no lack.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from analytics.buckets import bucket_index
from analytics.traces.additive import WEIGHT, Shape
from analytics.traces.forest import NONE, UNKNOWN_REGION, Forest

PENDING = timedelta(minutes=2)
"""How long after the end of its minute an edge that lacks a half is pending, before it is held to be unmatched."""
NODES = ("client_type", "client", "client_region", "server_type", "server", "server_region")
EDGES = Shape(
    keys={
        "window_start": pl.Datetime("us"),
        **dict.fromkeys(("tenant", "connection", *NODES, "destination"), pl.String()),
        "is_matched": pl.Boolean(),
    },
    counts=("client_count", "client_errors", "server_count", "server_errors"),
    maps=("client_buckets", "server_buckets"),
)
SERVICE, ENTRY, UNKNOWN = "service", "entry", "unknown"


def rows(forest: Forest) -> pl.DataFrame:
    """Sums by minute (of the caller where there is one), tenant, connection and both nodes; see EDGES.

    `connection` is `call` or `message`; `destination` the topic of a message, else empty. A message is counted once on
    each edge that it takes, whatever the number of consumers there.
    """
    return EDGES.rows(events(forest).with_columns(pl.lit(1).alias(WEIGHT)))


def events(forest: Forest) -> pl.DataFrame:
    """Events of EDGES without weight: the halves of all calls and messages."""
    span = _spans(forest)
    called, told = forest.calls, forest.messages
    parts = [
        _called_side(span, called, "server", "call"),
        _caller_side(span, called.sort("to_row").unique("from_row", keep="first"), "call"),
        _called_side(span, told, "consumer", "message"),
        _caller_side(span, _once_an_edge(span, told), "message"),
        _to_nodes(span, called, told),
    ]
    return pl.concat(part.select(_EVENT) for part in parts)


def with_state(found: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows of EDGES with `state`: `matched`, `pending` for PENDING after their minute, then `unmatched`."""
    is_young = pl.col("window_start") >= now - PENDING - timedelta(minutes=1)
    state = pl.when("is_matched").then(pl.lit("matched")).when(is_young).then(pl.lit("pending"))
    return found.with_columns(state.otherwise(pl.lit("unmatched")).alias("state"))


_EVENT = (*EDGES.keys, *EDGES.counts, *EDGES.maps)


def _spans(forest: Forest) -> pl.DataFrame:
    return forest.spans.select(
        pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")).alias("window_start"),
        pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION),
        pl.col("kind", "service_name", "tenant", "component").cast(pl.String),
        pl.col("destination").cast(pl.String).fill_null(""),
        (pl.col("status") == "error").cast(pl.Int64).alias("errors"),
        bucket_index(pl.col("duration_ns")).alias("bucket"),
        (pl.col("parent_span_id").is_not_null() | (pl.col("links").list.len() > 0)).alias("is_caused"),
        pl.Series("has_parent", forest.parent != NONE),
    ).with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("row"))


def _side(side: str) -> dict[str, pl.Expr]:
    """The measures of one half of an edge; nothing of the other."""
    other = "server" if side == "client" else "client"
    return {
        f"{side}_count": pl.lit(1, pl.Int64),
        f"{side}_errors": pl.col("errors"),
        f"{side}_buckets": pl.col("bucket"),
        f"{other}_count": pl.lit(0, pl.Int64),
        f"{other}_errors": pl.lit(0, pl.Int64),
        f"{other}_buckets": pl.lit(None, pl.Int16),
    }


def _destination(connection: str) -> pl.Expr:
    return pl.col("destination") if connection == "message" else pl.lit("")


def _called_side(span: pl.DataFrame, pairs: pl.DataFrame, kind: str, connection: str) -> pl.DataFrame:
    """Halves of the spans of a kind that are called or told: one for each caller, or one without."""
    caller = span.select("row", pl.col("window_start", "tenant", "service_name", "region").name.prefix("client_"))
    found = (
        span.filter(pl.col("kind") == kind)
        .join(pairs, left_on="row", right_on="to_row", how="left")
        .join(caller, left_on="from_row", right_on="row", how="left")
    )
    is_known = pl.col("client_service_name").is_not_null()
    absent = pl.when("is_caused").then(pl.lit(UNKNOWN)).otherwise(pl.lit(ENTRY))
    # Whose parent is there, and no caller, has been called within its own service.
    return found.filter(is_known | ~pl.col("has_parent")).select(
        pl.coalesce("client_window_start", "window_start").alias("window_start"),
        pl.coalesce("client_tenant", "tenant").alias("tenant"),
        connection=pl.lit(connection),
        client_type=pl.when(is_known).then(pl.lit(SERVICE)).otherwise(absent),
        client=pl.col("client_service_name").fill_null(""),
        client_region=pl.col("client_region").fill_null(""),
        server_type=pl.lit(SERVICE),
        server="service_name",
        server_region="region",
        destination=_destination(connection),
        is_matched=is_known | ~pl.col("is_caused"),
        **_side("server"),
    )


def _caller_side(span: pl.DataFrame, pairs: pl.DataFrame, connection: str) -> pl.DataFrame:
    """Halves of callers on the edges to what they called or told; columns from_row and to_row, one pair a half."""
    called = span.select("row", pl.col("service_name", "region", "destination").name.prefix("server_"))
    found = (
        span.filter(pl.col("kind").is_in(["client", "producer"]))
        .join(pairs, left_on="row", right_on="from_row")
        .join(called, left_on="to_row", right_on="row")
    )
    return found.select(
        "window_start",
        "tenant",
        connection=pl.lit(connection),
        client_type=pl.lit(SERVICE),
        client="service_name",
        client_region="region",
        server_type=pl.lit(SERVICE),
        server="server_service_name",
        server_region="server_region",
        destination=pl.col("server_destination") if connection == "message" else pl.lit(""),
        is_matched=pl.lit(True),
        **_side("client"),
    )


def _once_an_edge(span: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    node = span.select("row", "service_name", "region", "destination")
    edges = told.join(node, left_on="to_row", right_on="row").sort("to_row")
    return edges.unique(["from_row", "service_name", "region", "destination"], keep="first").select(told.columns)


def _to_nodes(span: pl.DataFrame, called: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    """Halves of client spans without a server span, and of producer spans without a consumer span."""
    lonely_clients = span.filter(pl.col("kind") == "client").join(
        called, left_on="row", right_on="from_row", how="anti"
    )
    lonely_producers = span.filter(pl.col("kind") == "producer").join(
        told, left_on="row", right_on="from_row", how="anti"
    )
    is_message = pl.col("kind") == "producer"
    return pl.concat([lonely_clients, lonely_producers]).select(
        "window_start",
        "tenant",
        connection=pl.when(is_message).then(pl.lit("message")).otherwise(pl.lit("call")),
        client_type=pl.lit(SERVICE),
        client="service_name",
        client_region="region",
        server_type="component",
        server="destination",
        server_region=pl.lit(""),
        destination=pl.when(is_message).then("destination").otherwise(pl.lit("")),
        is_matched=pl.lit(False),
        **_side("client"),
    )
