"""The filters: widgets above the figures, the URL, and one Selection that both of them say."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import NoReturn

import streamlit as st

from dashboard import units
from dashboard.health.selection import (
    DIMENSIONS,
    EARLIEST,
    LATEST,
    VALUES_MAX,
    WINDOWS_MINUTES,
    Selection,
    custom_window,
    format_params,
    parse,
)

CUSTOM = "custom"
OPTIONS_MAX = 1000
_LABELS = {"15m": "15 min", "1h": "1 h", "6h": "6 h", "24h": "24 h", CUSTOM: "Custom"}
_SELECTION, _URL, _NOTES, _REQUESTED = "selection", "selection_url", "selection_notes", "selection_requested"
_PLURALS = {"region": "regions", "tenant": "tenants", "service": "services", "operation": "operations"}


def current() -> Selection:
    """The selection of this browser tab; read from the URL when the URL is new, as in a link that was opened."""
    params = {name: st.query_params.get_all(name) for name in st.query_params}
    requested: Selection | None = st.session_state.pop(_REQUESTED, None)
    if requested is not None:
        _choose(requested, [])
    elif st.session_state.get(_URL) != params:
        _choose(*parse(params))
    st.session_state[_URL] = params
    selection = kept()
    for key, value in _widget_values(selection).items():
        st.session_state.setdefault(key, value)
    return selection


def kept() -> Selection:
    """The selection as the last run of the page left it."""
    selection: Selection = st.session_state[_SELECTION]
    return selection


def request(selection: Selection) -> NoReturn:
    """Run the page again with `selection`, wherever its widgets stand."""
    st.session_state[_REQUESTED] = selection
    st.rerun(scope="app")


def publish(selection: Selection) -> None:
    """Keep `selection`, and write it to the URL, so that the link of this page shows the same."""
    if selection != kept():
        st.session_state[_NOTES] = []
    st.session_state[_SELECTION] = selection
    params = format_params(selection)
    if st.session_state[_URL] != params:
        st.session_state[_URL] = params
        st.query_params.from_dict(params)


def notes() -> list[str]:
    """What the URL said and could not be understood; empty once the selection has changed."""
    found: list[str] = st.session_state[_NOTES]
    return found


def show(selection: Selection, options: dict[str, list[str]], now: datetime) -> Selection:
    """Draw the widgets and return what they say."""
    with st.container(horizontal=True, gap="small", vertical_alignment="top", key="filters"):
        window = st.segmented_control(
            "Window", list(_LABELS), format_func=_LABELS.__getitem__, key="window", required=True, width="content"
        )
        chosen = _with_window(selection, window, now)
        for dimension, column in DIMENSIONS.items():
            chosen = chosen.filtered(dimension, _multiselect(dimension, selection, options.get(column, [])))
        by = st.pills(
            "Rows by",
            list(DIMENSIONS),
            selection_mode="multi",
            format_func=str.capitalize,
            key="by",
            on_change=_keep_one_dimension,
            args=(selection.by,),
        )
    return replace(chosen, by=tuple(d for d in DIMENSIONS if d in by) or selection.by)


def show_log_toggle(selection: Selection) -> Selection:
    """Draw the switch of the latency axes."""
    return replace(selection, log_latency=st.toggle("Logarithmic latency", key="log_latency"))


def _with_window(selection: Selection, name: str | None, now: datetime) -> Selection:
    if name != CUSTOM:
        return replace(selection, minutes=WINDOWS_MINUTES[name or "1h"], custom=None)
    window = selection.window(now)
    for key, time in (("from", window.start), ("to", window.end)):
        st.session_state.setdefault(key, time.replace(tzinfo=None))
    start, end = (
        st.datetime_input(
            label,
            key=key,
            format="YYYY-MM-DD",
            step=timedelta(minutes=5),
            width=176,
            min_value=EARLIEST.replace(tzinfo=None),
            max_value=LATEST.replace(tzinfo=None),
        )
        for label, key in (("From, UTC", "from"), ("To, UTC", "to"))
    )
    try:
        return replace(selection, minutes=None, custom=custom_window(start or window.start, end or window.end))
    except ValueError as error:
        st.caption(f":red[{units.escape_markdown(str(error))}]")
        return replace(selection, minutes=None, custom=window)


def _multiselect(dimension: str, selection: Selection, options: list[str]) -> list[str]:
    # A value of the URL stays to be seen and removed where nothing of it is in the window.
    listed = dict.fromkeys([*options[:OPTIONS_MAX], *selection.values(dimension)])
    return st.multiselect(
        dimension.capitalize(),
        list(listed),
        key=dimension,
        placeholder=f"All {_PLURALS[dimension]}",
        max_selections=VALUES_MAX,
        select_all=False,
        accept_new_options=len(options) > OPTIONS_MAX,
        width=190,
    )


def _keep_one_dimension(before: tuple[str, ...]) -> None:
    if not st.session_state["by"]:
        st.session_state["by"] = list(before)


def _choose(selection: Selection, found: list[str]) -> None:
    st.session_state[_SELECTION] = selection
    st.session_state[_NOTES] = found
    for key, value in _widget_values(selection).items():
        st.session_state[key] = value


def _widget_values(selection: Selection) -> dict[str, object]:
    values: dict[str, object] = {dimension: list(selection.values(dimension)) for dimension in DIMENSIONS}
    names = [name for name, minutes in WINDOWS_MINUTES.items() if minutes == selection.minutes]
    values |= {
        "window": names[0] if selection.live else CUSTOM,
        "by": list(selection.by),
        "log_latency": selection.log_latency,
    }
    if selection.custom is not None:
        values["from"] = selection.custom.start.replace(tzinfo=None)
        values["to"] = selection.custom.end.replace(tzinfo=None)
    return values
