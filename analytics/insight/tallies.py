"""Counts by series and minute as they lie: one minute after the other, what is there alone.

A series has spans in a quarter of the minutes or fewer, and most of what is asked for are sums over series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from analytics.insight.grains import Grain
from analytics.insight.measures import Bools, Floats, Ints, Measure, Rated
from analytics.insight.slices import Numbers, Slice

_UNIT = 2.0**-30
"""What weights of sums are rounded to: products with counts are whole multiples of it, and their sums exact, in
whatever order, up to eight million."""


@dataclass(frozen=True)
class Source:
    """Where the series of a panel come from: the minutes of a grain, and the series of the grain that each one of the
    panel is."""

    grain: Grain
    slices: Sequence[Slice]
    series: Ints
    _grouped: dict[tuple[str, ...], tuple[pl.DataFrame, Ints, Ints]] = field(default_factory=dict, init=False)

    @cached_property
    def number(self) -> Ints:
        """Which series of the panel each of the grain's is (-1 of none)."""
        found = np.full(self.grain.keys.height, -1, dtype=np.intp)
        found[self.series] = np.arange(len(self.series))
        return found

    def groups(self, by: tuple[str, ...]) -> tuple[pl.DataFrame, Ints, Ints]:
        """The different values of the panel's series in order, which of them each has, and the number that each group
        of the grain has here (-1 of none)."""
        if by not in self._grouped:
            self._grouped[by] = self._groups(by)
        return self._grouped[by]

    def _groups(self, by: tuple[str, ...]) -> tuple[pl.DataFrame, Ints, Ints]:
        values, of = self.grain.groups(by)
        order = self.grain.order(by)
        mine = of[self.series]
        used = np.zeros(values.height, dtype=bool)
        used[mine] = True
        kept = order[used[order]]
        number = np.full(values.height, -1, dtype=np.intp)
        number[kept] = np.arange(len(kept))
        return values[kept], number[mine], number

    def tally(self, *names: str) -> Tally:
        """The sum of some counts."""
        return Tally("+".join(names), [one.count(*names) for one in self.slices], self)


class Tally:
    """Counts of all series of a panel: for each minute those of the rows of its slice. `name` says what is counted."""

    def __init__(self, name: str, values: Sequence[Numbers], source: Source, number: Ints | None = None) -> None:
        self.source = source
        self._name = name
        self._minutes = [
            (one.series, counts) for one, counts in zip(source.slices[-len(values) :], values, strict=True)
        ]
        self._number = source.number if number is None else number
        self._size = len(source.series)
        self._sums: dict[tuple[str, ...], Floats] = {}
        self._last: dict[int, tuple[Ints, Ints, Floats]] = {}

    @cached_property
    def array(self) -> Floats:
        """All of them: series x minutes."""
        return self.rows(np.arange(self._size))

    def rows(self, which: Ints | Bools) -> Floats:
        """Those of some series x minutes."""
        chosen = np.flatnonzero(which) if which.dtype == bool else which
        place = np.full(self._size + 1, -1, dtype=np.intp)
        place[chosen] = np.arange(len(chosen))
        place = place[self._number]
        found = np.zeros((len(self._minutes), len(chosen)), dtype=np.float32)
        for of_minute, (series, values) in zip(found, self._minutes, strict=True):
            at = place[series]
            inside = at >= 0
            of_minute[at[inside]] = values[inside]
        return np.ascontiguousarray(found.T)

    def by(self, groups: Ints, count: int, weights: Sequence[Floats] = ()) -> list[Floats]:
        """Sums over the series of each group: an array of `count` x minutes of the counts, and one of them times each
        of `weights` (by series). Group -1 is left out."""
        of = np.append(np.where(groups < 0, count, groups), count)[self._number]
        factors = [np.append(weight, 0.0)[self._number] for weight in weights]
        found = np.empty((1 + len(weights), len(self._minutes), count + 1))
        for at, (series, values) in enumerate(self._minutes):
            group = of[series]
            found[0, at] = np.bincount(group, values, count + 1)
            for each, factor in zip(found[1:, at], factors, strict=True):
                each[:] = np.bincount(group, factor[series] * values, count + 1)
        return [array[:, :count].T.astype(np.float32, order="C") for array in found]

    def last_by(self, groups: Ints, count: int, minutes: int) -> Floats:
        """As `by`, of the counts in the last minutes."""
        series, minute, values = self.last(minutes)
        of = np.where(groups < 0, count, groups)[series]
        found = np.bincount(of * minutes + minute, values, (count + 1) * minutes)
        return found.reshape(-1, minutes)[:count].astype(np.float32)

    def by_names(self, by: tuple[str, ...]) -> Floats:
        """Sums over the series of each group of `Source.groups`; of a tally of all series."""
        if by not in self._sums:
            self._sums[by] = self._by_names(by)
        return self._sums[by]

    def _by_names(self, by: tuple[str, ...]) -> Floats:
        keys, _, number = self.source.groups(by)
        of = self.source.grain.groups(by)[1]
        found = np.zeros((keys.height, len(self._minutes)), dtype=np.float32)
        slices = self.source.slices[-len(self._minutes) :]
        for at, (one, (_, values)) in enumerate(zip(slices, self._minutes, strict=True)):
            groups, sums = one.sums(self._name, by, of, values)
            found[number[groups], at] = sums
        return found

    def total(self, minutes: int, out: Bools, strata: Ints) -> Floats:
        """Sums by series over the first minutes, but for those that each stratum leaves `out` (strata x minutes)."""
        found = self.source.grain.totals.of(self._name, self._minutes[:minutes], len(self._number)).copy()
        of = np.append(strata, 0)[self._number]
        for minute in np.flatnonzero(out[:, :minutes].any(0)):
            series, values = self._minutes[minute]
            left = out[:, minute][of[series]]
            found[series[left]] -= values[left]
        return found[self.source.series]

    def only(self, which: Bools) -> Tally:
        """The same series, but nothing in those that are not of `which`."""
        kept = np.append(np.where(which, np.arange(self._size), -1), -1)
        return Tally(self._name, [values for _, values in self._minutes], self.source, kept[self._number])

    def last(self, minutes: int) -> tuple[Ints, Ints, Floats]:
        """The last minutes (there are so many), one behind the other: the series of each row, its minute (from 0 on),
        and its count. Kept, for what several shares are of is asked for again."""
        if minutes not in self._last:
            parts = self._minutes[-minutes:]
            minute = np.repeat(np.arange(minutes), [len(series) for series, _ in parts])
            series = self._number[np.concatenate([series for series, _ in parts])]
            inside = series >= 0
            self._last[minutes] = series[inside], minute[inside], self.last_counts(minutes)
        return self._last[minutes]

    def last_counts(self, minutes: int) -> Floats:
        """The counts of `last` alone."""
        series, values = (np.concatenate(columns) for columns in zip(*self._minutes[-minutes:], strict=True))
        found: Floats = values[self._number[series] >= 0].astype(float)
        return found


