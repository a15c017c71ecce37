"""The page's selection: what a URL means, and that a copied link shows the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.health import INGRESS
from analytics.window import Window
from dashboard.health.selection import (
    CUSTOM_WINDOW_MAX,
    DIMENSIONS,
    VALUE_CHARACTERS_MAX,
    VALUES_MAX,
    WINDOWS_MINUTES,
    Selection,
    custom_window,
    format_params,
    parse,
)

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

values = st.text(min_size=1, max_size=40).filter(str.isprintable)
filters = st.dictionaries(st.sampled_from(list(DIMENSIONS)), st.lists(values, min_size=1, max_size=5, unique=True))
customs = st.builds(
    lambda start, minutes: Window(start, start + timedelta(minutes=minutes)),
    st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)).map(
        lambda t: t.replace(second=0, microsecond=0, tzinfo=UTC)
    ),
    st.integers(1, CUSTOM_WINDOW_MAX // timedelta(minutes=1)),
)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    custom = draw(st.none() | customs)
    chosen = draw(st.sets(st.sampled_from(list(DIMENSIONS)), min_size=1))
    selection = Selection(
        minutes=None if custom else draw(st.sampled_from(list(WINDOWS_MINUTES.values()))),
        custom=custom,
        by=tuple(d for d in DIMENSIONS if d in chosen),
        log_latency=draw(st.booleans()),
    )
    for dimension, found in draw(filters).items():
        selection = selection.filtered(dimension, found)
    return selection


@given(selections())
def test_a_link_shows_the_same_selection(selection: Selection) -> None:
    assert parse(format_params(selection)) == (selection, [])


def test_the_default_selection_needs_no_parameters() -> None:
    assert format_params(Selection()) == {}
    assert parse({}) == (Selection(), [])
    assert Selection().window(NOON) == Window(NOON - timedelta(hours=1), NOON)


@given(st.dictionaries(st.sampled_from([*DIMENSIONS, "window", "from", "to", "by", "latency"]), st.lists(st.text())))
def test_no_url_is_refused(params: dict[str, list[str]]) -> None:
    selection, _ = parse(params)
    assert selection.window(NOON).minutes >= 1
    assert parse(format_params(selection)) == (selection, [])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"window": ["2h"]}, "window = '2h'"),
        ({"from": ["yesterday"], "to": ["2026-03-01T12:00Z"]}, "from = 'yesterday'"),
        ({"from": ["2026-03-01T12:00Z"]}, "to = None"),
        ({"from": ["2026-03-01T12:00Z"], "to": ["2026-03-01T11:00Z"]}, "the second later"),
        ({"from": ["2025-03-01T12:00Z"], "to": ["2026-03-01T11:00Z"]}, "within 31 days"),
        ({"from": ["0001-01-01T00:00Z"], "to": ["0001-01-01T01:00Z"]}, "expected two UTC times"),
        ({"by": ["colour"]}, "by = 'colour'"),
        ({"latency": ["cubic"]}, "latency = 'cubic'"),
        ({"tenant": ["x" * (VALUE_CHARACTERS_MAX + 1)]}, "tenant = "),
        ({"tenant": ["a\nb"]}, "printable"),
        ({"region": [""]}, "region = ''"),
    ],
)
def test_what_makes_no_sense_is_left_out_with_a_note(params: dict[str, list[str]], said: str) -> None:
    selection, notes = parse(params)
    assert selection == Selection()
    assert len(notes) == 1
    assert said in notes[0]


def test_bad_values_do_not_spoil_good_ones() -> None:
    selection, notes = parse({"region": ["eu", "", "us"], "by": ["tenant,nothing"], "window": ["6h"]})
    assert selection.values("region") == ("eu", "us")
    assert selection.by == ("tenant",)
    assert selection.minutes == 360
    assert len(notes) == 2


def test_the_number_of_values_is_bounded() -> None:
    selection, notes = parse({"tenant": [f"t{i}" for i in range(VALUES_MAX + 5)]})
    assert len(selection.values("tenant")) == VALUES_MAX
    assert "at most 50" in notes[0]


def test_a_scope_has_the_filters_and_counts_operations_once() -> None:
    scope = Selection().filtered("region", ["eu"]).filtered("service", ["api"]).scope()
    assert (scope.regions, scope.services, scope.tenants, scope.kinds) == (("eu",), ("api",), (), (INGRESS,))


def test_drilling_filters_to_the_row_and_opens_the_next_dimension() -> None:
    region = Selection().drilled({"region": "eu"})
    assert region.values("region") == ("eu",)
    assert region.by == ("tenant",)
    both = Selection(by=("region", "operation")).drilled({"region": "eu", "operation": "get"})
    assert (both.values("operation"), both.by) == (("get",), ("tenant",))
    last = Selection(by=("operation",))
    for dimension in DIMENSIONS:
        last = last.drilled({dimension: "x"})
    assert last.by == ("service",) or len(last.by) == 1


def test_custom_windows_are_utc_and_cut_to_minutes() -> None:
    window = custom_window(datetime(2026, 3, 1, 11, 0, 30), NOON)
    assert window == Window(NOON - timedelta(hours=1), NOON)
    with pytest.raises(ValueError, match="longer than 31 days"):
        custom_window(NOON - timedelta(days=32), NOON)
