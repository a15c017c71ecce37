"""Findings against the same time of other days: what comes every day at this time is no news.

A finding of a kind in FIGURE is looked up at the same time of other days (`analytics.insight.seasons`). Where the
figure of its place is what is usual at that time, it is a rhythm and not told; else it says how it stands against each
of these baselines, `insufficient history` included. Without enough days nothing is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import polars as pl

from analytics.change import INSUFFICIENT, duration
from analytics.insight.finding import Finding
from analytics.insight.grains import DESTINATION
from analytics.insight.seasons import COMPARED_SCHEMA, UNUSUAL, compared
from analytics.rollup.sets import BASE, DimensionSet
from analytics.rollup.windows import Values
from analytics.window import MINUTE, Window
from collector.config import InsightConfig
from collector.lake.lake import Reader

FIGURE: Mapping[str, tuple[str, int]] = {
    "latency": ("p95_ns", 1), "region_slow": ("p95_ns", 1),
    "errors": ("error_rate", 1), "region_errors": ("error_rate", 1),
    "burst": ("rate_per_second", 1), "traffic_surge": ("rate_per_second", 1), "traffic_drop": ("rate_per_second", -1),
    "hit_ratio": ("hit_ratio", -1),
}  # fmt: skip
"""The figure in which a kind of finding shows, and the direction of what is wrong."""

Past = Callable[[str, Window, DimensionSet, Values], pl.DataFrame]
"""Asks how a figure of a place and window compares with other days: COMPARED_SCHEMA, a row, or none without spans."""

_STRETCH_MIN = 3 * MINUTE
_LOOKS_MAX = 10
_DESTINATIONS = DimensionSet("destination", DESTINATION)
_SERVED = ("server", "consumer")


def weighed(found: list[Finding], past: Past, until: datetime, config: InsightConfig) -> list[Finding]:
    """`found` without what is usual at this time of day; the others with `baselines` where their kind has a FIGURE.

    Asks `past` for the _LOOKS_MAX findings of the highest score at most.
    """
    looked_at = {id(one) for one in sorted(found, key=lambda one: -one.score)[:_LOOKS_MAX]}
    told = []
    for finding in found:
        row = _row(finding, past, until) if id(finding) in looked_at else None
        if row is None:
            told.append(finding)
        elif not is_usual(row, FIGURE[finding.kind][1], config.ratio_min):
            told.append(replace(finding, baselines=phrases(row)))
    return told


def is_usual(row: Mapping[str, Any], sign: int, ratio_min: float) -> bool:
    """Whether a figure (a row of COMPARED_SCHEMA) is no worse than it usually is at this time: less than UNUSUAL scales
    from it, and less than `ratio_min` times it (or above 1 / `ratio_min` of it, for a `sign` of -1)."""
    if row["verdict"] == INSUFFICIENT:
        return False
    now, usual = row["now"], row["usual"]
    if row["figure"] == "hit_ratio":
        now, usual = 1 - now, 1 - usual
    elif sign < 0:
        now, usual = usual, now
    return bool(sign * row["deviation"] < UNUSUAL and now < ratio_min * usual)


def phrases(row: Mapping[str, Any]) -> tuple[str, ...]:
    """How a figure stands against each baseline: the window before, yesterday, last week, and all such days."""
    names = {"previous": "the time before", "yesterday": "same time yesterday", "last_week": "same time last week"}
    told = [f"{words}: {_against(row, row[name])}" for name, words in names.items()]
    days = f"same time of {row['samples']} days"
    if row["verdict"] == INSUFFICIENT:
        return (*told, f"{days}: {INSUFFICIENT}")
    return (*told, f"{days}: {_against(row, row['usual'])}, {row['deviation']:+.1f} scales from their median")


def _against(row: Mapping[str, Any], then: float | None) -> str:
    if then is None or row["now"] is None:
        return INSUFFICIENT
    return f"{_figure(row['figure'], row['now'])}, was {_figure(row['figure'], then)}"


def _figure(name: str, value: float) -> str:
    if name == "p95_ns":
        return f"p95 {duration(value)}"
    if name == "rate_per_second":
        return f"{value:.3g} spans/s"
    return f"{name.replace('_', ' ')} {100 * value:.3g} %"


def _row(finding: Finding, past: Past, until: datetime) -> dict[str, Any] | None:
    """The figure of the finding's kind at its place, since it began; None where there is none."""
    if finding.kind not in FIGURE:
        return None
    figure, _ = FIGURE[finding.kind]
    dimension_set = _DESTINATIONS if figure == "hit_ratio" else BASE
    place = finding.place
    wanted = {
        "region": place.region, "service_name": place.service, "operation": place.operation,
        "destination": place.destination, "tenant": finding.tenant_scope,
    }  # fmt: skip
    values = {name: [value] for name, value in wanted.items() if value and name in dimension_set.dimensions}
    if figure == "rate_per_second":
        values["kind"] = list(_SERVED)
    begin = max(min(finding.since, until - _STRETCH_MIN), until - 24 * 60 * MINUTE)
    found = past(figure, Window(begin, until), dimension_set, values)
    return found.row(0, named=True) if found.height else None


def of_reader(reader: Reader, config: InsightConfig) -> Past:
    """Asks the rollups of a lake, the same once; nothing is known where the set's tables are empty, or not there."""
    known: dict[tuple[object, ...], pl.DataFrame] = {}

    def past(figure: str, window: Window, dimension_set: DimensionSet, values: Values) -> pl.DataFrame:
        key = (figure, window, str(values))
        if key not in known:
            is_empty = reader.filled().isdisjoint(table for table, _ in dimension_set.tables)
            known[key] = (
                COMPARED_SCHEMA.to_frame()
                if is_empty
                else compared(reader, window, (), dimension_set, values, config.volume_min, (figure,))
            )
        return known[key]

    return past
