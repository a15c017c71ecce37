"""Shares of series (misses of lookups, late or missing deliveries): where they stand out, one place after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analytics.insight.finding import Finding
from analytics.insight.locating import located
from analytics.insight.measures import Bools, Floats, Measure, Rated
from analytics.insight.scene import Groups, Scene

_PLACES_MAX = 5


@dataclass(frozen=True)
class Spot:
    """A place: the values that it is narrowed down to, its series, and what the scan of its group says."""

    values: dict[str, str]
    which: Bools
    since: int
    excess: float
    p: float
    p_corrected: float


def spots(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, levels: Sequence[Sequence[str]], order: Sequence[str],
    what: str = "",
) -> Iterator[Spot]:  # fmt: skip
    """Places where a measure of series (rows of `keys`) stands out, the most striking first, none within another.

    Series are grouped by each of `levels` and scanned; `order` is that in which dimensions are narrowed down.
    """
    flagged = sorted(_flagged(scene, keys, measure, levels, what), key=lambda one: -one[0])
    told = np.zeros(keys.height, dtype=bool)
    given = 0
    for _, groups, index in flagged:
        group: Bools = groups.of == index
        since = int(groups.scan.since[index])
        excess, expected = _sums(measure, since)
        total = np.maximum(excess[group], 0).sum()
        if given == _PLACES_MAX or np.maximum(excess[group & told], 0).sum() > 0.4 * total:
            continue
        values, which = located(keys, excess, expected, order, group)
        fixed = {name: str(groups.keys[name][index]) for name in groups.keys.columns if name != "all"}
        told |= group
        given += 1
        yield Spot(
            {**fixed, **values}, which, since, float(excess[which].sum()), float(groups.scan.p[index]),
            float(groups.p_corrected[index]),
        )  # fmt: skip


def clear(scene: Scene, found: Sequence[Finding]) -> list[Finding]:
    """Those of which the exact test agrees, at the very place that is told.

    It is made of deliveries or lookups now and before, where the scan is of a group's minutes: what that narrows down
    to may be a dozen events, of a share that is known from a score.
    """
    return [one for one in found if (one.confidence.p or 0.0) <= scene.config.false_discovery_rate]


def _flagged(
    scene: Scene, keys: pl.DataFrame, measure: Measure | Rated, levels: Sequence[Sequence[str]], what: str
) -> Iterator[tuple[float, Groups, int]]:
    for level in levels:
        names = keys.select(level).unique().sort(level, nulls_last=True).with_row_index("group")
        of = (
            keys.join(names, on=list(level), maintain_order="left", nulls_equal=True)["group"]
            .to_numpy()
            .astype(np.intp)
        )
        groups = scene.over(names.drop("group"), of, measure, what)
        for index in np.flatnonzero(groups.flagged):
            yield float(groups.scan.z[index]), groups, int(index)


def _sums(measure: Measure | Rated, since: int) -> tuple[Floats, Floats]:
    return (measure.observed - measure.expected)[:, since:].sum(1), measure.expected[:, since:].sum(1)
