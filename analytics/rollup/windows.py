"""Figures of any window from the rollups of a set of dimensions: whole hours by hour, what is left by minute.

Windows are whole minutes, from one minute on (`analytics.window.Window`). Every figure comes with what it rests on:
`count` are spans as received, `effective_count` is the number of spans that an estimate from sampled ones is worth
(Kish: (sum of weights)^2 / sum of squares), `unknown_weight_share` the share of spans of unknown sampling
probability, which count for one each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from analytics.buckets import cell_quantiles
from analytics.rollup.sets import BASE, DimensionSet
from analytics.window import HOUR, MINUTE, Window
from collector.lake.lake import Reader

SUMS = (
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
FIGURES = (
    "rate_per_second",
    "error_rate",
    "hit_ratio",
    "mean_ns",
    "estimated_count",
    "estimated_error_rate",
    "effective_count",
    "unknown_weight_share",
)
_WEIGHTS = ("weighted_count", "weighted_errors", "weight_squares")
_TYPES = {**dict.fromkeys(_WEIGHTS, "DOUBLE"), "duration_sum_ns": "DECIMAL(38, 0)"}
_ALL = "everything"
_NUMBER = "number"
Values = Mapping[str, Sequence[str]]
"""Which rows take part: values of some of the dimensions, the others take all."""


@dataclass(frozen=True)
class Piece:
    """The rows of a rollup from `start` up to `end`."""

    table: str
    start: datetime
    end: datetime


def pieces(windows: Sequence[Window], dimension_set: DimensionSet = BASE, by_hour: bool = True) -> list[Piece]:
    """What to read of which table, in order of time, for windows that do not overlap.

    Whole hours are read by hour where `by_hour`, the minutes before the first and after the last by minute.
    """
    found: list[Piece] = []
    for window in windows:
        first, last = _hours(window) if by_hour else (window.end, window.end)
        for table, start, end in (
            (dimension_set.minutes, window.start, first),
            (dimension_set.hours, first, last),
            (dimension_set.minutes, last, window.end),
        ):
            if found and found[-1].table == table and found[-1].end == start:
                found[-1] = Piece(table, found[-1].start, end)
            elif start < end:
                found.append(Piece(table, start, end))
    return found


def figures(
    reader: Reader,
    window: Window,
    by: Sequence[str] = (),
    dimension_set: DimensionSet = BASE,
    values: Values | None = None,
    qs: Sequence[float] = (),
) -> pl.DataFrame:
    """One row for each value of `by` with spans in `window`.

    Columns: *by, SUMS, duration_max_ns, FIGURES (null where nothing is to be divided by), and for each of `qs` a
    quantile of the duration in ns, named as `analytics.buckets.quantile_name` says. `error_rate` is of the spans
    received, `estimated_error_rate` and `estimated_count` of those before sampling; quantiles are of those received.
    Ordered by `by`. Raises ValueError for dimensions that the set has not, duckdb.Error where it has no tables.
    """
    _check(by, dimension_set, values)
    found = _figures_of(reader, [window], by, dimension_set, values, qs)
    return found.sort(by) if by else found


def figures_of_each(
    reader: Reader,
    windows: Sequence[Window],
    by: Sequence[str] = (),
    dimension_set: DimensionSet = BASE,
    values: Values | None = None,
    qs: Sequence[float] = (),
) -> pl.DataFrame:
    """As `figures`, of several windows of one length in one reading: one row for each window and value of `by`.

    Columns: `number` (the position in `windows`), and those of `figures`. Ordered by number and `by`. Raises as
    `figures`, and ValueError for windows of different lengths.
    """
    _check(by, dimension_set, values)
    if len({window.seconds for window in windows}) != 1:
        raise ValueError(f"{len(windows)} windows: expected one or more, all of one length")
    return _figures_of(reader, windows, [_NUMBER, *by], dimension_set, values, qs).sort(_NUMBER, *by)


def _figures_of(
    reader: Reader,
    windows: Sequence[Window],
    by: Sequence[str],
    dimension_set: DimensionSet,
    values: Values | None,
    qs: Sequence[float],
) -> pl.DataFrame:
    rows = _Rows(reader, dimension_set, values or {})
    found = rows.sums(windows, by).with_columns(_figures(windows[0].seconds))
    return _with_quantiles(found, rows.cells(windows, by).lazy(), by, qs) if qs else found


def sliding(
    reader: Reader,
    window: Window,
    length: timedelta,
    by: Sequence[str] = (),
    dimension_set: DimensionSet = BASE,
    values: Values | None = None,
    qs: Sequence[float] = (),
) -> pl.DataFrame:
    """The windows of `length` that end at each minute of `window`, from a minute after its start to its end.

    Columns: time (Datetime us of UTC, the end), and those of `figures` but duration_max_ns. A row for each minute
    and each value of `by` with spans in any of the windows. Counts are exact, sums of weights within rounding. With
    `qs` memory goes with minutes times values times buckets. Ordered by time and `by`. Raises as `figures`, and
    ValueError for a length that is no whole minute.
    """
    _check(by, dimension_set, values)
    if length < MINUTE or length % MINUTE:
        raise ValueError(f"length {length}: expected one or more whole minutes")
    rows = _Rows(reader, dimension_set, values or {})
    found = _slide(rows.sums, window, length, by, SUMS).with_columns(
        pl.when(pl.col("count") > 0).then(pl.col(name).clip(0)).otherwise(0.0).alias(name) for name in _WEIGHTS
    )
    found = found.with_columns(_figures(length.total_seconds()))
    if qs:
        cells = _slide(rows.cells, window, length, [*by, "bucket"], ["spans"]).filter(pl.col("spans") > 0)
        found = _with_quantiles(found, cells.lazy(), ["time", *by], qs)
    return found.select("time", *by, pl.exclude("time", *by)).sort("time", *by)


@dataclass(frozen=True)
class _Rows:
    """The rollup rows of a set that take part."""

    reader: Reader
    dimension_set: DimensionSet
    values: Values

    def sums(self, windows: Sequence[Window], by: Sequence[str], by_minute: bool = False) -> pl.DataFrame:
        """Columns: *by, window_start (where `by_minute`), SUMS, duration_max_ns."""
        sums = ", ".join(f"sum({name})::{_TYPES.get(name, 'BIGINT')} AS {name}" for name in SUMS)
        found = self._frame(
            f"SELECT {', '.join([*_keys(by, by_minute), sums])}, max(duration_max_ns) AS duration_max_ns "
            "FROM ({rows}) GROUP BY ALL HAVING sum(count) > 0",
            windows,
            by_minute,
        )
        return found.with_columns(pl.col("duration_sum_ns").cast(pl.Int128))

    def cells(self, windows: Sequence[Window], by: Sequence[str], by_minute: bool = False) -> pl.DataFrame:
        """Columns: *by without bucket, window_start (where `by_minute`), bucket, spans."""
        keys = "".join(f"{name}, " for name in _keys([name for name in by if name != "bucket"], by_minute))
        return self._frame(
            f"SELECT {keys}bucket, sum(spans)::BIGINT AS spans "
            f"FROM (SELECT {keys}unnest(map_keys(latency_buckets)) AS bucket, "
            "unnest(map_values(latency_buckets)) AS spans FROM ({rows})) GROUP BY ALL",
            windows,
            by_minute,
        )

    def _frame(self, sql: str, windows: Sequence[Window], by_minute: bool) -> pl.DataFrame:
        parameters: list[object] = []
        selects = []
        read = ((number, pieces([one], self.dimension_set, not by_minute)) for number, one in enumerate(windows))
        for number, piece in ((number, piece) for number, found in read for piece in found):
            conditions = ["window_start >= ?", "window_start < ?"]
            parameters += [piece.start.replace(tzinfo=None), piece.end.replace(tzinfo=None)]
            for name, taken in self.values.items():
                conditions.append(f"list_contains(?, {name})")
                parameters.append(list(taken))
            selects.append(f"SELECT *, {number} AS {_NUMBER} FROM {piece.table} WHERE {' AND '.join(conditions)}")
        return self.reader.frame(sql.replace("{rows}", " UNION ALL ".join(selects)), parameters)


def _slide(
    read: Callable[[Sequence[Window], Sequence[str], bool], pl.DataFrame],
    window: Window,
    length: timedelta,
    by: Sequence[str],
    columns: Sequence[str],
) -> pl.DataFrame:
    """Columns: time, *by, `columns`: what stands in the window before, plus what came in since, minus what left."""
    before = Window(window.start - length, window.start)
    leaving = Window(before.start, window.end - length)
    names, first = [*by, *columns], window.start.replace(tzinfo=None) + MINUTE
    came = read([window], by, True).select(*names, time=pl.col("window_start") + MINUTE)
    left = read([leaving], by, True).select(
        *by, *((0 - pl.col(name)).alias(name) for name in columns), time=pl.col("window_start") + length + MINUTE
    )
    held = read([before], by, False).select(*names, time=pl.lit(first, pl.Datetime("us")))
    changes = pl.concat([held, came, left], how="vertical_relaxed").group_by("time", *by).agg(pl.col(columns).sum())
    minutes = pl.DataFrame(
        {"time": [first + i * MINUTE for i in range(window.minutes)]}, schema={"time": pl.Datetime("us")}
    )
    grid = minutes.join(changes.select(by).unique(), how="cross") if by else minutes
    filled = grid.join(changes, on=["time", *by], how="left").sort("time").with_columns(pl.col(columns).fill_null(0))
    summed = (pl.col(name).cum_sum() for name in columns)
    return filled.with_columns(*(total.over(by) if by else total for total in summed))


def _figures(seconds: float) -> list[pl.Expr]:
    """FIGURES of sums over so many seconds."""
    lookups = pl.col("hits") + pl.col("misses")
    return [
        (pl.col("count") / seconds).alias("rate_per_second"),
        _ratio(pl.col("errors"), pl.col("count")).alias("error_rate"),
        _ratio(pl.col("hits"), lookups).alias("hit_ratio"),
        _ratio(pl.col("duration_sum_ns").cast(pl.Float64), pl.col("count")).alias("mean_ns"),
        pl.col("weighted_count").alias("estimated_count"),
        _ratio(pl.col("weighted_errors"), pl.col("weighted_count")).alias("estimated_error_rate"),
        _ratio(pl.col("weighted_count") ** 2, pl.col("weight_squares")).alias("effective_count"),
        _ratio(pl.col("unknown_weight_count"), pl.col("count")).alias("unknown_weight_share"),
    ]


def _ratio(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    return pl.when(whole > 0).then(part / whole)


def _with_quantiles(
    rows: pl.DataFrame, cells: pl.LazyFrame, by: Sequence[str], qs: Sequence[float]
) -> pl.DataFrame:
    keys = list(by) or [_ALL]
    keyed = rows if by else rows.with_columns(pl.lit("").alias(_ALL))
    found = cell_quantiles(cells if by else cells.with_columns(pl.lit("").alias(_ALL)), keys, qs).collect()
    joined = keyed.join(found, on=keys, how="left")
    return joined if by else joined.drop(_ALL)


def _keys(by: Sequence[str], by_minute: bool) -> list[str]:
    return [*by, *(["window_start"] if by_minute else [])]


def _hours(window: Window) -> tuple[datetime, datetime]:
    """The whole hours of a window; its end twice where it has none."""
    first = window.start.replace(minute=0)
    first = first if first == window.start else first + HOUR
    last = window.end.replace(minute=0)
    return (first, last) if first < last else (window.end, window.end)


def _check(by: Sequence[str], dimension_set: DimensionSet, values: Values | None) -> None:
    for what, names in (("by", list(by)), ("values", list(values or ()))):
        unknown = [name for name in names if name not in dimension_set.dimensions]
        if unknown or len(set(names)) != len(names):
            raise ValueError(
                f"{what} = {names}: expected different dimensions of the set {dimension_set.name!r}: "
                f"{', '.join(dimension_set.dimensions)}"
            )
