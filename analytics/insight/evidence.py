"""What detectors look at: counts by minute of several sets of dimensions, and what traces tell.

Each `Grain` is one set of dimensions as three frames: its different values (series), counts of series by minute, and
durations of series by minute in cells. Series are numbered, so that looking at them takes no joins of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from analytics.buckets import bucket_index
from analytics.insight import traced
from analytics.rollup.partials import UNKNOWN

BASE = ("region", "tenant", "service_name", "component", "operation", "kind")
HOST = ("region", "host", "tenant", "service_name", "kind")
VERSION = ("region", "service_name", "service_version", "service_instance_id", "operation", "kind")
DESTINATION = ("region", "tenant", "component", "destination", "operation", "kind")
ERROR = ("region", "tenant", "service_name", "operation", "kind", "error_type")

WITH_CELLS = (BASE, HOST, VERSION)
"""Sets of dimensions of which durations are looked at."""

BUCKETS_PER_CELL = 8
"""Buckets of the rollups that a cell holds: its bounds lie a factor of 1.17 apart."""

COUNTS = ("count", "errors", "hits", "misses", "busy_ns", "unknown_weight_count")
MEASURES: Mapping[tuple[str, ...], tuple[str, ...]] = {
    BASE: ("count", "errors", "busy_ns", "unknown_weight_count"),
    HOST: ("count", "errors", "busy_ns", "unknown_weight_count"),
    VERSION: ("count", "errors", "busy_ns", "unknown_weight_count"),
    DESTINATION: COUNTS,
    ERROR: ("count", "errors"),
}
"""What of COUNTS is kept of each set of dimensions: what nobody asks for takes no memory."""
CELLS_SCHEMA = pl.Schema({"minute": pl.Int32(), "series": pl.UInt32(), "cell": pl.Int16(), "spans": pl.UInt32()})
_KINDS = {name: pl.Float32() if name == "busy_ns" else pl.UInt32() for name in COUNTS}


def rows_schema(dimensions: tuple[str, ...]) -> pl.Schema:
    """Columns of `Grain.rows`; `minute` counts from the Unix epoch."""
    return pl.Schema(
        {"minute": pl.Int32(), "series": pl.UInt32(), **{name: _KINDS[name] for name in MEASURES[dimensions]}}
    )


HOURLY_SCHEMA = pl.Schema({"minute": pl.Datetime("us"), "region": pl.String(), "count": pl.Int64()})
"""Served spans by whole hour (`minute` is its start) and region, for forecasts; only the lake knows days of it."""
_OF_SPANS = ("start_time", "duration_ns", "status", "cache_hit", "sample_weight")


@dataclass(frozen=True)
class Grain:
    """Counts by minute of one set of dimensions.

    `keys`: the dimensions (String), a row a series. `rows`: `rows_schema`, a row a minute and series (the number of a
    row of `keys`); busy_ns is the sum of durations. `cells`: CELLS_SCHEMA, spans by duration (BUCKETS_PER_CELL
    buckets each); none where nothing is asked of durations. Both are in order of time, which makes parts of them cheap.
    """

    dimensions: tuple[str, ...]
    keys: pl.DataFrame
    rows: pl.DataFrame
    cells: pl.DataFrame

    @classmethod
    def empty(cls, dimensions: tuple[str, ...]) -> Grain:
        """A grain without any rows."""
        schema = pl.Schema(dict.fromkeys(dimensions, pl.String()))
        return cls(dimensions, schema.to_frame(), rows_schema(dimensions).to_frame(), CELLS_SCHEMA.to_frame())

    @classmethod
    def of_spans(cls, spans: pl.LazyFrame, dimensions: tuple[str, ...]) -> Grain:
        """Count spans with columns `minute`, `cell`, *dimensions and measures (see `Evidence.of_spans`)."""
        present = [pl.col(name).is_not_null() for name in dimensions if name not in _ALWAYS]
        of_grain = spans.filter(*present) if present else spans
        counted = [of_grain.group_by("minute", *dimensions).agg(_COUNTED)]
        if dimensions in WITH_CELLS:
            counted.append(of_grain.group_by("minute", *dimensions, "cell").agg(spans=pl.len()))
        rows, *cells = pl.collect_all(counted)
        text = [pl.col(name).cast(pl.String) for name in dimensions]
        keys = rows.select(text).unique()
        numbered = [_numbered(frame.with_columns(text), keys) for frame in (rows, *cells)]
        return cls.of_series(dimensions, keys, numbered[0], numbered[1] if cells else CELLS_SCHEMA.to_frame())

    @classmethod
    def of_rollup(cls, dimensions: tuple[str, ...], batches: Iterable[pl.DataFrame]) -> Grain:
        """From rows of a rollup by minute: `minute`, the dimensions, MEASURES and, for WITH_CELLS, `latency_buckets`.

        There may be several rows for a minute and its dimensions.
        """
        parts = [cls.empty(dimensions)]
        keys = parts[0].keys
        for batch in filter(len, batches):
            keys, series = _known(batch.select(dimensions), keys)
            # A column as it came would keep all of its batch in memory.
            minute = pl.Series("minute", batch["minute"].to_numpy(writable=True))
            rows = batch.drop(dimensions).with_columns(series, minute)
            cells = _cells(rows) if dimensions in WITH_CELLS else parts[0].cells
            parts.append(cls.of_series(dimensions, keys, rows, cells))
        # What lies in order in the end is not copied.
        parts[1:] = sorted(parts[1:], key=lambda part: part.rows["minute"][0])
        rows, cells = (pl.concat(frames) for frames in zip(*((part.rows, part.cells) for part in parts), strict=True))
        return cls(dimensions, keys, _in_order(rows), _in_order(cells))

    @classmethod
    def of_series(
        cls, dimensions: tuple[str, ...], keys: pl.DataFrame, rows: pl.DataFrame, cells: pl.DataFrame
    ) -> Grain:
        """From counts that know their series already; those of the same minute are summed up."""
        rows = rows.select(rows_schema(dimensions).names()).cast(rows_schema(dimensions))
        if _repeats(rows):
            rows = rows.group_by("minute", "series").agg(pl.col(MEASURES[dimensions]).sum())
            cells = cells.group_by("minute", "series", "cell").agg(pl.col("spans").sum())
        cells = cells.select(CELLS_SCHEMA.names()).cast(CELLS_SCHEMA)
        return cls(dimensions, keys, _in_order(rows), _in_order(cells))

    @classmethod
    def concat(cls, grains: Sequence[Grain]) -> Grain:
        """All rows of grains with the same dimensions, of stretches of time in their order."""
        keys = pl.concat([grain.keys for grain in grains]).unique(maintain_order=True)
        # Those of the first keep their numbers, and none of its rows is copied.
        renumbered = [_numbered(grain.keys, keys)["series"] for grain in grains[1:]]
        parts = list(zip(grains[1:], renumbered, strict=True))
        return cls(
            grains[0].dimensions,
            keys,
            pl.concat([grains[0].rows, *(_renumbered(grain.rows, numbers) for grain, numbers in parts)]),
            pl.concat([grains[0].cells, *(_renumbered(grain.cells, numbers) for grain, numbers in parts)]),
        )

    def between(self, start: datetime | None, end: datetime | None) -> Grain:
        """The minutes from `start` up to `end` (naive UTC)."""
        bounds = tuple(None if time is None else minute_number(time) for time in (start, end))
        return replace(self, rows=_stretch(self.rows, *bounds), cells=_stretch(self.cells, *bounds))

    def pruned(self) -> Grain:
        """The same without keys that no row has."""
        used = self.rows["series"].unique().sort()
        if len(used) == self.keys.height:
            return self
        numbers = pl.Series(range(self.keys.height), dtype=pl.UInt32)
        numbers = used.search_sorted(numbers).cast(pl.UInt32)
        return replace(
            self, keys=self.keys[used], rows=_renumbered(self.rows, numbers), cells=_renumbered(self.cells, numbers)
        )


def _cells(rows: pl.DataFrame) -> pl.DataFrame:
    """CELLS_SCHEMA of rows with `minute`, `series` and `latency_buckets`, a row of each and cell."""
    counts = rows["latency_buckets"].map.values()
    each = np.repeat(np.arange(rows.height), counts.list.len().to_numpy())
    bucket = rows["latency_buckets"].map.keys().explode(empty_as_null=False).to_numpy()
    cell = np.where(bucket < 0, -1, bucket // BUCKETS_PER_CELL) + 1
    # Buckets of a row are not in order; those of different rows are, which a stable sort makes use of.
    at = each * _CELLS + cell
    order = np.argsort(at, kind="stable")
    at = at[order]
    first = np.flatnonzero(np.diff(at, prepend=-1))
    spans = counts.explode(empty_as_null=False).to_numpy()[order]
    total = np.add.reduceat(spans, first) if len(first) else spans
    row, cell = np.divmod(at[first], _CELLS)
    found = rows.select(pl.col("minute", "series").gather(pl.Series(row)))
    return found.with_columns(cell=pl.Series(cell - 1), spans=pl.Series(total))


_CELLS = 1024
"""More than there are cells."""


def _known(names: pl.DataFrame, keys: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """`keys` with those of `names` that they lack behind them, and which of them each of `names` is (`series`)."""
    series = _numbered(names, keys)["series"]
    if not series.null_count():
        return keys, series
    new = names.filter(series.is_null()).unique(maintain_order=True)
    # With buffers of its own: a few texts of a frame would keep those of all of its rows.
    keys = pl.concat([keys, pl.DataFrame(new.to_arrow())])
    return keys, _numbered(names, keys)["series"]


def _repeats(rows: pl.DataFrame) -> bool:
    """Whether a series has several rows for a minute."""
    at = rows.select(pl.col("minute").cast(pl.Int64) * 2**32 + pl.col("series").cast(pl.Int64)).to_series()
    return at.n_unique() < rows.height


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame["minute"].is_sorted() else frame.sort("minute", maintain_order=True)


def minute_number(time: datetime) -> int:
    """Whole minutes since the Unix epoch of a time (naive UTC)."""
    return int((time - _EPOCH) // timedelta(minutes=1))


_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Evidence:
    """Everything detectors look at; empty frames where nothing is known. Frames of `traced` carry a `minute`."""

    base: Grain
    host: Grain
    version: Grain
    destination: Grain
    error: Grain
    deliveries: pl.DataFrame
    delivery_cells: pl.DataFrame
    hot_keys: pl.DataFrame
    skew: pl.DataFrame
    exemplars: pl.DataFrame
    demand: pl.DataFrame
    hourly: pl.DataFrame

    @classmethod
    def empty(cls) -> Evidence:
        """Nothing known."""
        base, host, version, destination, error = (
            Grain.empty(dimensions) for dimensions in (BASE, HOST, VERSION, DESTINATION, ERROR)
        )
        return cls(
            base,
            host,
            version,
            destination,
            error,
            traced.DELIVERIES_SCHEMA.to_frame(),
            traced.DELIVERY_CELLS_SCHEMA.to_frame(),
            traced.HOT_KEYS_SCHEMA.to_frame(),
            traced.SKEW_SCHEMA.to_frame(),
            traced.EXEMPLARS_SCHEMA.to_frame(),
            traced.DEMAND_SCHEMA.to_frame(),
            HOURLY_SCHEMA.to_frame(),
        )

    @classmethod
    def concat(cls, parts: Sequence[Evidence]) -> Evidence:
        """All of several stretches of time that do not share spans."""
        if not parts:
            return cls.empty()
        return cls(**{name: _concat([getattr(part, name) for part in parts]) for name in _FIELDS})  # type: ignore[arg-type]

    def until(self, time: datetime) -> Evidence:
        """What minutes that end at or before `time` (aware) tell."""
        return self.between(None, time)

    def between(self, start: datetime | None, end: datetime | None) -> Evidence:
        """What the minutes from `start` up to `end` (aware) tell; of hours, what is before `end`."""
        bounds = tuple(time.replace(tzinfo=None) if time else None for time in (start, end))
        parts = {name: _part(getattr(self, name), *bounds) for name in _FIELDS if name != "hourly"}
        return Evidence(**parts, hourly=_between(self.hourly, None, bounds[1]))  # type: ignore[arg-type]

    @property
    def first_minute(self) -> datetime | None:
        """Start of the oldest minute (naive UTC), None without any."""
        first = self.base.rows["minute"].min()
        return _EPOCH + timedelta(minutes=first) if isinstance(first, int) else None

    def pruned(self) -> Evidence:
        """The same without what no minute knows any more."""
        return replace(
            self,
            base=self.base.pruned(),
            host=self.host.pruned(),
            version=self.version.pruned(),
            destination=self.destination.pruned(),
            error=self.error.pruned(),
        )


def of_spans(spans: pl.DataFrame) -> Evidence:
    """Everything that a frame of spans tells (columns as table `spans`; what is missing is taken as NULL).

    Needs region, tenant, service_name, component, operation, kind, start_time, duration_ns and status.
    """
    if spans.is_empty():
        return Evidence.empty()
    names = {*BASE, *HOST, *VERSION, *DESTINATION, *ERROR, *_OF_SPANS}
    kinds = {"cache_hit": pl.Boolean(), "sample_weight": pl.Float64()}
    missing = [pl.lit(None, kinds.get(name, pl.String())).alias(name) for name in sorted(names - set(spans.columns))]
    prepared = (
        spans.lazy()
        .with_columns(missing)
        .with_columns(pl.col("region").cast(pl.String).fill_null(UNKNOWN))
        .select(
            *sorted(names),
            minute=(pl.col("start_time").dt.timestamp("us") // 60_000_000).cast(pl.Int32),
            cell=bucket_index(pl.col("duration_ns")) // BUCKETS_PER_CELL,
        )
        .collect()
        .lazy()
    )
    base, host, version, destination, error = (
        Grain.of_spans(prepared, dimensions) for dimensions in (BASE, HOST, VERSION, DESTINATION, ERROR)
    )
    deliveries, delivery_cells = traced.deliveries(spans)
    return Evidence(
        base, host, version, destination, error, deliveries, delivery_cells, traced.hot_keys(spans), traced.skew(spans),
        traced.exemplars(spans),
        traced.demand(spans), HOURLY_SCHEMA.to_frame(),
    )  # fmt: skip


_FIELDS = tuple(field.name for field in fields(Evidence))
_COUNTED = (
    pl.len().alias("count"),
    (pl.col("status") == "error").sum().alias("errors"),
    pl.col("cache_hit").sum().alias("hits"),
    (pl.col("cache_hit").count() - pl.col("cache_hit").sum()).alias("misses"),
    pl.col("duration_ns").sum().alias("busy_ns"),
    pl.col("sample_weight").null_count().alias("unknown_weight_count"),
)
_ALWAYS = frozenset({"region", "tenant", "service_name", "component", "operation", "kind"})


def _numbered(frame: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """`frame` with the column `series`: the row of `keys` that has the same values."""
    return frame.join(
        keys.with_row_index("series"), on=keys.columns, how="left", nulls_equal=True, maintain_order="left"
    )


def _renumbered(frame: pl.DataFrame, numbers: pl.Series) -> pl.DataFrame:
    return frame.with_columns(numbers.gather(frame["series"]).alias("series"))


def _stretch(frame: pl.DataFrame, start: int | None, end: int | None) -> pl.DataFrame:
    """Rows of some minutes, in order of time; no copy where they are so already."""
    minute = frame["minute"]
    if not minute.is_sorted():
        inside = pl.col("minute").is_between(start or 0, end or 2**31 - 1, closed="left")
        return frame.filter(inside).sort("minute", maintain_order=True)
    first = 0 if start is None else int(minute.search_sorted(start, side="left"))
    last = frame.height if end is None else int(minute.search_sorted(end, side="left"))
    return frame.slice(first, max(last - first, 0))


def _concat(values: list[Grain] | list[pl.DataFrame]) -> Grain | pl.DataFrame:
    if isinstance(values[0], Grain):
        return Grain.concat([value for value in values if isinstance(value, Grain)])
    return pl.concat([value for value in values if isinstance(value, pl.DataFrame)])


def _part(value: Grain | pl.DataFrame, start: datetime | None, end: datetime | None) -> Grain | pl.DataFrame:
    return value.between(start, end) if isinstance(value, Grain) else _between(value, start, end)


def _between(frame: pl.DataFrame, start: datetime | None, end: datetime | None) -> pl.DataFrame:
    bounds = []
    if start is not None:
        bounds.append(pl.col("minute") >= pl.lit(start, pl.Datetime("us")))
    if end is not None:
        bounds.append(pl.col("minute") <= pl.lit(end - timedelta(minutes=1), pl.Datetime("us")))
    return frame.filter(bounds) if bounds else frame
