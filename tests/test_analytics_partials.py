"""Partial rows: whatever way spans are split into runs, the sums equal a recomputation from all of them."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from analytics.buckets import bucket_index
from analytics.rollup import partials as module
from analytics.rollup.partials import (
    DIMENSIONS,
    PAYLOAD_BYTES_MAX,
    ROLLUP_SCHEMA,
    SUMMED,
    merged,
    partials,
    rollup_schema,
)

MINUTE_NS = 60 * 10**9
SPAN_SCHEMA = pl.Schema(
    {
        **dict.fromkeys((*DIMENSIONS, "host", "error_type"), pl.String()),
        "http_status": pl.Int32(),
        "start_time": pl.Datetime("ns"),
        "duration_ns": pl.Int64(),
        "status": pl.String(),
        "cache_hit": pl.Boolean(),
        "payload_bytes": pl.Int64(),
        "sample_weight": pl.Float64(),
    }
)
NULL_LABELS = dict.fromkeys(SPAN_SCHEMA, "unknown") | {"error_type": "none", "http_status": "none"}
SPANS = st.lists(
    st.fixed_dictionaries(
        {
            "region": st.sampled_from(["eu", "us", None]),
            "tenant": st.sampled_from(["a", "b", ""]),
            "service_name": st.sampled_from(["gateway", "cache"]),
            "component": st.just("cache"),
            "operation": st.sampled_from(["get", "set"]),
            "host": st.sampled_from(["h1", "h2", None]),
            "error_type": st.sampled_from(["timeout", None]),
            "http_status": st.none() | st.sampled_from([200, -1, 2**31 - 1, -(2**31)]),
            "kind": st.sampled_from(["server", "client"]),
            "start_time": st.integers(0, 3 * 60 * MINUTE_NS) | st.integers(0, 2**63 - 1),
            "duration_ns": st.integers(0, 10**9) | st.integers(0, 2**63 - 1),
            "status": st.sampled_from(["unset", "ok", "error"]),
            "cache_hit": st.sampled_from([True, False, None]),
            "payload_bytes": st.none() | st.integers(0, 10**6) | st.integers(-(2**63), 2**63 - 1),
            "sample_weight": st.none() | st.sampled_from([1.0, 2.0, 1024.0]),
        }
    ),
    max_size=25,
)


def frame(spans: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(spans, schema=SPAN_SCHEMA)


def recomputed(
    spans: list[dict[str, Any]], window_ns: int, dimensions: Sequence[str] = DIMENSIONS
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rollup in plain Python."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for span in spans:
        window_us = span["start_time"] // window_ns * window_ns // 1000
        labels = (NULL_LABELS[name] if span[name] is None else str(span[name]) for name in dimensions)
        groups[(window_us, *labels)].append(span)
    return {key: _sums(members, window_ns) for key, members in groups.items()}


def _sums(spans: list[dict[str, Any]], window_ns: int) -> dict[str, Any]:
    durations = [span["duration_ns"] for span in spans]
    indexes = pl.DataFrame({"d": durations}).select(bucket_index(pl.col("d")))["d"].to_list()
    return {
        "count": len(spans),
        "errors": sum(span["status"] == "error" for span in spans),
        "hits": sum(span["cache_hit"] is True for span in spans),
        "misses": sum(span["cache_hit"] is False for span in spans),
        "bytes": sum(min(max(span["payload_bytes"] or 0, 0), PAYLOAD_BYTES_MAX) for span in spans),
        "weighted_count": sum(span["sample_weight"] or 1.0 for span in spans),
        "weighted_errors": sum(span["sample_weight"] or 1.0 for span in spans if span["status"] == "error"),
        "weight_squares": sum((span["sample_weight"] or 1.0) ** 2 for span in spans),
        "unknown_weight_count": sum(span["sample_weight"] is None for span in spans),
        "folded_series": 0,
        "duration_sum_ns": sum(durations),
        "duration_max_ns": max(durations),
        "latency_buckets": dict(Counter(indexes)),
        "second_counts": dict(Counter(span["start_time"] % window_ns // 10**9 for span in spans)),
    }


def summed(rows: pl.DataFrame, dimensions: Sequence[str] = DIMENSIONS) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Partial rows added up in plain Python."""
    totals: dict[tuple[Any, ...], dict[str, Any]] = {}
    physical = rows.with_columns(
        pl.col("window_start").cast(pl.Int64),
        pl.col("duration_sum_ns").cast(pl.Int128),
        *(pl.col(name).map.entries() for name in module.MAPS),
    )
    for row in physical.iter_rows(named=True):
        total = totals.setdefault(tuple(row[name] for name in ("window_start", *dimensions)), {})
        for name in SUMMED:
            total[name] = total.get(name, 0) + row[name]
        total["duration_max_ns"] = max(total.get("duration_max_ns", 0), row["duration_max_ns"])
        for name in module.MAPS:
            counts = Counter(total.get(name, {}))
            counts.update({entry["key"]: entry["value"] for entry in row[name]})
            total[name] = dict(counts)
    return totals


