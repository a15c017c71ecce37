"""All figures of the page from one snapshot of the lake, kept while nothing was rolled up since."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl
import streamlit as st

from analytics.health import Freshness, Scope, choices, freshness, health_rows, health_series
from analytics.jobs import lag
from analytics.rollup.job import JOB
from analytics.window import Window
from collector.lake.lake import Lake
from dashboard.health.selection import Selection

ROWS_MAX = 200
SERIES_MAX = 8
SERIES_POINTS = 60
SPARKLINE_POINTS = 30
_CACHE_SECONDS = 600
_CACHE_ENTRIES = 64


@dataclass(frozen=True)
class Health:
    """The figures of one selection and window.

    `total`: `analytics.health.health_rows` of all together, one row, none without spans in window and baseline.
    `rows`: `health_rows`, the first ROWS_MAX of `groups`.
    `series`: `health_series` of the column `split`, for at most SERIES_MAX of its `split_values` values.
    """

    total: pl.DataFrame
    rows: pl.DataFrame
    groups: int
    series: pl.DataFrame
    split: str
    split_values: int


@dataclass(frozen=True)
class Lakeside:
    """What every refresh asks first: how fresh the rollups are, and the position that keys all else."""

    freshness: Freshness
    position: int | None


def look(lake: Lake) -> Lakeside:
    """Ask the lake how fresh it is. Raises what the lake raises."""
    with lake.read() as reader:
        position = reader.position(JOB)
        if position is not None:
            return Lakeside(freshness(reader), position)
        # Before the first run of the jobs there may be no rollups to ask.
        waiting = [found.seconds_behind for found in lag(reader) if found.spans_behind]
        return Lakeside(Freshness(None, 0, max(waiting, default=None)), None)


def health(lake: Lake, position: int | None, window: Window, selection: Selection) -> Health:
    """The page's figures; computed once for each position of the rollups, whatever the number of viewers."""
    return _health(lake, _identity(lake), position, window, selection.scope(), selection.columns)


def options(lake: Lake, position: int | None, window: Window) -> dict[str, list[str]]:
    """The values to filter by, by column, most spans first."""
    return _options(lake, _identity(lake), position, window)


@st.cache_data(ttl=_CACHE_SECONDS, max_entries=_CACHE_ENTRIES, show_spinner=False)
def _health(
    _lake: Lake,
    identity: tuple[str, int],
    position: int | None,
    window: Window,
    scope: Scope,
    by: tuple[str, ...],
) -> Health:
    with _lake.read() as reader:
        rows = health_rows(reader, window, scope, by, SPARKLINE_POINTS)
        values = rows.get_column(by[0]).unique(maintain_order=True).to_list()
        # An empty filter takes all: with no groups the scope stays, which finds nothing.
        narrowed = _narrowed(scope, by[0], values[:SERIES_MAX]) if values else scope
        return Health(
            total=health_rows(reader, window, scope, (), 1),
            rows=rows.head(ROWS_MAX),
            groups=rows.height,
            series=health_series(reader, window, narrowed, by[0], SERIES_POINTS),
            split=by[0],
            split_values=len(values),
        )


@st.cache_data(ttl=_CACHE_SECONDS, max_entries=_CACHE_ENTRIES, show_spinner=False)
def _options(_lake: Lake, identity: tuple[str, int], position: int | None, window: Window) -> dict[str, list[str]]:
    with _lake.read() as reader:
        return choices(reader, window)


def _narrowed(scope: Scope, column: str, values: list[str]) -> Scope:
    chosen = tuple(values)
    match column:
        case "region":
            return replace(scope, regions=chosen)
        case "tenant":
            return replace(scope, tenants=chosen)
        case "service_name":
            return replace(scope, services=chosen)
        case "operation":
            return replace(scope, operations=chosen)
    raise ValueError(f"no scope narrows to {column!r}: expected region, tenant, service_name or operation")


def _identity(lake: Lake) -> tuple[str, int]:
    """Tells the lake from others, also from one that is made later in the same folder."""
    return str(lake.location.root), lake.location.catalog.stat().st_ino
