"""Where an excess sits: from everything down to the one region, service, host or tenant that holds nearly all of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from analytics.insight.measures import Bools, Floats, summed

NEARLY_ALL = 0.75
INFORMATIVE = 1.35
"""A value is named where its share of the excess is that much larger than its share of what was expected."""


def locate(
    keys: pl.DataFrame, excess: Floats, expected: Floats, dimensions: Sequence[str]
) -> tuple[dict[str, str], Bools]:
    """Narrow down series (rows of `keys`, with their excess and expected events) to where the excess is.

    Dimensions are tried in order, and again after one has narrowed the rest. Returns the value of each dimension that
    was narrowed down, and which series are left.
    """
    found: dict[str, str] = {}
    inside = np.ones(len(excess), dtype=bool)
    remaining = list(dimensions)
    while remaining:
        best = None
        for name in remaining:
            value = _dominant(keys[name], excess, expected, inside)
            if value is not None:
                best = (name, value)
                break
        if best is None:
            break
        found[best[0]] = best[1]
        inside &= (keys[best[0]] == best[1]).fill_null(value=False).to_numpy()
        remaining.remove(best[0])
    return found, inside


def _dominant(column: pl.Series, excess: Floats, expected: Floats, inside: Bools) -> str | None:
    codes = column.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    count = int(codes.max(initial=0)) + 1
    each = summed(np.stack([excess, expected], axis=1)[inside], codes[inside], count)
    positive = np.maximum(each[:, 0], 0)
    if positive.sum() <= 0 or (each[:, 1] > 0).sum() < 2:
        return None
    top = int(positive.argmax())
    share, usual = positive[top] / positive.sum(), each[top, 1] / max(each[:, 1].sum(), 1e-9)
    if top == 0 or share < NEARLY_ALL or share < INFORMATIVE * usual:
        return None
    return str(column.filter(pl.Series(codes == top))[0])


def located(
    keys: pl.DataFrame, excess: Floats, expected: Floats, dimensions: Sequence[str], inside: Bools
) -> tuple[dict[str, str], Bools]:
    """`locate` among the series `inside`; what is left is told of all series."""
    found, part = locate(keys.filter(pl.Series(inside)), excess[inside], expected[inside], dimensions)
    left = inside.copy()
    left[inside] = part
    return found, left


def effective_number(excess: Floats) -> float:
    """1 / sum of squared shares (inverse Simpson index): how many places carry the excess, were it spread evenly."""
    positive = np.maximum(excess, 0)
    return float(positive.sum() ** 2 / (positive**2).sum()) if positive.any() else 0.0
