"""The page "System health"."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl
import streamlit as st

from analytics.health import Freshness
from analytics.window import Window
from collector.config import Config
from dashboard import source, states, theme, units
from dashboard.health import charts, data, filters, headline, table
from dashboard.health.data import Health
from dashboard.health.selection import DIMENSIONS, Selection

RETRY_SECONDS = 5.0
WAITING_REFRESH_SECONDS = 2.0
_DRILLS = "drills"


def render() -> None:
    """Draw the page and keep it fresh while it is open; after an error, try again."""
    st.title("System health", anchor=False)
    if not states.guarded(_draw)():
        st.fragment(_retry, run_every=RETRY_SECONDS)(time.monotonic())


def _draw() -> None:
    settings = source.config()
    selection = filters.current()
    lake = source.lake(settings)
    seen = None if lake is None else data.look(lake)
    if lake is None or seen is None or seen.freshness.latest_span is None:
        st.fragment(states.guarded(_wait), run_every=WAITING_REFRESH_SECONDS)(settings)
        return
    now = datetime.now(UTC)
    options = data.options(lake, seen.position, selection.window(now))
    selection = filters.show(selection, options, now)
    filters.publish(selection)
    _show_notes(selection, options)
    seconds = settings.dashboard.refresh_seconds if selection.live else None
    st.fragment(states.guarded(_figures), run_every=seconds)(settings)


def _retry(failed_at_seconds: float) -> None:
    # The first run is the one that failed; those of the timer come later.
    if time.monotonic() - failed_at_seconds >= RETRY_SECONDS / 2:
        st.rerun(scope="app")


def _wait(settings: Config) -> None:
    lake = source.lake(settings)
    if lake is None:
        states.waiting("Waiting for the collector: there is no lake yet", settings)
        return
    fresh = data.look(lake).freshness
    if fresh.latest_span is not None:
        st.rerun(scope="app")
    if fresh.rollup_lag_seconds:
        st.subheader("Spans have arrived and wait for their first rollup", anchor=False)
        st.markdown(
            f"The oldest waits for {units.span(fresh.rollup_lag_seconds)}. "
            "The jobs do that within seconds: `spanlake up` runs them, else start `spanlake analyze`."
        )
        return
    states.waiting("Waiting for spans", settings)


def _show_notes(selection: Selection, options: dict[str, list[str]]) -> None:
    found = [f"Ignored in the link: {note}." for note in filters.notes()]
    for dimension, column in DIMENSIONS.items():
        absent = [v for v in selection.values(dimension) if v not in options.get(column, [])]
        found += [f"No spans of {dimension} {value!r} in this window or the one before." for value in absent[:3]]
    if found:
        st.caption("  \n".join(units.escape_markdown(note) for note in found))


def _figures(settings: Config) -> None:
    lake = source.lake(settings)
    if lake is None:
        st.rerun(scope="app")
    now = datetime.now(UTC)
    selection = filters.kept()
    seen = data.look(lake)
    window = selection.window(now)
    st.caption(f"{_window_text(window, now)}. {headline.freshness_sentence(seen.freshness, now)}.")
    health = data.health(lake, seen.position, window, selection)
    if not _spans(health.total):
        _nothing(selection, seen.freshness, window, now)
    if health.rows.is_empty():
        return
    headline.show(health.total, window, now)
    _show_table(health, selection)
    _show_charts(health, selection)


def _show_table(health: Health, selection: Selection) -> None:
    st.subheader("What changed most", anchor=False)
    drills = st.session_state.setdefault(_DRILLS, 0)
    clicked = table.show(health.rows, selection.columns, _palette(), key=f"rows-{drills}")
    if clicked is not None and clicked < health.rows.height:
        st.session_state[_DRILLS] = drills + 1
        row = health.rows.row(clicked, named=True)
        filters.request(selection.drilled({name: row[DIMENSIONS[name]] for name in selection.by}))
    shown = f"The {data.ROWS_MAX} of {health.groups:,} rows that changed most; filter to see others. "
    st.caption(
        f"{shown if health.groups > data.ROWS_MAX else ''}Every operation counts once, where it enters a service. "
        "Δ compares with the window before. Click a row to look into it."
    )


def _show_charts(health: Health, selection: Selection) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.subheader(f"Over time, by {charts.split_label(health)}", anchor=False, width="content")
        note = charts.note(health)
        changed = filters.show_log_toggle(selection)
    filters.publish(changed)
    if note:
        st.caption(f"Showing {note}.")
    charts.show(charts.Lines(health.series, health.split, _palette()), changed.log_latency)


def _nothing(selection: Selection, fresh: Freshness, window: Window, now: datetime) -> None:
    newest = fresh.latest_span
    if selection.filters:
        st.info("No spans match these filters in this window.")
        if st.button("Clear the filters", key="clear"):
            filters.request(replace(selection, filters=()))
    elif newest is not None and newest > window.end and selection.live:
        st.info("Spans are arriving. Their first whole minute shows here as soon as it is over.")
    if newest is not None and newest <= window.start:
        st.info(f"Nothing in this window. The newest span is of {units.clock(newest, now)}, {units.age(newest, now)}.")
        if st.button("Jump to the newest spans", key="jump"):
            length = window.end - window.start
            filters.request(replace(selection, minutes=None, custom=Window(newest - length, newest)))
    elif newest is not None and newest <= window.end and not selection.filters:
        st.info("No spans in this window.")


def _window_text(window: Window, now: datetime) -> str:
    return f"{units.clock(window.start, now)} to {units.clock(window.end, now)}"


def _spans(total: pl.DataFrame) -> int:
    return int(total.get_column("count").sum())


def _palette() -> theme.Palette:
    return theme.palette(st.context.theme.type)
