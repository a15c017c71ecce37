"""Grains as dense arrays: one row a series, one column a minute, so that detectors compute on all series at once.

Latency is judged by counts too: a span is *slow* when it takes longer than the 95th percentile of its own stratum in
the baseline, *very slow* beyond the 99th. Such counts add up over tenants, hosts and operations, whose durations do
not compare, and a change of the mix of operations leaves their expectation right (indirect standardisation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics.buckets import GAMMA
from analytics.insight.grains import BUCKETS_PER_CELL, CELLS_SCHEMA, Grain, minute_number
from analytics.insight.measures import Bools, Floats, Ints, Span
from analytics.insight.slices import CELLS, FIRST_CELL, Spread
from analytics.insight.tallies import Source, Tally

SLOW, VERY_SLOW = 0.95, 0.99
_BLOCK_CELLS = 1_000_000


class Counts:
    """Arrays of series x minutes by name, each made when it is asked for."""

    def __init__(self, make: Callable[[str], Floats]) -> None:
        self._make = make
        self._made: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]


class Block(NamedTuple):
    """Some filled cells of durations: positions of series, minute and cell, and their spans."""

    series: Ints
    minute: Ints
    cell: Ints
    spans: npt.NDArray[np.integer[Any]]

    def where(self, which: Bools) -> Block:
        """Some of them."""
        return Block(self.series[which], self.minute[which], self.cell[which], self.spans[which])


@dataclass(frozen=True)
class Cells:
    """Filled cells of the series of a panel, read in blocks where they lie: they are too many for copies.

    `frame`: CELLS_SCHEMA, in order of time; `number`: the row of the panel of each series of the grain, -1 of none.
    """

    frame: pl.DataFrame
    number: Ints
    start: int

    @classmethod
    def none(cls) -> Cells:
        """Of a panel that knows no durations."""
        return cls(CELLS_SCHEMA.to_frame(), np.empty(0, dtype=np.intp), 0)

    def blocks(self, minutes: slice | None = None) -> Iterator[Block]:
        """All cells, or those of some minutes (positions in the panel, both ends given)."""
        frame = self.frame
        if minutes is not None and frame.height:
            first, last = (int(frame["minute"].search_sorted(self.start + at)) for at in (minutes.start, minutes.stop))
            frame = frame.slice(first, max(last - first, 0))
        for part in frame.iter_slices(_BLOCK_CELLS):
            series = self.number[part["series"].to_numpy()]
            minute = part["minute"].to_numpy() - self.start
            block = Block(series, minute, part["cell"].to_numpy() - FIRST_CELL, part["spans"].to_numpy())
            known = series >= 0
            yield block if known.all() else block.where(known)

    @classmethod
    def of_spreads(cls, spreads: Sequence[Spread], number: Ints, start: int) -> Cells:
        """Of groups by minute; `number`: the row of the panel of each group."""
        sizes = [len(spread.group) for spread in spreads]
        columns = {
            "minute": np.repeat(np.arange(start, start + len(spreads)), sizes),
            **{
                name: np.concatenate([getattr(spread, of) for spread in spreads] or [np.empty(0)])
                for name, of in (("series", "group"), ("cell", "cell"), ("spans", "spans"))
            },
        }
        frame = pl.DataFrame(columns).with_columns(pl.col("cell") + FIRST_CELL).cast(CELLS_SCHEMA)
        return cls(frame, number, start)


@dataclass(frozen=True)
class Panel:
    """A grain within a `Span`.

    `keys`: a row a series (the dimensions), in an order that they alone decide; `counts`: arrays by names of
    `grains.COUNTS`; `cells`: durations.
    """

    span: Span
    keys: pl.DataFrame
    counts: Counts
    cells: Cells
    source: Source | None = None
    _tallies: dict[tuple[str, ...], Tally] = field(default_factory=dict, init=False, repr=False)
    _grouped_by: dict[tuple[str, ...], tuple[pl.DataFrame, Ints]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, grain: Grain, span: Span) -> Panel:
        """Read the minutes of `span`."""
        start = minute_number(span.start)
        slices = grain.slices(start, span.count)
        used = grain.totals.of("rows", [(one.series, one.present) for one in slices], grain.keys.height) > 0
        standing = grain.standing()
        series = standing[used[standing]]
        source = Source(grain, slices, series)
        cells = Cells(grain.between(span.start, span.end).cells, source.number, start)
        return cls(span, grain.keys[series], Counts(lambda name: source.tally(name).array), cells, source)

    def tally(self, *names: str) -> Tally:
        """The sum of some counts of `grains.COUNTS`; of a panel of a grain."""
        # Kept here: a source that knew its tallies would stay in memory until cycles are looked for.
        if names not in self._tallies:
            self._tallies[names] = self._of_grain().tally(*names)
        return self._tallies[names]

    def where(self, which: pl.Series) -> Panel:
        """The series of which `which` (Boolean) is true."""
        mask = which.fill_null(value=False).to_numpy()
        # The last one is for series of none, of which the number is -1.
        renumbered = np.append(np.where(mask, np.cumsum(mask) - 1, -1), -1)
        return Panel(
            self.span,
            self.keys.filter(which.fill_null(value=False)),
            Counts(lambda name: self.counts[name][mask]),
            replace(self.cells, number=renumbered[self.cells.number]),
        )

    @property
    def size(self) -> int:
        """Number of series."""
        return self.keys.height

    def groups(self, by: Sequence[str]) -> tuple[pl.DataFrame, Ints]:
        """The different values of `by` (a row each) and which of them each series belongs to."""
        if not by:
            return pl.DataFrame({"all": [""]}), np.zeros(self.size, dtype=np.intp)
        if tuple(by) not in self._grouped_by:
            if self.source is not None:
                keys, of, _ = self.source.groups(tuple(by))
            else:
                values = self.keys.select(by).unique().sort(by, nulls_last=True).with_row_index("group")
                found = self.keys.join(values, on=list(by), how="left", nulls_equal=True, maintain_order="left")
                keys, of = values.drop("group"), found["group"].to_numpy().astype(np.intp)
            self._grouped_by[tuple(by)] = keys, of
        return self._grouped_by[tuple(by)]

    def _of_grain(self) -> Source:
        if self.source is None:
            raise ValueError("expected a panel of a grain (`Panel.of`), not a part or sums of one")
        return self.source

    def coarse(self, by: Sequence[str]) -> Panel:
        """The same summed up to the values of `by`: far fewer cells, for what needs no more."""
        names, source = tuple(by), self._of_grain()
        keys, _, number = source.groups(names)
        of = source.grain.groups(names)[1]
        spreads = [one.spread(names, of) for one in source.slices]
        counts = Counts(lambda name: self.tally(name).by_names(names))
        return Panel(self.span, keys, counts, Cells.of_spreads(spreads, number, self.cells.start))

    def beyond_strata(self, by: Sequence[str], limits: Floats) -> tuple[Tally, Tally]:
        """Spans longer than each of two cells, given for each group of `by` (an array of 2 x groups), the second no
        less."""
        names, source = tuple(by), self._of_grain()
        number, of = source.groups(names)[2], source.grain.groups(names)[1]
        of_grain = np.append(limits, np.full((2, 1), np.inf), axis=1)[:, number]
        both = [one.beyond(names, of, of_grain) for one in source.slices]
        first, second = (Tally(f"{at} beyond by {names}", [found[at] for found in both], source) for at in range(2))
        return first, second

    def thresholds(self, strata: Ints, count: int) -> Floats:
        """The cells of SLOW and VERY_SLOW in the baseline of each stratum: an array of 2 x strata."""
        up_to = np.cumsum(self.spreads(strata, count, slice(0, self.span.baseline)), axis=1)
        total = up_to[:, -1:]
        return np.stack([(up_to < share * total).sum(axis=1) for share in (SLOW, VERY_SLOW)]).astype(float)

    def beyond(self, cells: Floats) -> Floats:
        """Spans longer than the cell given for each series, by series and minute."""
        found = np.zeros((self.size, self.span.count), dtype=np.float32)
        for block in self.cells.blocks():
            longer = block.where(block.cell > cells[block.series])
            _add(found, longer.series, longer.minute, longer.spans)
        return found

    def spreads(self, groups: Ints, count: int, minutes: slice) -> Floats:
        """Spans by cell of each group of series, in some minutes: an array of count x CELLS. Group -1 is left out."""
        found = np.zeros(count * CELLS)
        for block, group in self._grouped(groups, minutes):
            found += np.bincount(group * CELLS + block.cell, weights=block.spans, minlength=len(found))
        return found.reshape(count, CELLS)

    def minute_spreads(self, groups: Ints, count: int) -> Floats:
        """As `spreads`, of each minute: an array of count x minutes x CELLS."""
        found = np.zeros(count * self.span.count * CELLS)
        for block, group in self._grouped(groups, slice(None)):
            at = (group * self.span.count + block.minute) * CELLS + block.cell
            found += np.bincount(at, weights=block.spans, minlength=len(found))
        return found.reshape(count, self.span.count, CELLS)

    def _grouped(self, groups: Ints, minutes: slice) -> Iterator[tuple[Block, Ints]]:
        start, stop, _ = minutes.indices(self.span.count)
        for block in self.cells.blocks(slice(start, stop)):
            group = groups[block.series]
            inside = group >= 0
            series, minute, cell, spans = block
            yield Block(series[inside], minute[inside], cell[inside], spans[inside]), group[inside]

    def spread(self, series: Bools, minutes: slice) -> Floats:
        """Spans by cell, of some series and minutes."""
        found: Floats = self.spreads(np.where(series, 0, -1), 1, minutes)[0]
        return found

    def mean_cell(self, by: Sequence[str], kinds: Sequence[str]) -> Floats:
        """The mean cell of the spans of some kinds, by group of `by` and minute; NaN without spans."""
        names, source = tuple(by), self._of_grain()
        keys, _, number = source.groups(names)
        values, kind = source.grain.groups(("kind",))
        of = np.where(values["kind"].is_in(kinds).to_numpy()[kind], source.grain.groups(names)[1], -1)
        key = (names, tuple(kinds))
        each = [one.middle(key, of, len(number)) for one in source.slices]
        found = np.full((keys.height, self.span.count), np.nan)
        inside = np.flatnonzero(number >= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            for minute, (spans, position) in enumerate(each):
                found[number[inside], minute] = (position / spans)[inside]
        return found


def cell_values_ns(positions: Floats) -> Floats:
    """The durations in ns that positions of `Panel.cell` stand for: the middle of their bounds."""
    index = (positions + FIRST_CELL + 0.5) * BUCKETS_PER_CELL
    found: Floats = np.where(index <= 0, 0.0, GAMMA**index)
    return found


def cell_value_ns(position: float) -> float:
    """As `cell_values_ns`, of one."""
    return float(cell_values_ns(np.asarray(position, dtype=float)))


def quantile_ns(spread: Floats, q: float) -> float | None:
    """A quantile of spans by cell, interpolated within its cell; None without spans."""
    total = float(spread.sum())
    if total <= 0:
        return None
    up_to = np.cumsum(spread)
    position = int(np.searchsorted(up_to, q * total))
    before = up_to[position - 1] if position else 0.0
    share = (q * total - before) / max(float(spread[position]), 1e-9)
    return cell_value_ns(position + share - 0.5)


def _add(array: Floats, series: Ints, minute: Ints, values: npt.NDArray[Any]) -> None:
    """Add values to an array of series x minutes."""
    np.add.at(array.reshape(-1), series * array.shape[1] + minute, values.astype(array.dtype))
