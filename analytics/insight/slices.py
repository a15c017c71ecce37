"""One minute of a grain, and what has been computed of it.

A minute does not change, whatever it is looked at with: what was computed of it once holds for the next look too. Only
the cells beyond which spans are slow change from time to time, and then only what is of their strata is counted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from analytics.insight.measures import Floats, Ints

CELLS = 560
FIRST_CELL = -1
Numbers = npt.NDArray[Any]
Result = TypeVar("Result")


class Spread(NamedTuple):
    """Spans by group and cell (from 0 on), what is filled of it."""

    group: Ints
    cell: Ints
    spans: Numbers


class Slice:
    """Rows and cells of a grain (see `grains.Grain`) of one minute, each series once.

    Groups of series are given as `of`: the group of each series of the grain. A `key` names how they were made: what is
    asked for with the same key is computed once.
    """

    def __init__(self, rows: pl.DataFrame, cells: pl.DataFrame) -> None:
        series = rows["series"].to_numpy()
        if len(series) and np.bincount(series).max() > 1:
            rows = rows.group_by("minute", "series", maintain_order=True).sum()
        self._rows, self._cells = rows, cells
        self._known: dict[Hashable, Any] = {}
        self.series: Ints = rows["series"].to_numpy().astype(np.intp)
        self.present: Numbers = np.ones(len(self.series), dtype=np.uint8)

    def count(self, *names: str) -> Numbers:
        """A column of the rows, or the sum of several."""
        return self._keep(names, lambda: self._counts(names))

    def sums(self, name: str, key: Hashable, of: Ints, values: Numbers) -> tuple[Ints, Numbers]:
        """The groups of the rows, and the sum of what a row has (`values`, as they are called `name`) of each."""
        known = self._known.get(("sums", name, key))
        if known is None or known[0] is not values:
            known = values, totals(of[self.series], values)
            self._known["sums", name, key] = known
        found: tuple[Ints, Numbers] = known[1]
        return found

    def spread(self, key: Hashable, of: Ints) -> Spread:
        """Spans by group and cell."""
        return self._keep(("spread", key), lambda: self._spread(of))

    def middle(self, key: Hashable, of: Ints, count: int) -> tuple[Floats, Floats]:
        """Spans of each of `count` groups, and the sum of their cells; group -1 is left out."""
        spans, position = self._keep(("middle", key), lambda: self._middle(of, count))
        lacking = count - len(spans)
        return (np.pad(spans, (0, lacking)), np.pad(position, (0, lacking))) if lacking > 0 else (spans, position)

    def beyond(self, key: Hashable, of: Ints, limits: Floats) -> tuple[Numbers, Numbers]:
        """Spans of each row beyond two cells, given for each group (an array of 2 x groups), the second no less."""
        known = self._known.get(("beyond", key))
        if known is None:
            found = self._beyond(of, limits)
        else:
            before, found = known
            # Another continuation of the grain may know fewer groups, none of which has rows here.
            width = min(before.shape[1], limits.shape[1])
            changed = np.ones(limits.shape[1], dtype=bool)
            changed[:width] = (before[:, :width] != limits[:, :width]).any(0)
            mine = changed[of[self.series]] if changed.any() else changed
            if mine.any():
                found = self._again(of, limits, np.flatnonzero(mine), found)
        self._known["beyond", key] = limits, found
        return found

    def _keep(self, key: Hashable, make: Callable[[], Result]) -> Result:
        if key not in self._known:
            self._known[key] = make()
        found: Result = self._known[key]
        return found

    def _counts(self, names: tuple[str, ...]) -> Numbers:
        found: Numbers = self._rows[names[0]].to_numpy()
        for name in names[1:]:
            found = found + self._rows[name].to_numpy()
        return found

    def _columns(self) -> tuple[Numbers, Numbers, Numbers]:
        series, cell, spans = (self._cells[name].to_numpy() for name in ("series", "cell", "spans"))
        return series, cell - FIRST_CELL, spans

    def _spread(self, of: Ints) -> Spread:
        series, cell, spans = self._columns()
        filled, total = totals(of[series] * CELLS + cell, spans)
        return Spread(*np.divmod(filled, CELLS), total)

    def _middle(self, of: Ints, count: int) -> tuple[Floats, Floats]:
        series, cell, spans = self._columns()
        group = of[series]
        inside = group >= 0
        if not inside.all():
            group, cell, spans = group[inside], cell[inside], spans[inside]
        weight = spans.astype(float)
        found = [np.bincount(group, each, count).astype(float) for each in (weight, weight * cell)]
        return found[0], found[1]

    def _beyond(self, of: Ints, limits: Floats) -> tuple[Numbers, Numbers]:
        series, cell, spans = self._columns()
        found = []
        for limit in limits:
            longer = cell > limit[of[series]]
            series, cell, spans = series[longer], cell[longer], spans[longer]
            by_series = np.bincount(series, spans, len(of))
            found.append(by_series[self.series].astype(np.uint32))
        return found[0], found[1]

    def _again(self, of: Ints, limits: Floats, rows: Ints, before: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
        """As `_beyond` of some rows, and what was found before of the others."""
        first = self._keep("first cells", self._first_cells)
        if first is None:
            return self._beyond(of, limits)
        starts = first[:-1][rows].astype(np.intp)
        lengths = first[1:][rows] - starts
        row = np.repeat(np.arange(len(rows)), lengths)
        at = np.arange(len(row)) + (starts - np.cumsum(lengths) + lengths)[row]
        cell, spans = (self._cells[name].to_numpy()[at] for name in ("cell", "spans"))
        found = []
        for limit, known in zip(limits[:, of[self.series[rows]]], before, strict=True):
            longer = cell - FIRST_CELL > limit[row]
            counted = known.copy()
            counted[rows] = np.bincount(row[longer], spans[longer], len(rows))
            found.append(counted)
        return found[0], found[1]

    def _first_cells(self) -> Numbers | None:
        """Where the cells of each row begin, and the last ones end; None where they are not in the order of rows."""
        series = self._cells["series"].to_numpy()
        first = np.append(0, np.flatnonzero(series[1:] != series[:-1]) + 1)
        if len(series) and np.array_equal(series[first], self.series):
            return np.append(first, len(series)).astype(np.uint32)
        return None


class Totals:
    """Sums by series over some minutes, kept by name: what comes and goes is added and taken away. Counts are whole
    numbers, so that this is exact."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[int, tuple[Ints, Numbers]], Floats]] = {}

    def copy(self) -> Totals:
        """Another one that goes on from here by itself."""
        found = Totals()
        found._known = dict(self._known)
        return found

    def of(self, name: str, minutes: Sequence[tuple[Ints, Numbers]], size: int) -> Floats:
        """Sums of the values (of different series each minute) of `size` series."""
        wanted = {id(values): (series, values) for series, values in minutes}
        known, before = self._known.get(name, ({}, np.zeros(0)))
        found = np.zeros(size)
        if 2 * len(known.keys() & wanted.keys()) >= len(wanted):
            found[: len(before)] = before
        else:
            known = {}
        for key in known.keys() - wanted.keys():
            found[known[key][0]] -= known[key][1]
        for key in wanted.keys() - known.keys():
            found[wanted[key][0]] += wanted[key][1]
        self._known[name] = wanted, found
        return found


def totals(at: Ints, values: Numbers) -> tuple[Ints, Numbers]:
    """The different numbers, in order, and the sum of the values of each."""
    size = int(at.max(initial=-1)) + 1
    if size <= 8 * len(at):
        total = np.bincount(at, weights=values, minlength=size)
        filled: Ints = np.flatnonzero(total)
        return filled, total[filled]
    filled, of = np.unique(at, return_inverse=True)
    return filled, np.bincount(of, weights=values, minlength=len(filled))
