"""Counts by minute of one set of dimensions: different values (series), counts of series by minute, and durations of
series by minute in cells. Series are numbered, so that looking at them takes no joins of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from analytics.insight import batches
from analytics.insight.measures import Ints
from analytics.insight.slices import Slice, Totals

BASE = ("region", "tenant", "service_name", "component", "operation", "kind")
HOST = ("region", "host", "tenant", "service_name", "kind")
VERSION = ("region", "service_name", "service_version", "service_instance_id", "operation", "kind")
DESTINATION = ("region", "tenant", "component", "destination", "operation", "kind")
ERROR = ("region", "tenant", "service_name", "operation", "kind", "error_type")
DEMAND = ("region", "tenant")

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
    DEMAND: ("count", "steady_count"),
}
"""What is counted of each set of dimensions: what nobody asks for takes no memory. `steady_count`: see
`traced.demand`."""
CELLS_SCHEMA = pl.Schema({"minute": pl.Int32(), "series": pl.UInt32(), "cell": pl.Int16(), "spans": pl.UInt32()})
_KINDS = {name: pl.Float32() if name == "busy_ns" else pl.UInt32() for name in (*COUNTS, "steady_count")}

Seen = Callable[[pl.DataFrame, pl.DataFrame], None]
"""Is told of keys, and of rows of a rollup with the number of their `series`."""


def rows_schema(dimensions: tuple[str, ...]) -> pl.Schema:
    """Columns of `Grain.rows`; `minute` counts from the Unix epoch."""
    return pl.Schema(
        {"minute": pl.Int32(), "series": pl.UInt32(), **{name: _KINDS[name] for name in MEASURES[dimensions]}}
    )


@dataclass(frozen=True)
class Grain:
    """Counts by minute of one set of dimensions.

    `keys`: the dimensions (String), a row a series. `rows`: `rows_schema`, a row a minute and series (the number of a
    row of `keys`); busy_ns is the sum of durations. `cells`: CELLS_SCHEMA, spans by duration (BUCKETS_PER_CELL
    buckets each); none where nothing is asked of durations. Both are in order of time, which makes parts of them cheap.
    `hashes`: those of `keys`, of a grain that was read from rollups.
    `known`, `numbered`, `ordered` and `totals` keep what was computed of minutes and series, for parts and
    continuations too.
    """

    dimensions: tuple[str, ...]
    keys: pl.DataFrame
    rows: pl.DataFrame
    cells: pl.DataFrame
    known: dict[int, Slice] = field(default_factory=dict, repr=False, compare=False)
    numbered: dict[tuple[str, ...], tuple[pl.DataFrame, Ints]] = field(default_factory=dict, repr=False, compare=False)
    totals: Totals = field(default_factory=Totals, repr=False, compare=False)
    ordered: dict[tuple[str, ...], Ints] = field(default_factory=dict, repr=False, compare=False)
    hashes: pl.Series = field(default_factory=lambda: pl.Series(dtype=pl.UInt64), repr=False, compare=False)

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
    def of_counts(cls, dimensions: tuple[str, ...], counts: pl.DataFrame) -> Grain:
        """From a frame of `minute` (Datetime, naive UTC), the dimensions and MEASURES; of no durations."""
        keys = counts.select(dimensions).unique(maintain_order=True)
        minute = (pl.col("minute").dt.timestamp("us") // 60_000_000).cast(pl.Int32)
        return cls.of_series(dimensions, keys, _numbered(counts.with_columns(minute), keys), CELLS_SCHEMA.to_frame())

    def continued(self, found: Iterable[pa.RecordBatch], seen: Seen = lambda _keys, _rows: None) -> Grain:
        """With later minutes of a rollup behind it; series keep their numbers.

        Batches have the columns `minute`, the dimensions, `key` (a hash of them, 64 bits), MEASURES and, for
        WITH_CELLS, `latency_buckets`. There may be several rows for a minute and its dimensions. `seen` gets each batch
        without its texts, but with the number of its `series`, and all keys up to then.

        Series are told by their hash: of a million, two share one with a probability of 3e-8. Raises ValueError for a
        grain whose hashes are not known.
        """
        if len(self.hashes) != self.keys.height:
            raise ValueError("expected a grain that was read from rollups, or an empty one; read its minutes again")
        keys, hashes, rows, cells = _read(self, found, seen)
        if self.rows.is_empty():
            return Grain(self.dimensions, keys, rows, cells, hashes=hashes)
        # Minute by minute: what is kept of one must not keep the others, which are read again.
        frames = [_joined([old, *_each_minute(new)]) for old, new in ((self.rows, rows), (self.cells, cells))]
        known = self._known_before(rows), dict(self.numbered), self.totals.copy(), dict(self.ordered), hashes
        return Grain(self.dimensions, keys, frames[0], frames[1], *known)

    @classmethod
    def of_series(
        cls, dimensions: tuple[str, ...], keys: pl.DataFrame, rows: pl.DataFrame, cells: pl.DataFrame
    ) -> Grain:
        """From counts that know their series already; those of the same minute are summed up."""
        rows = rows.select(rows_schema(dimensions).names()).cast(rows_schema(dimensions))
        if _repeats(rows):
            rows = rows.group_by("minute", "series", maintain_order=True).agg(pl.col(MEASURES[dimensions]).sum())
            cells = cells.group_by("minute", "series", "cell", maintain_order=True).agg(pl.col("spans").sum())
        cells = cells.select(CELLS_SCHEMA.names()).cast(CELLS_SCHEMA)
        return cls(dimensions, keys, _in_order(rows), _in_order(cells))

    @classmethod
    def concat(cls, grains: Sequence[Grain]) -> Grain:
        """All rows of grains with the same dimensions, of stretches of time in their order."""
        keys = pl.concat([grain.keys for grain in grains]).unique(maintain_order=True)
        # Those of the first keep their numbers, and none of its rows is copied.
        renumbered = [_numbered(grain.keys, keys)["series"] for grain in grains[1:]]
        parts = list(zip(grains[1:], renumbered, strict=True))
        rows = [_renumbered(grain.rows, numbers) for grain, numbers in parts]
        return cls(
            grains[0].dimensions,
            keys,
            _joined([grains[0].rows, *rows]),
            _joined([grains[0].cells, *(_renumbered(grain.cells, numbers) for grain, numbers in parts)]),
            grains[0]._known_before(*rows),
            dict(grains[0].numbered),
            grains[0].totals.copy(),
            dict(grains[0].ordered),
        )

    def between(self, start: datetime | None, end: datetime | None) -> Grain:
        """The minutes from `start` up to `end` (naive UTC)."""
        bounds = tuple(None if time is None else minute_number(time) for time in (start, end))
        return replace(self, rows=_stretch(self.rows, *bounds), cells=_stretch(self.cells, *bounds))

    def slices(self, start: int, count: int) -> list[Slice]:
        """`count` minutes from number `start` on, one after the other."""
        # What this is a part of may know more than what has rows here.
        inside = _minutes(self.rows)
        found = {at: self.known[at] for at in range(start, start + count) if at in inside and at in self.known}
        lacking = [number for number in range(start, start + count) if number not in found]
        bounds = (lacking[0], lacking[-1] + 1) if lacking else (0, 0)
        frames = [_stretch(frame, *bounds) for frame in (self.rows, self.cells)]
        minutes = [frame["minute"].to_numpy() for frame in frames]
        first, end = (
            [np.searchsorted(minute, [number + step for number in lacking]) for minute in minutes] for step in (0, 1)
        )
        for at, number in enumerate(lacking):
            rows, cells = (frame[int(i[at]) : int(j[at])] for frame, i, j in zip(frames, first, end, strict=True))
            found[number] = Slice(rows, cells)
        self.known.update({at: one for at, one in found.items() if at in inside})
        return [found[number] for number in range(start, start + count)]

    def groups(self, by: Sequence[str]) -> tuple[pl.DataFrame, Ints]:
        """The different values of `by` (a row each) and which of them each of `keys` has; those that are known keep
        their number when keys are added."""
        names = tuple(by)
        known = self.numbered.get(names, (self.keys.select(names).clear(), np.empty(0, dtype=np.intp)))
        self.numbered[names] = groups_on(*known, self.keys)
        return self.numbered[names]

    def order(self, by: Sequence[str]) -> Ints:
        """The numbers of `groups` in the order of their values."""
        names = tuple(by)
        values = self.groups(names)[0]
        if len(self.ordered.get(names, ())) != values.height:
            ordered = values.with_row_index("group").sort(by, nulls_last=True)["group"]
            self.ordered[names] = ordered.to_numpy().astype(np.intp)
        return self.ordered[names]

    def standing(self) -> Ints:
        """The numbers of series in an order that their dimensions alone decide, in whatever order they came: what is
        computed of them in it comes out alike, to the last digit."""
        found = self.ordered.get((), np.empty(0, dtype=np.intp))
        if len(found) != self.keys.height:
            # By their hashes: to order the texts of many takes several times as long.
            self.ordered[()] = found = np.argsort(self.keys.hash_rows().to_numpy(), kind="stable")
        return found

    def _known_before(self, *later: pl.DataFrame) -> dict[int, Slice]:
        """What is known of the minutes that have rows here, and none in `later`."""
        mine = _minutes(self.rows)
        end = min((_minutes(rows).start for rows in later if rows.height), default=mine.stop)
        return {number: one for number, one in self.known.items() if number in mine and number < end}

    def pruned(self) -> Grain:
        """The same without keys that no row has, where these are most: it all has to be numbered anew."""
        used = pl.Series(np.flatnonzero(np.bincount(self.rows["series"].to_numpy())), dtype=pl.UInt32)
        if 2 * len(used) >= self.keys.height:
            return self
        numbers = pl.Series(range(self.keys.height), dtype=pl.UInt32)
        numbers = used.search_sorted(numbers).cast(pl.UInt32)
        rows, cells = (_renumbered(frame, numbers) for frame in (self.rows, self.cells))
        hashes = self.hashes[used] if len(self.hashes) else self.hashes
        return Grain(self.dimensions, self.keys[used], rows, cells, hashes=hashes)


def _read(
    grain: Grain, found: Iterable[pa.RecordBatch], seen: Seen
) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, pl.DataFrame]:
    """Keys and their hashes, those of a grain first, rows and cells of batches of a rollup."""
    dimensions, keys, hashes, parts = grain.dimensions, grain.keys, grain.hashes, [Grain.empty(grain.dimensions)]
    for batch in (batch for batch in found if batch.num_rows):
        keys, hashes, series = batches.known(batch, keys, hashes)
        told = pl.DataFrame(batch.drop_columns([*dimensions, "key"]))
        # A column as it came would keep all of its batch in memory.
        rows = told.with_columns(series, pl.Series("minute", told["minute"].to_numpy(writable=True)))
        seen(keys, rows)
        cells = batches.cells(rows, BUCKETS_PER_CELL) if dimensions in WITH_CELLS else parts[0].cells
        schema = rows_schema(dimensions)
        cells = _in_order(cells.select(CELLS_SCHEMA.names()).cast(CELLS_SCHEMA))
        parts.append(Grain(dimensions, keys, _in_order(rows.select(schema.names()).cast(schema)), cells))
    # What lies in order in the end is not copied.
    parts[1:] = sorted(parts[1:], key=lambda part: part.rows["minute"][0])
    rows, cells = (pl.concat(frames) for frames in zip(*((part.rows, part.cells) for part in parts), strict=True))
    return keys, hashes, _in_order(rows), _in_order(cells)


def groups_on(values: pl.DataFrame, of: Ints, keys: pl.DataFrame) -> tuple[pl.DataFrame, Ints]:
    """As `Grain.groups` of keys, of which the first ones are known to have the `values` with the numbers `of`.

    Values are numbered as they come among the keys: of grains that begin with the same keys, which share what is known
    of minutes, each numbers those keys' values alike.
    """
    if len(of) == keys.height:
        return values, of
    new = keys.select(values.columns).slice(len(of))
    unknown = new.join(values, on=values.columns, how="anti", nulls_equal=True, maintain_order="left")
    values = pl.concat([values, unknown.unique(maintain_order=True)])
    numbers = _numbered(new, values)["series"].to_numpy().astype(np.intp)
    return values, np.concatenate([of, numbers])


_MINUTES_APART_MAX = 10
"""More than are read again when they have come before."""


def _joined(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Parts in order of time, one behind the other, and in order."""
    filled = [part["minute"] for part in parts if part.height]
    found = pl.concat(parts)
    return found if all(one[-1] <= other[0] for one, other in pairwise(filled)) else _in_order(found)


