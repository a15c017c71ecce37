"""How messages reach their consumers: fan-out, lag, what is not delivered so far, and clocks that disagree.

A message is a producer's span; its deliveries are the consumers' spans that have it as parent or in a link (each
once), in whatever trace. The lag runs from the producer's start to the consumer's. A consumer that seems to start
before its producer tells of clocks that disagree: it is delivered, counted in `negative_lags`, and has no lag.

Messages without any delivery are right-censored: `messages - delivered` of a minute are known to take longer than the
time since, so that an estimator such as Kaplan-Meier can take them in. They become delivered when a consumer comes.
"""

from __future__ import annotations

import polars as pl

from analytics.buckets import bucket_index
from analytics.traces.additive import WEIGHT, Shape
from analytics.traces.forest import UNKNOWN_REGION, Forest

FAN_OUT_MAX = 2**15 - 1
DELIVERIES = Shape(
    keys={"window_start": pl.Datetime("us"), **dict.fromkeys(("region", "tenant", "destination"), pl.String())},
    counts=("messages", "delivered", "deliveries", "consumer_errors", "negative_lags"),
    maps=("lag_buckets", "first_lag_buckets", "last_lag_buckets", "fan_out_counts"),
)
CLOCK_SKEW = Shape(
    keys={
        "window_start": pl.Datetime("us"),
        **dict.fromkeys(("from_region", "from_host", "to_region", "to_host"), pl.String()),
    },
    counts=("negative_lags",),
    totals=("ahead_sum_ns",),
)


def rows(forest: Forest) -> pl.DataFrame:
    """Sums by minute, region, tenant and destination of the producers; see DELIVERIES.

    `lag_buckets`: deliveries by lag; `first_lag_buckets`, `last_lag_buckets`: messages by the lag of their first and
    last delivery; `fan_out_counts`: messages by number of deliveries (FAN_OUT_MAX and more alike).
    """
    return DELIVERIES.rows(events(forest).with_columns(pl.lit(1).alias(WEIGHT)))


def events(forest: Forest) -> pl.DataFrame:
    """Events of DELIVERIES without weight: one a message, and one a delivery."""
    found = _deliveries(forest)
    of_messages = (
        found.group_by("from_row")
        .agg(
            pl.col("to_row").count().alias("deliveries"),
            pl.col("lag_ns").min().alias("first_ns"),
            pl.col("lag_ns").max().alias("last_ns"),
        )
        .select(
            "from_row",
            messages=pl.lit(1, pl.Int64),
            delivered=(pl.col("deliveries") > 0).cast(pl.Int64),
            first_lag_buckets=bucket_index(pl.col("first_ns")),
            last_lag_buckets=bucket_index(pl.col("last_ns")),
            fan_out_counts=pl.col("deliveries").clip(upper_bound=FAN_OUT_MAX).cast(pl.Int16),
        )
    )
    of_deliveries = found.filter(pl.col("to_row").is_not_null()).select(
        "from_row",
        deliveries=pl.lit(1, pl.Int64),
        consumer_errors=pl.col("is_error").cast(pl.Int64),
        negative_lags=pl.col("lag_ns").is_null().cast(pl.Int64),
        lag_buckets=bucket_index(pl.col("lag_ns")),
    )
    return _placed(forest, pl.concat([of_messages, of_deliveries], how="diagonal"))


def _deliveries(forest: Forest) -> pl.DataFrame:
    """Each producer with each consumer, or none: from_row, to_row, lag_ns (null where negative), is_error."""
    span = forest.spans.select("start_time", "kind", is_error=pl.col("status") == "error").with_row_index("row")
    span = span.with_columns(pl.col("row").cast(pl.Int64))
    produced = span.filter(pl.col("kind") == "producer").select(from_row="row", sent="start_time")
    consumed = span.select(to_row="row", received="start_time", is_error="is_error")
    pairs = forest.messages.join(consumed, on="to_row")
    lag = (pl.col("received") - pl.col("sent")).cast(pl.Int64)
    return produced.join(pairs, on="from_row", how="left").with_columns(lag_ns=pl.when(lag >= 0).then(lag))


def _placed(forest: Forest, counted: pl.DataFrame) -> pl.DataFrame:
    place = forest.spans.select(
        pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")).alias("window_start"),
        pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION),
        pl.col("tenant").cast(pl.String),
        pl.col("destination").cast(pl.String).fill_null(""),
    )[counted["from_row"]]
    found = pl.concat([place, counted.drop("from_row")], how="horizontal")
    return found.with_columns(pl.col(DELIVERIES.counts).fill_null(0))


def skew_rows(forest: Forest) -> pl.DataFrame:
    """Calls and deliveries that seem to start before what caused them, by the two hosts; see CLOCK_SKEW.

    `ahead_sum_ns` is by how much, in sum; `window_start` the minute of the caller or producer.
    """
    return CLOCK_SKEW.rows(skew_events(forest).with_columns(pl.lit(1).alias(WEIGHT)))


def skew_events(forest: Forest) -> pl.DataFrame:
    """Events of CLOCK_SKEW without weight: one for each call or delivery between two hosts with a negative lag."""
    pairs = pl.concat([forest.calls, forest.messages]).unique()
    span = forest.spans.select(
        "start_time", pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION), pl.col("host").cast(pl.String)
    )
    caused, came = span[pairs["from_row"]], span[pairs["to_row"]]
    found = pl.DataFrame(
        {
            "window_start": caused["start_time"].dt.truncate("1m").cast(pl.Datetime("us")),
            "from_region": caused["region"],
            "from_host": caused["host"],
            "to_region": came["region"],
            "to_host": came["host"],
            "negative_lags": pl.repeat(1, len(pairs), dtype=pl.Int64, eager=True),
            "ahead_sum_ns": (caused["start_time"] - came["start_time"]).cast(pl.Int64),
        }
    )
    return found.filter((pl.col("ahead_sum_ns") > 0) & (pl.col("from_host") != pl.col("to_host")))