class Tallied(Rated):
    """As `Rated`, of tallies; arrays of all series are made where they are asked for."""

    tallies: tuple[Tally, Tally]
    _recent: dict[int, Recent]

    def __init__(self, observed: Tally, trials: Tally, rate: Floats) -> None:
        for name, value in (("tallies", (observed, trials)), ("rate", rate), ("_recent", {})):
            object.__setattr__(self, name, value)

    @property
    def observed(self) -> Floats:
        """Counts of all series."""
        return self.tallies[0].array

    @property
    def trials(self) -> Floats:
        """What they are a share of."""
        return self.tallies[1].array

    def by(self, groups: Ints, count: int) -> Measure:
        """Sums over the series of each group."""
        observed, trials = self.tallies
        tried, expected, variance = trials.by(groups, count, _weights(self.rate))
        return Measure(observed.by(groups, count)[0], expected, variance, tried)

    def rows(self, which: Ints | Bools) -> Rated:
        """Some of the series."""
        observed, trials = self.tallies
        return Rated(observed.rows(which), trials.rows(which), self.rate[which])

    def only(self, which: Bools) -> Rated:
        """All series, but nothing in those that are not of `which`."""
        if which.all():
            return self
        observed, trials = self.tallies
        return Tallied(observed.only(which), trials.only(which), self.rate)

    def last(self, minutes: int) -> Recent:
        """The last minutes alone, expected at the same rates."""
        if minutes not in self._recent:
            self._recent[minutes] = Recent(*self.tallies, self.rate, minutes)
        return self._recent[minutes]


class Recent:
    """The last minutes of a measure, laid out one behind the other: many groupings of them are summed up in turn."""

    def __init__(self, observed: Tally, trials: Tally, rate: Floats, minutes: int) -> None:
        """Counts, what they are a share of, and the rate that is expected of each series (a column)."""
        self._minutes = minutes
        self._series, self._minute, tried = trials.last(minutes)
        seen = observed.last_counts(minutes)
        expected, variance = (weight[self._series] * tried for weight in _weights(rate))
        self._summands = seen, expected, variance, tried

    def by(self, groups: Ints, count: int) -> Measure:
        """Sums over the series of each group; group -1 is left out."""
        of = np.where(groups < 0, count, groups)
        at = of[self._series] * self._minutes + self._minute
        sums = (np.bincount(at, summand, (count + 1) * self._minutes) for summand in self._summands)
        return Measure(*(one.reshape(-1, self._minutes)[:count].astype(np.float32) for one in sums))


def _weights(rate: Floats) -> tuple[Floats, Floats]:
    """Of rates (a column), those themselves and the variance of one trial, in whole multiples of _UNIT."""
    each = rate[:, 0].astype(float)
    return np.round(each / _UNIT) * _UNIT, np.round(each * (1 - each) / _UNIT) * _UNIT
