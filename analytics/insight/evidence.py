"""What detectors look at: counts by minute of several sets of dimensions, and what traces tell.

Each `Grain` is one set of dimensions, see `grains`; the other frames are those of `traced`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from analytics.buckets import bucket_index
from analytics.insight import traced
from analytics.insight.grains import (
    BASE,
    BUCKETS_PER_CELL,
    DEMAND,
    DESTINATION,
    ERROR,
    HOST,
    VERSION,
    Grain,
    minute_time,
)
from analytics.rollup.partials import UNKNOWN

HOURLY_SCHEMA = pl.Schema({"minute": pl.Datetime("us"), "region": pl.String(), "count": pl.Int64()})
"""Served spans by whole hour (`minute` is its start) and region, for forecasts; only the lake knows days of it."""
_TRACED = ("deliveries", "delivery_cells", "hot_keys", "exemplars")
_OF_SPANS = ("start_time", "duration_ns", "status", "cache_hit", "sample_weight")


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
    demand: Grain
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
            Grain.empty(DEMAND),
            HOURLY_SCHEMA.to_frame(),
        )

    @classmethod
    def concat(cls, parts: Sequence[Evidence]) -> Evidence:
        """All of several stretches of time that do not share spans."""
        if not parts:
            return cls.empty()
        joined: dict[str, Any] = {name: _concat([getattr(part, name) for part in parts]) for name in _FIELDS}
        return cls(**joined)

    def with_traced(self, later: Sequence[Evidence]) -> Evidence:
        """With what the tables of traces tell of later stretches of time."""
        parts = {name: pl.concat([getattr(one, name) for one in (self, *later)]) for name in _TRACED}
        return replace(self, **parts)

    def with_traced_of(self, other: Evidence) -> Evidence:
        """With what another one knows of the tables of traces instead."""
        return replace(self, **{name: getattr(other, name) for name in _TRACED})

    def until(self, time: datetime) -> Evidence:
        """What minutes that end at or before `time` (aware) tell."""
        return self.between(None, time)

    def between(self, start: datetime | None, end: datetime | None) -> Evidence:
        """What the minutes from `start` up to `end` (aware) tell; of hours, what is before `end`."""
        bounds = tuple(time.replace(tzinfo=None) if time else None for time in (start, end))
        parts: dict[str, Any] = {name: _part(getattr(self, name), *bounds) for name in _FIELDS if name != "hourly"}
        return Evidence(**parts, hourly=_between(self.hourly, None, bounds[1]))

    @property
    def first_minute(self) -> datetime | None:
        """Start of the oldest minute (naive UTC), None without any."""
        first = self.base.rows["minute"].min()
        return minute_time(first) if isinstance(first, int) else None

    def pruned(self) -> Evidence:
        """The same without what no minute knows any more."""
        return replace(
            self,
            base=self.base.pruned(),
            host=self.host.pruned(),
            version=self.version.pruned(),
            destination=self.destination.pruned(),
            error=self.error.pruned(),
            demand=self.demand.pruned(),
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
        Grain.of_counts(DEMAND, traced.demand(spans)), HOURLY_SCHEMA.to_frame(),
    )  # fmt: skip


_FIELDS = tuple(field.name for field in fields(Evidence))


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
