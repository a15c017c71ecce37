"""When each version, instance and host of a service was first and last seen, by region: what changes of state are.

Rows of any spans merge to those of all: the earliest and latest of times, and the sum of spans.
"""

from __future__ import annotations

import polars as pl

from analytics.traces.forest import UNKNOWN_REGION

ATTRIBUTES = {
    "service.version": "service_version",
    "service.instance.id": "service_instance_id",
    "host.name": "host",
}
"""What is looked for, by OpenTelemetry's name, and the column of spans that has it."""
SPAN_COLUMNS = ("service_name", "region", "start_time", "received_at", *ATTRIBUTES.values())
KEYS = ("attribute", "value", "service_name", "region")
SIGHTINGS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(KEYS, pl.String()),
        **dict.fromkeys(("first_seen", "last_seen", "first_received_at"), pl.Datetime("us")),
        "spans": pl.Int64(),
    }
)


def rows(spans: pl.DataFrame) -> pl.DataFrame:
    """One row of SIGHTINGS_SCHEMA for each value of ATTRIBUTES, service and region.

    `spans` has SPAN_COLUMNS. `first_seen` and `last_seen` are the earliest and latest start of a span with the value,
    `first_received_at` when the collector first received one. Values that are missing have no row.
    """
    by_all = ["service_name", "region", *ATTRIBUTES.values()]
    together = spans.group_by(by_all).agg(
        pl.col("start_time").min().alias("first_seen"),
        pl.col("start_time").max().alias("last_seen"),
        pl.col("received_at").min().alias("first_received_at"),
        pl.len().cast(pl.Int64).alias("spans"),
    )
    single = [
        together.with_columns(
            pl.lit(name).alias("attribute"),
            pl.col(column).cast(pl.String).alias("value"),
            pl.col("service_name").cast(pl.String),
            pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION),
        ).filter(pl.col("value").is_not_null())
        for name, column in ATTRIBUTES.items()
    ]
    return merged(pl.concat(part.select(SIGHTINGS_SCHEMA.names()).cast(SIGHTINGS_SCHEMA) for part in single))


def merged(found: pl.DataFrame) -> pl.DataFrame:
    """The same in one row for each value, service and region, in this order."""
    return (
        found.group_by(KEYS)
        .agg(
            pl.col("first_seen").min(),
            pl.col("last_seen").max(),
            pl.col("first_received_at").min(),
            pl.col("spans").sum(),
        )
        .sort(KEYS)
        .select(SIGHTINGS_SCHEMA.names())
        .cast(SIGHTINGS_SCHEMA)
    )
