"""The top of the page: how fresh the figures are, and the whole selection against the window before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl
import streamlit as st

from analytics.change import VOLUME_MIN
from analytics.health import Freshness
from analytics.window import Window
from dashboard import units
from dashboard.health.data import Health

LAG_SECONDS_NOTABLE = 30.0
LATENCY_RATIO_NOTABLE = 1.2
ERROR_POINTS_NOTABLE = 0.005
HIT_POINTS_NOTABLE = -0.02


@dataclass(frozen=True)
class Figure:
    """One headline metric, ready to show; `worse` where it moved notably in the wrong direction."""

    label: str
    value: str
    change: str
    baseline: str
    worse: bool


def freshness_sentence(fresh: Freshness, now: datetime) -> str:
    """How many spans there are, how new the newest is, and how far the rollups are behind."""
    spans = f"{fresh.spans:,} {'span' if fresh.spans == 1 else 'spans'}"
    if fresh.latest_span is None:
        return "No spans rolled up yet"
    newest = f"newest {units.age(fresh.latest_span, now)} ({units.clock(min(fresh.latest_span, now), now)})"
    lag = fresh.rollup_lag_seconds or 0.0
    rollups = "rollups up to date" if lag < LAG_SECONDS_NOTABLE else f"rollups {units.span(lag)} behind"
    return f"{spans} rolled up, {newest}, {rollups}"


def figures(health: Health) -> list[Figure]:
    """Rate, errors, latency and hit ratio of all selected spans against the previous window."""
    now, before = _values(health.total), _baseline(health.previous_total)
    found = [_rate(now, before), _points("Errors", "error_rate", now, before)]
    found += [_latency(name, now, before) for name in ("p50", "p95", "p99")]
    return [*found, _points("Cache hit ratio", "hit_ratio", now, before)]


def show(health: Health, window: Window, now: datetime) -> None:
    """Draw the metrics in one line."""
    before = window.previous()
    compared = f"{units.clock(before.start, now)} to {units.clock(before.end, now)}"
    with st.container(horizontal=True, gap="small", key="headline"):
        for figure in figures(health):
            color: Literal["red", "gray"] = "red" if figure.worse else "gray"
            st.metric(
                figure.label,
                figure.value,
                figure.change or None,
                delta_color=color,
                delta_arrow="off",
                delta_description=f"was {figure.baseline}" if figure.change else None,
                help=f"Compared with the window before: {compared}",
                border=True,
            )


def _rate(now: dict[str, float | None], before: dict[str, float | None]) -> Figure:
    value, baseline = now["rate_per_second"], before["rate_per_second"]
    change = units.relative_change(ratio(value, baseline))
    return Figure("Rate", units.rate(value), change, units.rate(baseline), worse=False)


def _latency(name: str, now: dict[str, float | None], before: dict[str, float | None]) -> Figure:
    value, baseline = now[f"{name}_ns"], before[f"{name}_ns"]
    grown = ratio(value, baseline)
    worse = grown is not None and grown >= LATENCY_RATIO_NOTABLE
    return Figure(
        f"Latency {name}", units.duration(value), units.relative_change(grown), units.duration(baseline), worse
    )


def _points(label: str, column: str, now: dict[str, float | None], before: dict[str, float | None]) -> Figure:
    value, baseline = now[column], before[column]
    moved = None if value is None or baseline is None else value - baseline
    worse = moved is not None and (
        moved <= HIT_POINTS_NOTABLE if column == "hit_ratio" else moved >= ERROR_POINTS_NOTABLE
    )
    return Figure(label, units.share(value), units.point_change(moved), units.share(baseline), worse)


def ratio(value: float | None, baseline: float | None) -> float | None:
    """A value over its baseline; None where there is nothing to compare with."""
    return value / baseline if value is not None and baseline else None


def _values(total: pl.DataFrame) -> dict[str, float | None]:
    return dict(total.row(0, named=True))


def _baseline(total: pl.DataFrame) -> dict[str, float | None]:
    """The figures to compare with; nothing where so few spans say little."""
    values = _values(total)
    return values if (values["count"] or 0) >= VOLUME_MIN else dict.fromkeys(values)
