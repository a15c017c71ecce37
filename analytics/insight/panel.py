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
from analytics.insight.evidence import BUCKETS_PER_CELL, CELLS_SCHEMA, Grain, minute_number
from analytics.insight.measures import Bools, Floats, Ints, Span, summed

CELLS = 560
_FIRST_CELL = -1
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
            block = Block(series, minute, part["cell"].to_numpy() - _FIRST_CELL, part["spans"].to_numpy())
            known = series >= 0
            yield block if known.all() else block.where(known)

    def summed(self, groups: Ints, count: int) -> Cells:
        """Those of each group of series of the panel: its series are the groups."""
        parts = [CELLS_SCHEMA.to_frame()]
        for series, minute, cell, spans in self.blocks():
            first = int(minute.min(initial=0))
            at = ((minute - first).astype(np.intp) * count + groups[series]) * CELLS + cell
            size = (int(minute.max(initial=0)) - first + 1) * count * CELLS
            filled, total = _totals(at, spans, size)
            place, of_cell = np.divmod(filled, CELLS)
            of_minute, group = np.divmod(place, count)
            columns = {"minute": of_minute + first + self.start, "series": group, "cell": of_cell + _FIRST_CELL}
            parts.append(pl.DataFrame({**columns, "spans": total}).cast(CELLS_SCHEMA))
        return Cells(pl.concat(parts), np.arange(count), self.start)


@dataclass(frozen=True)
class Panel:
    """A grain within a `Span`.

    `keys`: a row a series (the dimensions); `counts`: arrays by names of `evidence.COUNTS`; `cells`: durations.
    """

    span: Span
    keys: pl.DataFrame
    counts: Counts
    cells: Cells
    _grouped_by: dict[tuple[str, ...], tuple[pl.DataFrame, Ints]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, grain: Grain, span: Span) -> Panel:
        """Read the minutes of `span`."""
        inside = grain.between(span.start, span.end)
        start = minute_number(span.start)
        used = np.zeros(grain.keys.height, dtype=bool)
        used[inside.rows["series"].to_numpy()] = True
        number = np.where(used, np.cumsum(used) - 1, -1)
        shape = (int(used.sum()), span.count)

        def counts(name: str) -> Floats:
            found = np.zeros(shape, dtype=np.float32)
            for part in inside.rows.select("series", "minute", name).iter_slices(_BLOCK_CELLS):
                _add(found, number[part["series"].to_numpy()], part["minute"].to_numpy() - start, part[name].to_numpy())
            return found

        return cls(span, grain.keys.filter(pl.Series(used)), Counts(counts), Cells(inside.cells, number, start))

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
            values = self.keys.select(by).unique(maintain_order=True).with_row_index("group")
            found = self.keys.join(values, on=list(by), how="left", nulls_equal=True, maintain_order="left")
            self._grouped_by[tuple(by)] = values.drop("group"), found["group"].to_numpy().astype(np.intp)
        return self._grouped_by[tuple(by)]

    def coarse(self, by: Sequence[str]) -> Panel:
        """The same summed up to the values of `by`: far fewer cells, for what needs no more."""
        keys, of = self.groups(by)
        counts = Counts(lambda name: summed(self.counts[name], of, keys.height))
        return Panel(self.span, keys, counts, self.cells.summed(of, keys.height))

    def thresholds(self, strata: Ints, count: int) -> Floats:
        """The cells of SLOW and VERY_SLOW in the baseline of each stratum: an array of 2 x strata."""
        up_to = np.cumsum(self.spreads(strata, count, slice(0, self.span.baseline)), axis=1)
        total = up_to[:, -1:]
        return np.stack([(up_to < share * total).sum(axis=1) for share in (SLOW, VERY_SLOW)]).astype(float)

    def beyond(self, cells: Floats) -> Floats:
        """Spans longer than the cell given for each series, by series and minute."""
        return self.beyond_each([cells])[0]

    def beyond_each(self, limits: Sequence[Floats]) -> list[Floats]:
        """As `beyond`, of several limits, none of them below that before it, in one pass."""
        found = [np.zeros((self.size, self.span.count), dtype=np.float32) for _ in limits]
        for block in self.cells.blocks():
            left = block
            for array, cells in zip(found, limits, strict=True):
                left = left.where(left.cell > cells[left.series])
                _add(array, left.series, left.minute, left.spans)
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

    def mean_cell(self, groups: Ints, count: int, which: Bools) -> Floats:
        """The mean cell of the spans of each group, of the series `which`, by minute; NaN without spans."""
        size = count * self.span.count
        total, position = np.zeros(size), np.zeros(size)
        for block in self.cells.blocks():
            inside = which[block.series]
            at = groups[block.series[inside]] * self.span.count + block.minute[inside]
            spans = block.spans[inside].astype(float)
            total += np.bincount(at, weights=spans, minlength=size)
            position += np.bincount(at, weights=spans * block.cell[inside], minlength=size)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = position / total
        return found.reshape(count, self.span.count)


def cell_values_ns(positions: Floats) -> Floats:
    """The durations in ns that positions of `Panel.cell` stand for: the middle of their bounds."""
    index = (positions + _FIRST_CELL + 0.5) * BUCKETS_PER_CELL
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


def _totals(at: Ints, values: npt.NDArray[Any], size: int) -> tuple[Ints, npt.NDArray[Any]]:
    """The different numbers below `size`, in order, and the sum of the values of each."""
    if size <= 8 * len(at):
        total = np.bincount(at, weights=values, minlength=size)
        filled: Ints = np.flatnonzero(total)
        return filled, total[filled]
    filled, of = np.unique(at, return_inverse=True)
    return filled, np.bincount(of, weights=values, minlength=len(filled))
