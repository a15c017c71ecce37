"""From spans to partial rows, and from partial rows to fewer of them: pure functions of frames.

A partial row counts some of the spans of a window and of a set of dimensions; the sum of all rows with the same
window and dimensions is exact, whichever spans each of them counted (ADDITIVE says how each column adds up).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from analytics.buckets import BUCKETS, ZERO_INDEX, bucket_index

DIMENSIONS = ("region", "tenant", "service_name", "component", "operation", "kind")
MEASURES = ("start_time", "duration_ns", "status", "cache_hit", "payload_bytes", "sample_weight")
SPAN_COLUMNS = (*DIMENSIONS, *MEASURES)
UNKNOWN = "unknown"
NONE = "none"
"""Label of what a span may well be without, such as an error type; what it should have is `unknown` instead."""
PAYLOAD_BYTES_MAX = 2**40
MAPS = {"latency_buckets": BUCKETS, "second_counts": pl.Map(pl.UInt16, pl.UInt32)}
DURATION_SUM = pl.Decimal(38, 0)
MEASURE_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("count", "errors", "hits", "misses", "bytes"), pl.Int64()),
        **dict.fromkeys(("weighted_count", "weighted_errors", "weight_squares"), pl.Float64()),
        **dict.fromkeys(("unknown_weight_count", "folded_series"), pl.Int64()),
        "duration_sum_ns": DURATION_SUM,
        "duration_max_ns": pl.Int64(),
        **MAPS,
    }
)
SUMMED = (
    "count",
    "errors",
    "hits",
    "misses",
    "bytes",
    "weighted_count",
    "weighted_errors",
    "weight_squares",
    "unknown_weight_count",
    "folded_series",
    "duration_sum_ns",
)

_MINUTE_NS = 60_000_000_000
_CELLS_MAX = 4096  # above the number of buckets and the seconds of an hour
_GROUPS_MAX = 2**63 // _CELLS_MAX
_NULL_CODE = -(2**63)


def rollup_schema(dimensions: Sequence[str]) -> pl.Schema:
    """The columns of a rollup by these dimensions: window_start, the dimensions as text, the measures."""
    return pl.Schema(
        {"window_start": pl.Datetime("us"), **dict.fromkeys(dimensions, pl.String()), **MEASURE_SCHEMA}
    )


ROLLUP_SCHEMA = rollup_schema(DIMENSIONS)


def partials(spans: pl.DataFrame, dimensions: Sequence[str] = DIMENSIONS) -> pl.DataFrame:
    """One row for each minute and set of dimensions of `spans`, with the columns of `rollup_schema(dimensions)`.

    `spans` has `dimensions` (String, Categorical or whole numbers) and MEASURES: status as String or Categorical,
    `start_time` as Datetime("ns"); other columns are ignored. A null dimension becomes `null_label` of it.
    `payload_bytes` counts for 0 to PAYLOAD_BYTES_MAX a span, so that no sum can overflow; durations are summed in
    128 bits. Up to 2**23 spans at once.
    """
    schema = rollup_schema(dimensions)
    if spans.is_empty():
        return schema.to_frame()
    rows = _rows(spans, dimensions)
    weights = _UNKNOWN_WEIGHTS if spans["sample_weight"].null_count() == len(spans) else _WEIGHTS
    counted = rows.group_by("group").agg(*_COUNTS, *weights, pl.col("row").first())
    buckets = _counted(rows, pl.col("bucket").cast(pl.Int64) - ZERO_INDEX)
    seconds = _counted(rows, pl.col("second"))
    sums, latency, second = pl.collect_all(
        [counted, _maps(buckets, "latency_buckets", ZERO_INDEX), _maps(seconds, "second_counts")],
        engine="streaming",
    )
    found = spans.select(*dimensions, "start_time")[sums["row"]].with_columns(
        *(pl.col(name).cast(pl.String).fill_null(null_label(name)) for name in dimensions),
        window_start=pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")),
    )
    joined = pl.concat([sums, found], how="horizontal").join(latency, on="group").join(second, on="group")
    return joined.select(schema.names()).cast(schema)


def merged(
    rows: pl.DataFrame, window: Literal["1m", "1h"], dimensions: Sequence[str] = DIMENSIONS
) -> pl.DataFrame:
    """The same sums in one row for each window of the given length and set of dimensions, ordered by these.

    `rows` has the columns of `rollup_schema(dimensions)`, and so has the result. Rows of minutes become rows of
    hours: `second_counts` then goes by the second of the hour.
    """
    schema, key = rollup_schema(dimensions), ("window_start", *dimensions)
    start = pl.col("window_start")
    numbered = rows.with_row_index("row").with_columns(
        start.dt.truncate(window),
        offset=(start - start.dt.truncate(window)).dt.total_seconds().cast(pl.UInt16),
    )
    grouped = (
        numbered.group_by(key)
        .agg(*(pl.col(name).sum() for name in SUMMED), pl.col("duration_max_ns").max(), "row")
        .sort(key)
        .with_row_index("group")
    )
    members = grouped.lazy().select("group", "row").explode("row", empty_as_null=False)
    source = numbered.lazy().join(members, on="row")
    buckets = _summed(source, "latency_buckets", pl.col("key").cast(pl.Int64) - ZERO_INDEX)
    seconds = _summed(source, "second_counts", pl.col("key").cast(pl.Int64) + pl.col("offset"))
    maps = pl.collect_all(
        [_maps(buckets, "latency_buckets", ZERO_INDEX), _maps(seconds, "second_counts")], engine="streaming"
    )
    joined = grouped.join(maps[0], on="group", maintain_order="left").join(
        maps[1], on="group", maintain_order="left"
    )
    return joined.select(schema.names()).cast(schema)


def null_label(dimension: str) -> str:
    """What stands in a rollup for spans without a value of `dimension`."""
    return NONE if dimension in ("destination", "error_type", "http_status") else UNKNOWN


_COUNTS = (
    pl.len().alias("count"),
    pl.col("is_error").sum().alias("errors"),
    pl.col("cache_hit").sum().alias("hits"),
    (pl.col("cache_hit").count() - pl.col("cache_hit").sum()).alias("misses"),
    pl.col("payload_bytes").sum().alias("bytes"),
    pl.lit(0, pl.Int64).alias("folded_series"),
    pl.col("duration_ns").cast(pl.Int128).sum().alias("duration_sum_ns"),
    pl.col("duration_ns").max().alias("duration_max_ns"),
)
_WEIGHTS = (
    pl.col("weight").sum().alias("weighted_count"),
    pl.col("error_weight").sum().alias("weighted_errors"),
    pl.col("weight_square").sum().alias("weight_squares"),
    pl.col("sample_weight").null_count().alias("unknown_weight_count"),
)
# Where no weight is known, which is usual, each is 1: counts say the same for less.
_UNKNOWN_WEIGHTS = (
    pl.len().cast(pl.Float64).alias("weighted_count"),
    pl.col("is_error").sum().cast(pl.Float64).alias("weighted_errors"),
    pl.len().cast(pl.Float64).alias("weight_squares"),
    pl.len().alias("unknown_weight_count"),
)


def _rows(spans: pl.DataFrame, dimensions: Sequence[str]) -> pl.LazyFrame:
    """Spans with `group`, a number of minute and dimensions, and the cells that they fall into."""
    codes = (
        spans.lazy()
        .with_row_index("row")
        .with_columns(
            (pl.col("start_time").cast(pl.Int64) // _MINUTE_NS).alias("minute"),
            *(_code(name, spans.schema[name]) for name in dimensions),
        )
    )
    group = _group_number(codes, ("minute", *dimensions))
    if group is None:
        numbered = codes.collect()
        codes = numbered.with_columns(_dense_group(numbered, ("minute", *dimensions))).lazy()
        group = pl.col("group")
    weight, is_error = pl.col("sample_weight").fill_null(1.0), pl.col("status") == "error"
    return codes.select(
        "row",
        "cache_hit",
        "duration_ns",
        "sample_weight",
        group=group,
        bucket=bucket_index(pl.col("duration_ns")),
        second=pl.col("start_time").cast(pl.Int64) // 1_000_000_000 % 60,
        is_error=is_error,
        weight=weight,
        error_weight=weight * is_error,
        weight_square=weight * weight,
        payload_bytes=pl.col("payload_bytes").clip(0, PAYLOAD_BYTES_MAX),
    )


def _code(dimension: str, dtype: pl.DataType) -> pl.Expr:
    """A dimension as whole numbers: its own, or those of its categories."""
    column = pl.col(dimension)
    return column if dtype.is_integer() else column.cast(pl.Categorical).to_physical()


def _group_number(codes: pl.LazyFrame, names: Sequence[str]) -> pl.Expr | None:
    """A number for each row, different where one of `names` is, from 0 to below _GROUPS_MAX.

    Digits of mixed radix, each from 0 to the range of its column; None where that takes too large a number.
    """
    low, high = (
        row.row(0, named=True)
        for row in pl.collect_all([codes.select(names).min(), codes.select(names).max()])
    )
    number, size = pl.lit(0, pl.Int64), 1
    for name in names:
        # One digit more than the range holds the nulls.
        first, values = (low[name] or 0) - 1, (high[name] or 0) - (low[name] or 0) + 2
        number = number * values + (pl.col(name).cast(pl.Int64) - first).fill_null(0)
        size *= values
    return number if size <= _GROUPS_MAX else None


def _dense_group(codes: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    """As `_group_number`, by numbering the values that are there: slower, and never too large."""
    group, size = _dense(codes[names[0]])
    for name in names[1:]:
        digits, values = _dense(codes[name].cast(pl.Int64).fill_null(_NULL_CODE))
        if size * values > _GROUPS_MAX:
            group, size = _dense(group)
        group, size = group * values + digits, size * values
    return group.alias("group")


def _dense(numbers: pl.Series) -> tuple[pl.Series, int]:
    """Consecutive numbers from 0 for the different `numbers`, and how many there are."""
    different = numbers.unique().sort()
    return different.search_sorted(numbers).cast(pl.Int64), len(different)


def _counted(rows: pl.LazyFrame, cell: pl.Expr) -> pl.LazyFrame:
    packed = rows.group_by((pl.col("group") * _CELLS_MAX + cell).alias("packed")).agg(value=pl.len())
    return _unpacked(packed)


def _summed(rows: pl.LazyFrame, name: str, cell: pl.Expr) -> pl.LazyFrame:
    entries = rows.select("group", "offset", pl.col(name).map.entries().alias("entry"))
    cells = entries.explode("entry", empty_as_null=False).unnest("entry")
    packed = (pl.col("group").cast(pl.Int64) * _CELLS_MAX + cell).alias("packed")
    return _unpacked(cells.group_by(packed).agg(pl.col("value").sum()))


def _unpacked(packed: pl.LazyFrame) -> pl.LazyFrame:
    return packed.select(
        group=pl.col("packed") // _CELLS_MAX, cell=pl.col("packed") % _CELLS_MAX, value=pl.col("value")
    )


def _maps(cells: pl.LazyFrame, name: str, first_key: int = 0) -> pl.LazyFrame:
    """One map a group, named and typed as the rollup's column, of columns group, cell (from `first_key`), value."""
    dtype = MAPS[name]
    pairs = cells.select(
        "group", key=(pl.col("cell") + first_key).cast(dtype.key), value=pl.col("value").cast(dtype.value)
    )
    lists = pairs.group_by("group").agg(pl.struct("key", "value").alias(name))
    return lists.with_columns(pl.col(name).cast(dtype))