def _each_minute(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of each minute of a frame in order of time, in buffers of their own; many minutes as they lie."""
    if len(_minutes(frame)) > _MINUTES_APART_MAX:
        return [frame]
    return [
        pl.DataFrame({one.name: one.to_numpy(writable=True) for one in part}, schema=frame.schema)
        for part in frame.partition_by("minute", maintain_order=True)
    ]


def _repeats(rows: pl.DataFrame) -> bool:
    """Whether a series has several rows for a minute."""
    at = rows.select(pl.col("minute").cast(pl.Int64) * 2**32 + pl.col("series").cast(pl.Int64)).to_series()
    return at.n_unique() < rows.height


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame["minute"].is_sorted() else frame.sort("minute", maintain_order=True)


def minute_number(time: datetime) -> int:
    """Whole minutes since the Unix epoch of a time (naive UTC)."""
    return int((time - _EPOCH) // timedelta(minutes=1))


def minute_time(number: int) -> datetime:
    """The start of a minute (naive UTC) by its number."""
    return _EPOCH + timedelta(minutes=number)


_EPOCH = datetime(1970, 1, 1)


_COUNTED = (
    pl.len().alias("count"),
    (pl.col("status") == "error").sum().alias("errors"),
    pl.col("cache_hit").sum().alias("hits"),
    (pl.col("cache_hit").count() - pl.col("cache_hit").sum()).alias("misses"),
    pl.col("duration_ns").sum().alias("busy_ns"),
    pl.col("sample_weight").null_count().alias("unknown_weight_count"),
)
_ALWAYS = frozenset({"region", "tenant", "service_name", "component", "operation", "kind"})


def _minutes(rows: pl.DataFrame) -> range:
    """The numbers of minutes from the first to the last that has rows, which are in order of time."""
    return range(int(rows["minute"][0]), int(rows["minute"][-1]) + 1) if rows.height else range(0)


def _numbered(frame: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    """`frame` with the column `series`: the row of `keys` that has the same values."""
    return frame.join(
        keys.with_row_index("series"), on=keys.columns, how="left", nulls_equal=True, maintain_order="left"
    )


def _renumbered(frame: pl.DataFrame, numbers: pl.Series) -> pl.DataFrame:
    return frame.with_columns(numbers.gather(frame["series"]).alias("series"))


def _stretch(frame: pl.DataFrame, start: int | None, end: int | None) -> pl.DataFrame:
    """Rows of some minutes of a frame in order of time; no copy."""
    minute = frame["minute"]
    first = 0 if start is None else int(minute.search_sorted(start, side="left"))
    last = frame.height if end is None else int(minute.search_sorted(end, side="left"))
    return frame.slice(first, max(last - first, 0))
