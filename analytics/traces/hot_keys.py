"""Which keys of caches and topics are hot: the frequent keys of each minute and destination, by a mergeable summary.

The summary is that of Misra and Gries ("Finding repeated elements", Science of Computer Programming 2, 1982) with
COUNTERS counters, merged as Agarwal, Cormode, Huang, Phillips, Wei and Yi do ("Mergeable summaries", PODS 2012):
counters of the same key add up; where more than COUNTERS are left, the largest of those too many is subtracted from
all. A counter is never above the true count and at most `undercount` below it, which is at most
keyed / (COUNTERS + 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import polars as pl

from analytics.traces.forest import UNKNOWN_REGION

COUNTERS = 20
HASH_BYTES = 8
PLACE = ("region", "tenant", "service_name", "component", "destination", "kind")
KEYS = ("window_start", *PLACE)
SPAN_COLUMNS = ("start_time", *PLACE, "key")
HOT_KEYS_SCHEMA = pl.Schema(
    {
        "window_start": pl.Datetime("us"),
        **dict.fromkeys(PLACE, pl.String()),
        **dict.fromkeys(("spans", "keyed", "undercount"), pl.Int64()),
        "key_counts": pl.Map(pl.String, pl.Int64),
    }
)


def rows(spans: pl.DataFrame, secret: bytes | None) -> pl.DataFrame:
    """One row of HOT_KEYS_SCHEMA for each minute and PLACE of spans with a destination.

    `spans` has SPAN_COLUMNS; `key` is null where a span has none. `spans`: those there, `keyed`: those with a key.
    With `secret` keys are hashed (see `hashed`), else stored as they are.
    """
    known = (
        spans.lazy()
        .filter(pl.col("destination").is_not_null())
        .with_columns(pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")).alias("window_start"))
    )
    sums = known.group_by(KEYS).agg(
        pl.len().cast(pl.Int64).alias("spans"),
        pl.col("key").count().cast(pl.Int64).alias("keyed"),
        pl.lit(0, pl.Int64).alias("undercount"),
    )
    with_key = known.filter(pl.col("key").is_not_null())
    counts = with_key.group_by(*KEYS, "key").agg(pl.len().cast(pl.Int64).alias("count"))
    collected, counted = pl.collect_all([sums, counts])
    return _summary(_labelled(collected), _labelled(counted), secret)


def merged(found: pl.DataFrame) -> pl.DataFrame:
    """The same in one row for each minute and PLACE, with COUNTERS counters each."""
    sums = found.group_by(KEYS).agg(pl.col("spans", "keyed", "undercount").sum())
    entry = pl.col("entry").struct
    counts = (
        found.select(*KEYS, pl.col("key_counts").map.entries().alias("entry"))
        .explode("entry", empty_as_null=False)
        .group_by(*KEYS, entry.field("key").alias("key"))
        .agg(entry.field("value").sum().alias("count"))
    )
    return _summary(sums, counts, None)


def hashed(keys: Sequence[str], secret: bytes) -> list[str]:
    """Each key as HASH_BYTES of keyed BLAKE2b (RFC 7693) in hex: alike for alike keys, and not to be guessed."""
    return [hashlib.blake2b(key.encode(), digest_size=HASH_BYTES, key=secret).hexdigest() for key in keys]


def concentration(found: pl.DataFrame) -> pl.DataFrame:
    """How concentrated the keys of each row of HOT_KEYS_SCHEMA are: its columns but `key_counts`, and

    `top_key`, `top_count` (at least so often), `top_share` and `top_share_max` (bounds of the top key's share of
    `keyed`), `hhi` (the Herfindahl-Hirschman index: the sum of squared shares, from below). Null without a key.
    """
    entry = pl.col("entry").struct
    share = entry.field("value") / pl.col("keyed")
    top = (
        found.with_row_index("row")
        .with_columns(pl.col("key_counts").map.entries().alias("entry"))
        .explode("entry", empty_as_null=False)
        .sort("row", entry.field("value"), entry.field("key"), descending=[False, True, True])
        .group_by("row", maintain_order=True)
        .agg(
            entry.field("key").first().alias("top_key"),
            entry.field("value").first().alias("top_count"),
            (share**2).sum().alias("hhi"),
        )
    )
    joined = found.drop("key_counts").with_row_index("row").join(top, on="row", how="left", maintain_order="left")
    keyed = pl.col("keyed")
    return joined.drop("row").with_columns(
        top_share=pl.col("top_count") / keyed,
        top_share_max=((pl.col("top_count") + pl.col("undercount")) / keyed).clip(upper_bound=1.0),
    )


def _labelled(frame: pl.DataFrame) -> pl.DataFrame:
    named = frame.with_columns(pl.col(name).cast(pl.String) for name in PLACE)
    return named.with_columns(pl.col("region").fill_null(UNKNOWN_REGION))


def _summary(sums: pl.DataFrame, counts: pl.DataFrame, secret: bytes | None) -> pl.DataFrame:
    """Rows of sums (KEYS, spans, keyed, undercount) and exact or lower counts (KEYS, key, count), to COUNTERS each."""
    grouped = sums.with_row_index("group")
    ranked = (
        counts.join(grouped.select("group", *KEYS), on=KEYS)
        .select("group", "key", "count")
        .sort("group", "count", "key", descending=[False, True, False])
        .with_columns(rank=pl.int_range(pl.len()).over("group"))
    )
    excess = ranked.filter(pl.col("rank") == COUNTERS).select("group", excess="count")
    kept = (
        ranked.filter(pl.col("rank") < COUNTERS)
        .join(excess, on="group", how="left", maintain_order="left")
        .select("group", "key", value=pl.col("count") - pl.col("excess").fill_null(0))
        .filter(pl.col("value") > 0)
    )
    if secret is not None:
        kept = kept.with_columns(pl.Series("key", hashed(kept["key"].to_list(), secret), pl.String))
    maps = kept.group_by("group").agg(pl.struct("key", "value").alias("key_counts"))
    joined = grouped.join(maps, on="group", how="left").join(excess, on="group", how="left")
    empty = pl.lit([], pl.List(pl.Struct({"key": pl.String(), "value": pl.Int64()})))
    return joined.select(
        *KEYS,
        "spans",
        "keyed",
        pl.col("undercount") + pl.col("excess").fill_null(0),
        pl.when(pl.col("key_counts").is_null()).then(empty).otherwise(pl.col("key_counts")).alias("key_counts"),
    ).cast(HOT_KEYS_SCHEMA)
