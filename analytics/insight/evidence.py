"""What detectors look at: counts by minute of several sets of dimensions, and what traces tell.

Each `Grain` is one set of dimensions as three frames: its different values (series), counts of series by minute, and
durations of series by minute in cells. Series are numbered, so that looking at them takes no joins of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

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
ROWS_SCHEMA = pl.Schema({"minute": pl.Datetime("us"), "series": pl.UInt32(), **dict.fromkeys(COUNTS, pl.Int64())})
CELLS_SCHEMA = pl.Schema({"minute": pl.Datetime("us"), "series": pl.UInt32(), "cell": pl.Int16(), "spans": pl.UInt32()})
HOURLY_SCHEMA = pl.Schema({"minute": pl.Datetime("us"), "region": pl.String(), "count": pl.Int64()})
"""Served spans by whole hour (`minute` is its start) and region, for forecasts; only the lake knows days of it."""
_MEASURES = ("start_time", "duration_ns", "status", "cache_hit", "sample_weight")


@dataclass(frozen=True)
class Grain:
    """Counts by minute of one set of dimensions.

    `keys`: the dimensions (String), a row a series. `rows`: ROWS_SCHEMA, a row a minute and series (the number of a
    row of `keys`); busy_ns is the sum of durations. `cells`: CELLS_SCHEMA, spans by duration (BUCKETS_PER_CELL
    buckets each); none where nothing is asked of durations.
    """

    dimensions: tuple[str, ...]
    keys: pl.DataFrame
    rows: pl.DataFrame
    cells: pl.DataFrame

    @classmethod
    def empty(cls, dimensions: tuple[str, ...]) -> Grain:
        """A grain without any rows."""
        schema = pl.Schema(dict.fromkeys(dimensions, pl.String()))
        return cls(dimensions, schema.to_frame(), ROWS_SCHEMA.to_frame(), CELLS_SCHEMA.to_frame())

    @classmethod
    def of_spans(cls, spans: pl.LazyFrame, dimensions: tuple[str, ...]) -> Grain:
        """Count spans with columns `minute`, `cell`, *dimensions and measures (see `Evidence.of_spans`)."""
        present = [pl.col(name).is_not_null() for name in dimensions if name not in _ALWAYS]
        of_grain = spans.filter(*present) if present else spans
        counted = [of_grain.group_by("minute", *dimensions).agg(_COUNTED)]
        if dimensions in WITH_CELLS:
            counted.append(of_grain.group_by("minute", *dimensions, "cell").agg(spans=pl.len()))
        rows, *cells = pl.collect_all(counted)
        return cls.of_counts(dimensions, rows, cells[0] if cells else None)

    @classmethod
    def of_counts(cls, dimensions: tuple[str, ...], rows: pl.DataFrame, cells: pl.DataFrame | None) -> Grain:
        """From frames that carry the dimensions themselves."""
        text = [pl.col(name).cast(pl.String) for name in dimensions]
        rows = rows.with_columns(text)
        keys = rows.select(dimensions).unique()
        cells = CELLS_SCHEMA.to_frame() if cells is None else _numbered(cells.with_columns(text), keys)
        return cls(
            dimensions,
            keys,
            _numbered(rows, keys).select(ROWS_SCHEMA.names()).cast(ROWS_SCHEMA),
            cells.select(CELLS_SCHEMA.names()).cast(CELLS_SCHEMA),
        )

    @classmethod
    def concat(cls, grains: Sequence[Grain]) -> Grain:
        """All rows of grains with the same dimensions."""
        keys = pl.concat([grain.keys for grain in grains]).unique(maintain_order=True)
        renumbered = [_numbered(grain.keys, keys)["series"] for grain in grains]
        parts = list(zip(grains, renumbered, strict=True))
        return cls(
            grains[0].dimensions,
            keys,
            pl.concat([_renumbered(grain.rows, numbers) for grain, numbers in parts]),
            pl.concat([_renumbered(grain.cells, numbers) for grain, numbers in parts]),
        )

    def between(self, start: datetime | None, end: datetime | None) -> Grain:
        """The minutes from `start` up to `end` (naive UTC)."""
        return replace(self, rows=_between(self.rows, start, end), cells=_between(self.cells, start, end))


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
        return self.base.rows["minute"].min()  # type: ignore[return-value]


def of_spans(spans: pl.DataFrame) -> Evidence:
    """Everything that a frame of spans tells (columns as table `spans`; what is missing is taken as NULL).

    Needs region, tenant, service_name, component, operation, kind, start_time, duration_ns and status.
    """
    if spans.is_empty():
        return Evidence.empty()
    names = {*BASE, *HOST, *VERSION, *DESTINATION, *ERROR, *_MEASURES}
    kinds = {"cache_hit": pl.Boolean(), "sample_weight": pl.Float64()}
    missing = [pl.lit(None, kinds.get(name, pl.String())).alias(name) for name in sorted(names - set(spans.columns))]
    prepared = (
        spans.lazy()
        .with_columns(missing)
        .with_columns(pl.col("region").cast(pl.String).fill_null(UNKNOWN))
        .select(
            *sorted(names),
            minute=pl.col("start_time").dt.truncate("1m").cast(pl.Datetime("us")),
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
