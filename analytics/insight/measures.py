"""Counts by series and minute, and sums of them: arrays with one row a series, one column a minute."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.intp]

MINUTE = timedelta(minutes=1)
_MINUTE_US = 60_000_000


@dataclass(frozen=True)
class Span:
    """The minutes that are looked at: `count` of them from `start` (naive UTC); the last `recent` are judged, and those
    before are what they are compared with."""

    start: datetime
    count: int
    recent: int

    @classmethod
    def until(cls, end: datetime, count: int, recent: int) -> Span:
        """The `count` minutes before `end` (naive UTC)."""
        return cls(end - count * MINUTE, count, min(recent, count))

    @property
    def end(self) -> datetime:
        """The end of the last minute."""
        return self.start + self.count * MINUTE

    @property
    def baseline(self) -> int:
        """Minutes before those that are judged."""
        return self.count - self.recent

    def time(self, index: int) -> datetime:
        """The start of a minute."""
        return self.start + int(index) * MINUTE

    def index(self, minutes: pl.Series) -> Ints:
        """Positions of minutes (naive UTC)."""
        first = int(np.datetime64(self.start, "us").astype(np.int64))
        found: Ints = ((minutes.cast(pl.Int64).to_numpy() - first) // _MINUTE_US).astype(np.intp)
        return found


@dataclass(frozen=True)
class Measure:
    """What was counted and what was expected: arrays of series x minutes.

    `variance`: of the counts, were they independent; `trials`: what they are a share of.
    """

    observed: Floats
    expected: Floats
    variance: Floats
    trials: Floats

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """observed, expected, variance, trials."""
        return self.observed, self.expected, self.variance, self.trials

    def by(self, groups: Ints, count: int) -> Measure:
        """Sums over the series of each group."""
        return Measure(*(summed(array, groups, count) for array in self.arrays()))

    def rows(self, which: Ints | Bools) -> Measure:
        """Some of the series."""
        return Measure(*(array[which] for array in self.arrays()))


@dataclass(frozen=True)
class Rated:
    """As `Measure`, where each series is expected to have a rate of its own (a column): nothing is stored twice."""

    observed: Floats
    trials: Floats
    rate: Floats

    @property
    def expected(self) -> Floats:
        """Events at that rate."""
        return self.rate * self.trials

    @property
    def variance(self) -> Floats:
        """Of independent events at that rate."""
        return self.rate * (1 - self.rate) * self.trials

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats]:
        """observed, expected, variance, trials."""
        return self.observed, self.expected, self.variance, self.trials

    def by(self, groups: Ints, count: int) -> Measure:
        """Sums over the series of each group."""
        return Measure(*(summed(array, groups, count) for array in self.arrays()))

    def rows(self, which: Ints | Bools) -> Rated:
        """Some of the series."""
        return Rated(self.observed[which], self.trials[which], self.rate[which])

    def only(self, which: Bools) -> Rated:
        """All series, but nothing in those that are not of `which`."""
        if which.all():
            return self
        return Rated(self.observed * which[:, None], self.trials * which[:, None], self.rate)


def summed(array: Floats, groups: Ints, count: int) -> Floats:
    """Sums of the rows of each group: an array of count x columns. Group -1 is left out."""
    inside = np.flatnonzero(groups >= 0)
    ones = np.ones(len(inside), dtype=array.dtype)
    picking = sparse.csr_matrix((ones, (groups[inside], inside)), shape=(count, len(groups)))
    found: Floats = picking @ array
    return found


def dense(span: Span, frame: pl.DataFrame, keys: pl.DataFrame, column: str) -> Floats:
    """Sums of a column of a frame with `minute` and the columns of `keys`: an array of rows of `keys` x minutes."""
    numbered = frame.join(keys.with_row_index("series"), on=keys.columns, maintain_order="left")
    at = numbered["series"].to_numpy().astype(np.intp) * span.count + span.index(numbered["minute"])
    return _dense(at, numbered[column].to_numpy(), (keys.height, span.count))


def _dense(at: Ints, values: npt.NDArray[Any], shape: tuple[int, int]) -> Floats:
    flat = np.bincount(at, weights=values, minlength=shape[0] * shape[1])
    return flat.reshape(shape).astype(np.float32)
