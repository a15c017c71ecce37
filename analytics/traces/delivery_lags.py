"""How long messages take to their first consumer, with those that none has got so far, from table `deliveries_1m`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from analytics.buckets import bucket_value_ns
from analytics.survival import Curve, Delays
from analytics.window import Window
from collector.lake.lake import Reader

DIMENSIONS = ("region", "tenant", "destination")
LAGS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("messages", "undelivered"), pl.Int64()),
        **dict.fromkeys(
            (f"{name}{bound}" for name in ("p50_ns", "p95_ns", "undelivered_share") for bound in ("", "_low", "_high")),
            pl.Float64(),
        ),
    }
)
_SHARES = {"p50_ns": 0.5, "p95_ns": 0.95}


def delivery_lags(
    reader: Reader, window: Window, by: Sequence[str] = ("region", "destination"), now: datetime | None = None
) -> pl.DataFrame:
    """Kaplan-Meier estimates of the lag to the first consumer, for each value of `by` (of DIMENSIONS): LAGS_SCHEMA.

    Messages of a minute that are `undelivered` count as longer than from its end to `now` (aware; the window's end).
    p50_ns and p95_ns with 95 % intervals (within 1 %, as buckets are); null where so few were delivered that the curve
    does not come down to them. `undelivered_share`: of the longest time followed, with Greenwood's interval. Negative
    lags (clocks that disagree) count as 0. Ordered by `by`; without messages no row. Raises ValueError for another
    dimension, duckdb.Error without the table.
    """
    if set(by) - set(DIMENSIONS) or len(set(by)) != len(by):
        raise ValueError(f"by = {list(by)}: expected different ones of {', '.join(DIMENSIONS)}")
    keys = list(by) or ["everything"]
    names = ", ".join(by) or "'' AS everything"
    source = "FROM deliveries_1m WHERE window_start >= $start AND window_start < $until"
    values = {"start": window.start.replace(tzinfo=None), "until": window.end.replace(tzinfo=None)}
    counts = reader.frame(
        f"SELECT {names}, window_start, sum(messages)::BIGINT AS messages, sum(delivered)::BIGINT AS delivered "
        f"{source} GROUP BY ALL",
        values,
    )
    lags = reader.frame(
        f"SELECT {', '.join(keys)}, bucket, sum(messages)::BIGINT AS messages FROM (SELECT {names}, "
        f"unnest(map_keys(first_lag_buckets)) AS bucket, unnest(map_values(first_lag_buckets)) AS messages {source}) "
        "GROUP BY ALL HAVING sum(messages) > 0",
        values,
    )
    until = (now or window.end).replace(tzinfo=None)
    rows = []
    for key, part in counts.sort(keys).group_by(keys, maintain_order=True):
        mine = lags.filter(pl.col(name) == value for name, value in zip(keys, key, strict=True))
        rows.append({**dict(zip(keys, key, strict=True)), **_estimated(part, mine, until)})
    found = pl.DataFrame(rows, schema={**dict.fromkeys(keys, pl.String()), **LAGS_SCHEMA})
    return found.filter(pl.col("messages") > 0).select(*by, *LAGS_SCHEMA.names())


def _estimated(counts: pl.DataFrame, lags: pl.DataFrame, until: datetime) -> dict[str, float | int | None]:
    messages, delivered = int(counts["messages"].sum()), int(counts["delivered"].sum())
    found: dict[str, float | int | None] = {"messages": messages, "undelivered": messages - delivered}
    age_ns = counts.select(
        (pl.lit(until, pl.Datetime("us")) - pl.col("window_start") - pl.duration(minutes=1))
        .dt.total_nanoseconds().clip(lower_bound=0).cast(pl.Float64)
    ).to_series()  # fmt: skip
    took = pl.Series([0.0, *(bucket_value_ns(bucket) for bucket in lags["bucket"])])
    many = pl.Series([max(delivered - int(lags["messages"].sum()), 0), *lags["messages"]]).cast(pl.Float64)
    undelivered = (counts["messages"] - counts["delivered"]).cast(pl.Float64)
    delays = Delays.of(took.to_numpy(), many.to_numpy(), age_ns.to_numpy(), undelivered.to_numpy())
    if delays.ended.sum() <= 0:
        return found
    curve = Curve(delays)
    estimates = {name: curve.quantile(share) for name, share in _SHARES.items()}
    estimates["undelivered_share"] = curve.lasting(curve.followed_ns)
    for name, estimate in estimates.items():
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found
