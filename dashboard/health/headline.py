"""The top of the page: how fresh the figures are, and the whole selection against the window before."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl
import streamlit as st

from analytics.health import Freshness
from analytics.window import Window
from dashboard import units
from dashboard.health.figures import FIGURES, compared

LAG_SECONDS_NOTABLE = 30.0


@dataclass(frozen=True)
class Metric:
    """One headline metric, ready to show; `worse` where it moved notably in the wrong direction."""

    title: str
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


def metrics(total: pl.DataFrame) -> list[Metric]:
    """Rate, errors, latency and hit ratio of `total`, one row of `analytics.health.health_rows`."""
    row = compared(total).row(0, named=True)
    return [
        Metric(
            figure.title,
            figure.text(row[figure.column]),
            figure.change_text(row[figure.change]),
            figure.text(row[figure.baseline]),
            row[figure.worse],
        )
        for figure in FIGURES
    ]


def show(total: pl.DataFrame, window: Window, now: datetime) -> None:
    """Draw the metrics in one line."""
    before = window.previous()
    against = f"Compared with the window before: {units.clock(before.start, now)} to {units.clock(before.end, now)}"
    with st.container(horizontal=True, gap="small", key="headline"):
        for metric in metrics(total):
            color: Literal["red", "gray"] = "red" if metric.worse else "gray"
            st.metric(
                metric.title,
                metric.value,
                metric.change or None,
                delta_color=color,
                delta_arrow="off",
                delta_description=f"was {metric.baseline}" if metric.change else None,
                help=against,
                border=True,
            )
