"""Folding beyond bounds: no sum is lost, no bound is passed, and what is kept is exact, in any order of arrival."""

from collections import defaultdict
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.rollup.fold import OVERFLOW, bounded, fold, levels, nothing_kept, remember, settled
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, DimensionSet
from collector.config import AnalyzeConfig

HOUR_NS = 3600 * 10**9
CONFIG = AnalyzeConfig(
    regions_max=2,
    tenants_max=2,
    services_per_tenant_max=2,
    operations_per_service_max=3,
    combinations_per_service_max=4,
)
WIDE = DimensionSet("wide", ("region", "tenant", "service_name", "kind", "operation", "host"))
NO_OWNER = DimensionSet("no_owner", ("component", "operation", "error_type"))
names = st.sampled_from([f"v{i}" for i in range(6)])
SPANS = st.lists(
    st.fixed_dictionaries(
        {
            "region": st.sampled_from(["eu", "us", "ap", None, OVERFLOW]),
            "tenant": names,
            "service_name": names,
            "component": st.just("cache"),
            "operation": names | st.just(OVERFLOW),
            "kind": st.sampled_from(["server", "client"]),
            "host": names | st.none(),
            "error_type": names | st.none(),
            "start_time": st.integers(0, 2 * HOUR_NS),
            "duration_ns": st.integers(0, 1000),
            "status": st.sampled_from(["ok", "error"]),
            "cache_hit": st.booleans(),
            "payload_bytes": st.integers(0, 1000),
            "sample_weight": st.none() | st.just(2.0),
        }
    ),
    max_size=40,
)
TEXTS = ("region", "tenant", "service_name", "component", "operation", "kind", "host", "error_type", "status")
SCHEMA = pl.Schema(
    {
        **dict.fromkeys(TEXTS, pl.String()),
        "start_time": pl.Datetime("ns"),
        **dict.fromkeys(("duration_ns", "payload_bytes"), pl.Int64()),
        "cache_hit": pl.Boolean(),
        "sample_weight": pl.Float64(),
    }
)


def rolled_up(spans: list[dict[str, Any]], runs: list[int], dimension_set: DimensionSet) -> pl.DataFrame:
    """Rows by minute of spans that come in so many runs, each run knowing what is stored before it."""
    parts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for span, run in zip(spans, runs, strict=True):
        parts[run].append(span)
    stored = dimension_set.schema.to_frame()
    for run in sorted(parts):
        rows = partials(pl.DataFrame(parts[run], schema=SCHEMA), dimension_set.dimensions)
        hours = stored.select(pl.col("window_start").dt.truncate("1h").alias("hour"), *bounded(dimension_set))
        stored = pl.concat([stored, fold(rows, dimension_set, CONFIG, hours.unique())])
    return stored


def totals(rows: pl.DataFrame, by: list[str]) -> list[dict[str, Any]]:
    """All sums by some of the columns, as a comparable list."""
    maps = [pl.col(name).map.entries().list.sort() for name in ("latency_buckets", "second_counts")]
    return merged(rows, "1m", by).drop("folded_series").with_columns(*maps).to_dicts()


@pytest.mark.parametrize("dimension_set", [BASE, WIDE, NO_OWNER], ids=lambda s: s.name)
@settings(max_examples=40, deadline=None)
@given(spans=SPANS, data=st.data())
def test_folding_keeps_sums_bounds_and_exactness(
    dimension_set: DimensionSet, spans: list[dict[str, Any]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(spans))
    runs = data.draw(st.lists(st.integers(0, 3), min_size=len(spans), max_size=len(spans)))
    stored = rolled_up(list(order), runs, dimension_set)
    everything = partials(pl.DataFrame(spans, schema=SCHEMA), dimension_set.dimensions)
    never_folded = [name for name in dimension_set.dimensions if name not in bounded(dimension_set)]
    plain = [name for name in dimension_set.schema if name not in dimension_set.dimensions]
    assert totals(stored.select(*plain, *never_folded), never_folded) == totals(
        everything.select(*plain, *never_folded), never_folded
    )
    hourly = stored.with_columns(pl.col("window_start").dt.truncate("1h"))
    for level in levels(dimension_set, CONFIG):
        different = hourly.filter(pl.any_horizontal(pl.col(name) != OVERFLOW for name in level.columns)).group_by(
            "window_start", *level.within
        )
        counts = different.agg(pl.struct(level.columns).n_unique().alias("values"))["values"]
        assert counts.is_empty() or counts.max() <= level.values_max, level
    named = pl.all_horizontal(pl.col(name) != OVERFLOW for name in bounded(dimension_set))
    kept = merged(stored, "1m", dimension_set.dimensions).filter(named)
    exact = merged(everything, "1m", dimension_set.dimensions).join(
        kept, on=["window_start", *dimension_set.dimensions], how="semi"
    )
    dimensions = list(dimension_set.dimensions)
    assert totals(kept, dimensions) == totals(exact, dimensions)
    assert stored.filter(named)["folded_series"].sum() == 0


def spans_of(operations: dict[str, int], minute: int = 0) -> pl.DataFrame:
    span = {
        "region": "eu", "tenant": "a", "service_name": "s", "component": "cache", "kind": "server", "status": "ok",
        "start_time": minute * 60 * 10**9, "duration_ns": 1, "payload_bytes": 1, "cache_hit": True,
    }  # fmt: skip
    rows = [span | {"operation": name} for name, count in operations.items() for _ in range(count)]
    return partials(pl.DataFrame(rows, schema=SCHEMA))


def test_most_spans_come_first_then_the_name_and_what_is_kept_stays_for_the_hour() -> None:
    kept = nothing_kept(BASE, None)
    first = fold(spans_of({"rare": 1, "b": 2, "a": 2, "often": 9, "z": 2}), BASE, CONFIG, kept.values)
    counts = dict(first.select("operation", "count").iter_rows())
    assert counts == {"often": 9, "a": 2, "b": 2, OVERFLOW: 3}
    assert first.filter(operation=OVERFLOW)["folded_series"].to_list() == [2]
    kept.hours.add(first["window_start"][0])
    kept = settled(remember(kept, first, BASE), 1)
    assert kept.values.height == 4
    later = fold(spans_of({"a": 1, "rare": 50, "new": 60}, minute=59), BASE, CONFIG, kept.values)
    assert dict(later.select("operation", "count").iter_rows()) == {"a": 1, OVERFLOW: 110}
    next_hour = fold(spans_of({"rare": 50, "new": 60}, minute=60), BASE, CONFIG, kept.values)
    assert set(next_hour["operation"]) == {"rare", "new"}


def test_within_the_bounds_nothing_changes() -> None:
    rows = spans_of({f"operation {i}": 1 for i in range(3)})
    assert fold(rows, BASE, CONFIG, nothing_kept(BASE, None).values) is rows