@given(SPANS, st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_split_sums_to_the_recomputation(spans: list[dict[str, Any]], runs: int, random: Any) -> None:
    parts: list[list[dict[str, Any]]] = [[] for _ in range(runs + 1)]
    for span in spans:
        random.choice(parts).append(span)
    minutes = pl.concat([partials(frame(part)) for part in parts])
    assert minutes.schema == ROLLUP_SCHEMA
    expected = recomputed(spans, MINUTE_NS)
    assert summed(minutes) == expected
    once = merged(minutes, "1m")
    assert once.height == len(expected)
    assert summed(once) == expected
    assert summed(merged(minutes, "1h")) == recomputed(spans, 60 * MINUTE_NS)


@given(
    SPANS,
    st.permutations(["region", "tenant", "host", "operation", "error_type", "http_status"]),
    st.integers(0, 6),
)
def test_any_dimensions_sum_to_the_recomputation(
    spans: list[dict[str, Any]], order: list[str], number: int
) -> None:
    dimensions = order[:number]
    minutes = pl.concat([partials(frame(spans[::2]), dimensions), partials(frame(spans[1::2]), dimensions)])
    assert minutes.schema == rollup_schema(dimensions)
    assert summed(minutes, dimensions) == recomputed(spans, MINUTE_NS, dimensions)
    hours = merged(minutes, "1h", dimensions)
    assert summed(hours, dimensions) == recomputed(spans, 60 * MINUTE_NS, dimensions)
    assert hours.height == len(recomputed(spans, 60 * MINUTE_NS, dimensions))


@given(SPANS)
def test_labels_may_be_categorical(spans: list[dict[str, Any]]) -> None:
    labelled = frame(spans).with_columns(pl.col(*DIMENSIONS, "status").cast(pl.Categorical))
    assert summed(partials(labelled)) == recomputed(spans, MINUTE_NS)


@given(SPANS)
def test_many_different_labels_take_the_dense_path(spans: list[dict[str, Any]]) -> None:
    before = module._GROUPS_MAX
    module._GROUPS_MAX = 40
    try:
        assert summed(partials(frame(spans))) == recomputed(spans, MINUTE_NS)
        dimensions = ["http_status", "region", "host"]
        assert summed(partials(frame(spans), dimensions), dimensions) == recomputed(spans, MINUTE_NS, dimensions)
    finally:
        module._GROUPS_MAX = before


def test_durations_that_overflow_64_bits_are_summed() -> None:
    span = {
        "region": "eu",
        "tenant": "a",
        "service_name": "s",
        "component": "cache",
        "operation": "get",
        "kind": "server",
        "start_time": 0,
        "duration_ns": 2**63 - 1,
        "status": "ok",
    }
    row = partials(frame([span] * 5)).row(0, named=True)
    assert int(row["duration_sum_ns"]) == 5 * (2**63 - 1)
    again = merged(pl.concat([partials(frame([span] * 5))] * 3), "1m").row(0, named=True)
    assert int(again["duration_sum_ns"]) == 15 * (2**63 - 1)
