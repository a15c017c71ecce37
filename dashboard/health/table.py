"""The health table: one row a group, what changed most first; a click on a row drills into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import streamlit as st

from dashboard import units
from dashboard.health.figures import FIGURES, compared
from dashboard.health.selection import DIMENSIONS
from dashboard.theme import Palette

ROW_HEIGHT_PX = 30
ROWS_VISIBLE_MAX = 14
_CHANGE = "\N{GREEK CAPITAL LETTER DELTA}"


def shown(rows: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """The columns of the table, in order: groups, change, figures each with its change, sparklines, counts.

    `rows`: as `dashboard.health.figures.compared` gives them.
    """
    figures = {f.column: [f.column, f.change] for f in FIGURES}
    columns = [
        *by,
        "change_text",
        *figures["rate_per_second"],
        "sparkline",
        *figures["error_rate"],
        *figures["p50_ns"],
        *figures["p95_ns"],
        "sparkline_p95_ns",
        *figures["p99_ns"],
        *figures["hit_ratio"],
        "count",
        "unknown_weight_share",
    ]
    # A sparkline has no gaps.
    return rows.select(columns).with_columns(pl.col("sparkline_p95_ns").list.eval(pl.element().fill_null(0)))


def show(rows: pl.DataFrame, by: tuple[str, ...], palette: Palette, key: str) -> int | None:
    """Draw the table; the number of the row that was clicked, None before a click."""
    all_columns = compared(rows)
    table = shown(all_columns, by)
    worse = {figure.change: all_columns.get_column(figure.worse).to_list() for figure in FIGURES}
    state = st.dataframe(
        _styled(table, worse, palette),
        key=key,
        hide_index=True,
        placeholder=units.NONE,
        height=(min(table.height, ROWS_VISIBLE_MAX) + 1) * ROW_HEIGHT_PX + 3,
        row_height=ROW_HEIGHT_PX,
        column_config=_column_config(by, palette),
        on_select="rerun",
        selection_mode="single-cell",
    )
    cells = state["selection"]["cells"]
    return int(cells[0][0]) if cells else None


def _styled(table: pl.DataFrame, worse: dict[str, list[bool]], palette: Palette) -> Any:
    formats: dict[str, Callable[[Any], str]] = {
        "count": lambda count: f"{count:,}",
        "unknown_weight_share": _of_missing(units.share),
    }
    styler = table.to_pandas().style
    for figure in FIGURES:
        formats[figure.column] = _of_missing(figure.text)
        formats[figure.change] = _of_missing(figure.change_text)
        styler = styler.apply(_colours(worse[figure.change], palette), subset=[figure.change])
    return styler.format(formats)


def _of_missing(text: Callable[[float | None], str]) -> Callable[[float | None], str]:
    """pandas hands missing numbers over as NaN."""
    return lambda value: text(None if value is None or value != value else value)  # noqa: PLR0124 - NaN is unequal to itself


def _colours(worse: list[bool], palette: Palette) -> Callable[[Any], list[str]]:
    marked = f"color: {palette.worse}; background-color: {palette.worse_background}"
    return lambda _column: [marked if is_worse else f"color: {palette.muted}" for is_worse in worse]


def _group_width(column: str, by: tuple[str, ...]) -> int:
    if column == "operation":
        return 190
    return 140 if len(by) == 1 else 112


def _column_config(by: tuple[str, ...], palette: Palette) -> dict[str, Any]:
    columns = st.column_config
    labels = {column: name.capitalize() for name, column in DIMENSIONS.items()}
    found: dict[str, Any] = {
        column: columns.TextColumn(labels[column], pinned=True, width=_group_width(column, by)) for column in by
    }
    for figure in FIGURES:
        found[figure.column] = columns.NumberColumn(figure.label, help=figure.help, width=70)
        found[figure.change] = columns.NumberColumn(_CHANGE, help=f"{figure.label} against the window before", width=58)
    return found | {
        "change_text": columns.TextColumn(
            "What changed most", width=248, help="The largest change against the window before orders the rows"
        ),
        "sparkline": columns.AreaChartColumn(
            "Trend", width=90, y_min=0, color=palette.muted, help="Rate over the window"
        ),
        "sparkline_p95_ns": columns.LineChartColumn(
            "Trend", width=90, y_min=0, color=palette.muted, help="p95 over the window; 0 where there were no spans"
        ),
        "count": columns.NumberColumn("Spans", width=80, help="Spans in the window, as received"),
        "unknown_weight_share": columns.NumberColumn(
            "No weight", width=70, help="Share of spans whose sampling probability is unknown: each counts as one"
        ),
    }
