"""Change points: since when a series is as it is (PELT, Killick, Fearnhead and Eckley 2012, of package ruptures)."""

from __future__ import annotations

import numpy as np
import ruptures

from analytics.insight.measures import Floats

_PENALTY_FACTOR = 3.0
_NEAR_MINUTES = 4
_LOOK_BACK_MINUTES = 30


def change_points(values: Floats) -> list[int]:
    """Positions at which the mean of `values` changes, in order; none where it does not.

    Cost: squared deviations. Penalty: _PENALTY_FACTOR x variance of the noise x ln(n), the noise from the median
    absolute difference of neighbours, so that the changes themselves do not count as noise.
    """
    n = len(values)
    if n < 4:
        return []
    noise = 1.4826 * float(np.median(np.abs(np.diff(values)))) / float(np.sqrt(2))
    penalty = _PENALTY_FACTOR * max(noise, 1e-9) ** 2 * float(np.log(n))
    found = ruptures.Pelt(model="l2", min_size=2, jump=1).fit(np.asarray(values, dtype=float)).predict(pen=penalty)
    return [int(position) for position in found[:-1]]


def began(residuals: Floats, estimate: int) -> int:
    """When the last rise began: the change point upwards nearest to `estimate`, which stays where none is near."""
    first = max(0, estimate - _LOOK_BACK_MINUTES)  # The cost grows with the square of the minutes.
    ups = [at for at in (first + near for near in change_points(residuals[first:])) if _rises(residuals, at)]
    near = [at for at in ups if abs(at - estimate) <= _NEAR_MINUTES]
    return min(near, key=lambda at: abs(at - estimate), default=estimate)


def _rises(residuals: Floats, at: int) -> bool:
    return bool(residuals[at : at + 2].mean() > residuals[max(0, at - 2) : at].mean())
