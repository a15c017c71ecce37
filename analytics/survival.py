"""Delays of which some have not ended yet: the product-limit estimate, and a test of two groups.

A message that is not delivered is known to take longer than the time since it was sent: it is right-censored.
Percentiles over what was delivered alone flatter the result. Kaplan and Meier, "Nonparametric estimation from
incomplete observations", 1958; Greenwood's variance; intervals of quantiles after Brookmeyer and Crowley, "A confidence
interval for the median survival time", 1982, of log(-log) of the curve. Log-rank test: Mantel, "Evaluation of survival
data and two new rank order statistics", 1966. Counts in groups of equal time, for which `statsmodels.duration` has no
Greenwood variance; tests compare with it, one observation at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.floating[Any]]
_NOTHING, _TIE = 1e-12, 1e-9
_Z95 = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Delays:
    """Delays in groups of equal time: `ended` of them took `times_ns`, `censored` are known to take longer."""

    times_ns: Floats
    ended: Floats
    censored: Floats

    @classmethod
    def of(cls, ended_ns: Floats, ended: Floats, censored_ns: Floats, censored: Floats) -> Delays:
        """From delays that ended and those that did not, each with how many they are, in any order; none below 0."""
        times, position = np.unique(np.concatenate([ended_ns, censored_ns]), return_inverse=True)
        counts = [
            np.bincount(part, weights=np.maximum(weights, 0.0), minlength=len(times)).astype(float)
            for part, weights in ((position[: len(ended_ns)], ended), (position[len(ended_ns) :], censored))
        ]
        some = counts[0] + counts[1] > 0
        return cls(times[some], counts[0][some], counts[1][some])

    @classmethod
    def concat(cls, parts: Sequence[Delays]) -> Delays:
        """All delays of several groups."""
        times, ended, censored = (
            np.concatenate([np.empty(0), *(getattr(part, name) for part in parts)])
            for name in ("times_ns", "ended", "censored")
        )
        return cls.of(times, ended, times, censored)

    def over(self, together: float) -> Delays:
        """Their effective numbers, where so many of them are as good as one."""
        return Delays(self.times_ns, self.ended / together, self.censored / together)

    @property
    def total(self) -> float:
        """How many there are."""
        return float(self.ended.sum() + self.censored.sum())


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None for what the curve does not reach."""

    value: float | None
    low: float | None
    high: float | None


class Curve:
    """The share of delays that last longer than a time."""

    def __init__(self, delays: Delays) -> None:
        """Raises ValueError where none of the delays ended."""
        if delays.ended.sum() <= 0:
            raise ValueError(f"{delays.total:g} delays of which none ended: expected some, to estimate from")
        at_risk = np.cumsum((delays.ended + delays.censored)[::-1])[::-1]
        happens = delays.ended > 0
        n, d = at_risk[happens], delays.ended[happens]
        self._times = delays.times_ns[happens]
        self._shares = np.cumprod(1 - d / n)
        # Where all that is left ends, the share is 0 and has no variance.
        self._errors = self._shares * np.sqrt(np.cumsum(d / np.maximum(n * (n - d), _NOTHING)))
        self.followed_ns = float(delays.times_ns[-1])

    def quantile(self, q: float) -> Estimate:
        """The delay that a share `q` does not exceed, in ns."""
        shares, errors = self._shares, self._errors
        with np.errstate(divide="ignore", invalid="ignore"):
            # The distance of log(-log S) from that of 1 - q, in standard errors (delta method).
            distance = np.log(-np.log(shares)) - np.log(-np.log(1 - q))
            scaled = distance * np.abs(shares * np.log(shares)) / errors
        scaled = np.where(shares <= 0, np.inf, scaled)
        reached = (shares <= 1 - q + _TIE, scaled > -_Z95, scaled > _Z95)
        value, low, high = (self._first(which) for which in reached)
        return Estimate(value, low, high)

    def lasting(self, time_ns: float) -> Estimate:
        """The share that lasts longer than a time; the interval is Greenwood's, within 0 and 1."""
        at = int(np.searchsorted(self._times, time_ns, side="right")) - 1
        if at < 0:
            return Estimate(1.0, 1.0, 1.0)
        share, error = float(self._shares[at]), float(self._errors[at])
        return Estimate(share, max(share - _Z95 * error, 0.0), min(share + _Z95 * error, 1.0))

    def _first(self, which: npt.NDArray[np.bool_]) -> float | None:
        return float(self._times[int(which.argmax())]) if which.any() else None


def log_rank(first: Delays, second: Delays) -> tuple[float, float]:
    """Whether two groups take equally long: chi-squared (one degree of freedom) and its p; (0, 1) where none ended."""
    times = np.union1d(first.times_ns, second.times_ns)
    ended, leaving = (np.stack([_at(times, one, name) for one in (first, second)]) for name in ("ended", "all"))
    at_risk = np.cumsum(leaving[:, ::-1], axis=1)[:, ::-1]
    both, events = at_risk.sum(axis=0), ended.sum(axis=0)
    used = (events > 0) & (both > 1)
    n, d, n_first = both[used], events[used], at_risk[0, used]
    excess = float((ended[0, used] - d * n_first / n).sum())
    variance = float((d * (n_first / n) * (1 - n_first / n) * (n - d) / (n - 1)).sum())
    if variance <= 0:
        return 0.0, 1.0
    statistic = excess**2 / variance
    return statistic, float(stats.chi2.sf(statistic, 1))


def _at(times: Floats, delays: Delays, which: str) -> Floats:
    """Counts of a group at each of `times`: those that ended, or all that left the group."""
    counts = np.zeros(len(times))
    counts[np.searchsorted(times, delays.times_ns)] = (
        delays.ended if which == "ended" else delays.ended + delays.censored
    )
    return counts
