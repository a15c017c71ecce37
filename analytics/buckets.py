"""Latency as logarithmic buckets: counts that add up, quantiles within 1 % of an actual duration.

The logarithmic mapping of DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", PVLDB 12(12), 2019), with relative error a = 0.01 and g = (1 + a) / (1 - a) = 101/99:
bucket i holds the durations in (g^(i-1), g^i] nanoseconds and stands for 2 g^i / (g + 1) = 0.99 g^i, which is
within a of each of them. Durations of 0 have the bucket ZERO_INDEX, which stands for 0. The largest index, of
2^63 - 1 ns, is INDEX_MAX.

The quantile q of n durations is the one at position floor(q (n - 1)), counted from 0 in order (numpy's method
'lower'); its estimate is the value of the first bucket whose cumulative count exceeds q (n - 1). The macro
`latency_quantile_ns` follows the same definition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import polars as pl

RELATIVE_ERROR = 0.01
GAMMA = 101 / 99
LOG_GAMMA = 2 * math.atanh(RELATIVE_ERROR)
ZERO_INDEX = -1
INDEX_MAX = 2184
BUCKETS = pl.Map(pl.Int16, pl.UInt64)

# ln(_BELOW_ONE) / LOG_GAMMA lies in (-2, -1), so 0 falls into ZERO_INDEX without a branch.
_BELOW_ONE = 0.97


def bucket_index(duration_ns: pl.Expr) -> pl.Expr:
    """The Int16 bucket of a duration in ns; what is below 1 ns falls into ZERO_INDEX.

    Computed in floating point: exact up to 2 hours; beyond, a duration that differs from a bucket's bound by
    less than 1e-12 of it may fall into the bucket next to its own.
    """
    above_zero = duration_ns.cast(pl.Float64).clip(lower_bound=_BELOW_ONE)
    return (above_zero.log() / LOG_GAMMA).ceil().cast(pl.Int16)


def bucket_value_ns(index: int) -> float:
    """The duration in ns that a bucket stands for."""
    return 0.0 if index < 0 else 0.99 * GAMMA ** float(index)


_VALUES_NS = pl.Series("value_ns", [bucket_value_ns(i) for i in range(ZERO_INDEX, INDEX_MAX + 1)], pl.Float64)


def quantile(buckets: Mapping[int, int], q: float) -> float | None:
    """The quantile `q` of one set of buckets in ns, None where it is empty. Raises ValueError unless 0 <= q <= 1."""
    _check(q)
    rank = q * (sum(buckets.values()) - 1)
    up_to = 0
    for index in sorted(buckets):
        up_to += buckets[index]
        if up_to > rank:
            return bucket_value_ns(index)
    return None


def quantiles(
    frame: pl.DataFrame, by: Sequence[str], qs: Sequence[float], column: str = "latency_buckets"
) -> pl.DataFrame:
    """Merge the bucket maps of all rows with the same `by` and take quantiles of the result.

    Columns: *by and one Float64 in ns for each of `qs`, named as `quantile_name` says. Groups without any bucket
    are left out. Raises ValueError unless 0 <= q <= 1.
    """
    cells = (
        frame.lazy()
        .select(*by, pl.col(column).map.entries().alias("entry"))
        .explode("entry", empty_as_null=False)
        .select(
            *by,
            pl.col("entry").struct.field("key").alias("bucket"),
            pl.col("entry").struct.field("value").alias("spans"),
        )
    )
    return cell_quantiles(cells, by, qs).collect()


def cell_quantiles(cells: pl.LazyFrame, by: Sequence[str], qs: Sequence[float]) -> pl.LazyFrame:
    """As `quantiles`, of a frame with columns *by, bucket (its index) and spans (its count), in any order."""
    for q in qs:
        _check(q)
    total = pl.col("spans").sum()
    ordered = cells.group_by(*by, "bucket").agg(pl.col("spans").sum()).sort("bucket")
    found = ordered.group_by(by).agg(
        pl.col("bucket")
        .filter(pl.col("spans").cum_sum() > q * (total.cast(pl.Float64) - 1))
        .first()
        .alias(quantile_name(q))
        for q in qs
    )
    return found.with_columns(
        pl.lit(_VALUES_NS).gather(pl.col(quantile_name(q)) - ZERO_INDEX).alias(quantile_name(q)) for q in qs
    )


def quantile_name(q: float) -> str:
    """`p99_ns` for 0.99, `p99.9_ns` for 0.999."""
    return f"p{q * 100:.6g}_ns"


def _check(q: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"quantile {q}: expected a number from 0 to 1, such as 0.99")
