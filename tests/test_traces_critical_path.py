"""Critical paths: hand-worked traces, a plain recursive reference, and traces that are broken or huge."""

import random
from collections import defaultdict
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.traces import critical_path
from analytics.traces.forest import Forest

MS = 1_000_000
LINK = pl.Struct({"trace_id": pl.String, "span_id": pl.String})
TYPES = {"start_time": pl.Int64(), "duration_ns": pl.Int64(), "links": pl.List(LINK)}


def span(span_id: str, parent: str | None, start_ms: int, end_ms: int, **given: object) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "trace_id": "t", "kind": "server", "status": "unset", "service_name": span_id, "region": "eu",
        "tenant": "acme", "component": "rpc", "operation": "work", "destination": None, "host": None, "links": [],
    }  # fmt: skip
    times = {"start_time": start_ms * MS, "duration_ns": (end_ms - start_ms) * MS}
    return {"span_id": span_id, "parent_span_id": parent, **defaults, **times, **given}


def frame(*spans: dict[str, Any]) -> pl.DataFrame:
    schema = pl.Schema({**dict.fromkeys(spans[0], pl.String()), **TYPES})
    return pl.DataFrame(list(spans), schema=schema).with_columns(pl.col("start_time").cast(pl.Datetime("ns")))


def measured(*spans: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Exclusive and self time in ms by span id."""
    forest = Forest.of(frame(*spans))
    found = forest.spans.hstack(critical_path.path(forest))
    return {i: (x // MS, s // MS) for i, x, s in found.select("span_id", "exclusive_ns", "self_ns").iter_rows()}


def test_a_chain_of_calls() -> None:
    assert measured(span("a", None, 0, 100), span("b", "a", 10, 60), span("c", "b", 20, 50)) == {
        "a": (50, 50), "b": (20, 20), "c": (30, 30),
    }  # fmt: skip


def test_of_overlapping_children_the_last_to_finish_counts_and_then_what_ended_before_it_started() -> None:
    found = measured(
        span("a", None, 0, 100), span("early", "a", 5, 30), span("covered", "a", 20, 70), span("last", "a", 40, 90)
    )  # fmt: skip
    assert found == {"a": (10 + 10 + 5, 5 + 10), "early": (25, 25), "covered": (0, 50), "last": (50, 50)}


def test_a_child_that_overflows_is_cut_at_its_parents_end_and_so_are_its_own_children() -> None:
    found = measured(span("a", None, 0, 100), span("b", "a", 50, 130), span("c", "b", 60, 120))
    assert found == {"a": (50, 50), "b": (10, 20), "c": (40, 60)}


def test_a_consumer_begins_a_path_of_its_own() -> None:
    found = measured(
        span("a", None, 0, 50), span("send", "a", 10, 20, kind="producer"),
        span("receive", "send", 15, 80, kind="consumer"), span("query", "receive", 20, 60),
    )  # fmt: skip
    assert found == {"a": (40, 40), "send": (10, 10), "receive": (25, 25), "query": (40, 40)}


def test_a_span_whose_parent_is_missing_begins_a_path() -> None:
    assert measured(span("a", None, 0, 10), span("b", "lost", 2, 8), span("c", "b", 3, 5)) == {
        "a": (10, 10), "b": (4, 4), "c": (2, 2),
    }  # fmt: skip


def test_a_child_outside_its_parent_takes_no_time_from_it() -> None:
    found = measured(
        span("a", None, 0, 10), span("late", "a", 20, 30), span("skewed", "a", -9, 3), span("x", "skewed", -8, 0)
    )
    assert found == {"a": (7, 7), "late": (0, 10), "skewed": (3, 4), "x": (0, 8)}


def test_several_roots_of_one_trace_and_of_several() -> None:
    found = measured(
        span("a", None, 0, 10), span("b", None, 2, 9), span("c", "b", 3, 4), span("d", "c", 0, 9, trace_id="u")
    )
    assert found == {"a": (10, 10), "b": (6, 6), "c": (1, 1), "d": (9, 9)}


def test_cycles_and_selves_are_cut_and_what_hangs_on_them_is_not() -> None:
    found = measured(
        span("a", "c", 0, 10), span("b", "a", 1, 9), span("c", "b", 2, 8), span("d", "c", 3, 4),
        span("self", "self", 0, 5),
    )  # fmt: skip
    assert found == {"a": (10, 10), "b": (8, 8), "c": (5, 5), "self": (5, 5), "d": (1, 1)}


def test_of_spans_of_one_id_the_first_has_the_children() -> None:
    forest = Forest.of(frame(span("a", None, 5, 9), span("a", None, 0, 10), span("b", "a", 1, 4)))
    found = forest.spans.hstack(critical_path.path(forest))
    assert found.select("duration_ns", "exclusive_ns").rows() == [(10 * MS, 7 * MS), (3 * MS, 3 * MS), (4 * MS, 4 * MS)]


def test_durations_of_centuries_do_not_overflow() -> None:
    centuries = 2**63 - 1
    found = critical_path.rows(
        Forest.of(frame(*(span(f"{i}", None, 0, 0, duration_ns=centuries, service_name="s") for i in range(3))))
    )
    assert int(found["exclusive_ns"][0]) == 3 * centuries


def test_no_spans_no_rows() -> None:
    assert critical_path.rows(Forest.of(frame(span("a", None, 0, 1)).clear())).height == 0


@pytest.mark.parametrize("depth", [1, 10_000])
def test_ten_thousand_spans_wide_or_deep(depth: int) -> None:
    parents = [max(0, i - 1) if depth > 1 else 0 for i in range(1, 10_000)]
    spans = [span("0", None, 0, 20_000)]
    spans += [span(f"{i}", f"{p}", i, 20_000 - i if depth > 1 else i + 1) for i, p in enumerate(parents, 1)]
    found = measured(*spans)
    assert sum(exclusive for exclusive, _ in found.values()) == 20_000
    assert found["5000"] == ((2, 2) if depth > 1 else (1, 1))
    assert found["0"][0] == (2 if depth > 1 else 20_000 - 9_999)


def reference(spans: list[dict[str, Any]]) -> dict[str, int]:
    """Exclusive times by recursion over one span at a time, as the papers tell it."""
    children: dict[object, list[dict[str, Any]]] = defaultdict(list)
    ids = {s["span_id"] for s in spans}
    for s in spans:
        is_async = s["kind"] == "consumer" or s["parent_span_id"] not in ids
        children[None if is_async else s["parent_span_id"]].append(s)
    found = {str(s["span_id"]): 0 for s in spans}

    def walk(s: dict[str, Any], low: int, high: int) -> None:
        clipped = []
        for child in children[s["span_id"]]:
            start = child["start_time"]
            start, end = max(low, start), min(high, start + child["duration_ns"])
            if end > start:
                clipped.append((end, -start, child))
        clipped.sort(key=lambda item: (*item[:2], item[2]["start_time"], item[2]["span_id"]), reverse=True)
        now = high
        for end, negative_start, child in clipped:
            if end <= now:
                found[str(s["span_id"])] += now - end
                walk(child, -negative_start, end)
                now = -negative_start
        found[str(s["span_id"])] += now - low

    for root in children[None]:
        walk(root, root["start_time"], root["start_time"] + root["duration_ns"])
    return found


@st.composite
def traces(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 14))
    times = draw(st.lists(st.integers(0, 2000), min_size=2 * count, max_size=2 * count, unique=True))
    spans = []
    for i in range(count):
        parent = draw(st.one_of(st.none(), st.integers(0, i - 1) if i else st.none(), st.just(99)))
        start, end = sorted(times[2 * i : 2 * i + 2])
        kind = draw(st.sampled_from(["server", "client", "consumer"]))
        spans.append(span(f"{i}", None if parent is None else f"{parent}", start, end, kind=kind))
    return spans


@given(traces(), st.randoms())
@settings(max_examples=150, deadline=None)
def test_it_is_the_recursive_definition_in_any_order_of_spans(spans: list[dict[str, Any]], rng: random.Random) -> None:
    shuffled = list(spans)
    rng.shuffle(shuffled)
    for s in spans:
        s["start_time"], s["duration_ns"] = s["start_time"] // MS, s["duration_ns"] // MS
    forest = Forest.of(frame(*shuffled))
    found = forest.spans.hstack(critical_path.path(forest))
    assert dict(found.select("span_id", "exclusive_ns").iter_rows()) == reference(spans)


def test_rows_sum_by_place_and_root() -> None:
    spans = [
        span("gateway", None, 0, 100),
        span("cache", "gateway", 10, 40),
        span("c2", "gateway", 50, 60, service_name="cache", status="error"),
    ]
    found = critical_path.rows(Forest.of(frame(*spans))).sort("service_name")
    assert found.select("root_service_name", "service_name", "spans", "path_spans", "errors").rows() == [
        ("gateway", "cache", 2, 2, 1), ("gateway", "gateway", 1, 1, 0),
    ]  # fmt: skip
    assert [int(x) // MS for x in found["exclusive_ns"]] == [40, 60]
    saved = critical_path.what_if(found, ("service_name",), 0.5)
    assert saved.rows() == [("gateway", 60e6, 30e6, 0.3), ("cache", 40e6, 20e6, 0.2)]
    with pytest.raises(ValueError, match="expected a share"):
        critical_path.what_if(found, ("service_name",), 50)
