"""Latency buckets: the mapping, its error bound, and quantiles of merged buckets."""

from collections import Counter
from collections.abc import Iterator

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analytics.buckets import (
    BUCKETS,
    INDEX_MAX,
    RELATIVE_ERROR,
    ZERO_INDEX,
    bucket_index,
    bucket_value_ns,
    quantile,
    quantile_name,
    quantiles,
)
from analytics.definitions import ANALYTICS_DEFINITIONS

DURATIONS = st.one_of(st.integers(0, 200), st.integers(0, 10**10), st.integers(0, 2**63 - 1))
SLACK = 1 + 1e-9
EXACT_BELOW_NS = 2 * 3600 * 10**9


def index_of(*durations_ns: int) -> list[int]:
    frame = pl.DataFrame({"d": durations_ns}, schema={"d": pl.Int64})
    return frame.select(bucket_index(pl.col("d")))["d"].to_list()


def upper_bounds() -> list[int]:
    """floor((101/99)^i) of every bucket, in exact arithmetic."""
    bounds, numerator, denominator = [], 1, 1
    while numerator // denominator < 2**63 - 1:
        bounds.append(numerator // denominator)
        numerator, denominator = numerator * 101, denominator * 99
    return bounds


def maps(*rows: dict[int, int]) -> pl.Series:
    entries = [[{"key": key, "value": value} for key, value in row.items()] for row in rows]
    kind = pl.List(pl.Struct({"key": pl.Int16, "value": pl.UInt64}))
    return pl.Series("latency_buckets", entries, dtype=kind).cast(BUCKETS)


def test_every_bound_falls_into_its_bucket_and_the_next_number_into_the_next() -> None:
    bounds = [bound for bound in upper_bounds() if bound < EXACT_BELOW_NS]
    assert len(bounds) > 1400
    first_of: dict[int, int] = {}
    for index, bound in enumerate(bounds):
        first_of.setdefault(bound, index)
    assert index_of(*first_of) == list(first_of.values())
    after = index_of(*(bound + 1 for bound in first_of))
    expected = [
        next(i for i in range(index, len(bounds) + 60) if 101**i >= (bound + 1) * 99**i)
        for bound, index in first_of.items()
    ]
    assert after == expected


def test_zero_has_a_bucket_of_its_own_and_the_largest_duration_the_last() -> None:
    assert index_of(0, 1, 2**63 - 1) == [ZERO_INDEX, 0, INDEX_MAX]
    assert bucket_value_ns(ZERO_INDEX) == 0
    assert bucket_value_ns(0) == 0.99


@given(DURATIONS)
def test_the_value_of_a_bucket_is_within_the_relative_error(duration_ns: int) -> None:
    (index,) = index_of(duration_ns)
    assert abs(bucket_value_ns(index) - duration_ns) <= RELATIVE_ERROR * duration_ns * SLACK


@given(st.lists(DURATIONS, min_size=1, max_size=60), st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_quantiles_are_within_the_relative_error_of_an_actual_duration(
    durations: list[int], q: float
) -> None:
    exact = sorted(durations)[int(np.floor(q * (len(durations) - 1)))]
    estimate = quantile(Counter(index_of(*durations)), q)
    assert estimate is not None
    assert abs(estimate - exact) <= RELATIVE_ERROR * exact * SLACK
    if max(durations) < 2**53:
        assert exact == np.quantile(durations, q, method="lower")


@given(
    st.lists(
        st.dictionaries(st.integers(-1, 2184), st.integers(1, 2**40), max_size=8), min_size=1, max_size=5
    )
)
def test_merging_in_polars_equals_merging_in_python(rows: list[dict[int, int]]) -> None:
    qs = (0.0, 0.5, 0.95, 0.99, 1.0)
    merged: Counter[int] = Counter()
    for row in rows:
        merged.update(row)
    frame = pl.DataFrame({"region": ["a"] * len(rows)}).with_columns(maps(*rows))
    found = quantiles(frame, ["region"], qs)
    expected = {quantile_name(q): quantile(merged, q) for q in qs}
    assert found.to_dicts() == ([{"region": "a", **expected}] if merged else [])


@pytest.fixture(scope="module")
def macros() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the macros on buckets and nothing else."""
    names = ("bucket_value_ns", "merge_buckets", "latency_quantile_ns")
    with duckdb.connect() as connection:
        for definition in ANALYTICS_DEFINITIONS:
            if definition.name in names:
                connection.execute(definition.ddl())
        yield connection


CELLS = st.dictionaries(
    st.one_of(st.integers(ZERO_INDEX, 3), st.integers(ZERO_INDEX, INDEX_MAX)),
    st.one_of(st.integers(1, 3), st.integers(1, 2**40)),
    max_size=8,
)


@given(st.lists(st.lists(CELLS, max_size=6), min_size=1, max_size=3), st.floats(0, 1))
@example([[{ZERO_INDEX: 1}], [{INDEX_MAX: 2**52 - 1}]], 1.0)
def test_macros_equal_the_reference_in_each_group(
    macros: duckdb.DuckDBPyConnection, groups: list[list[dict[int, int]]], q: float
) -> None:
    cells = [
        {"g": number, "latency_buckets": [{"key": key, "value": value} for key, value in row.items()]}
        for number, rows in enumerate(groups)
        for row in rows
    ]
    kind = pl.List(pl.Struct({"key": pl.Int16, "value": pl.UInt64}))
    rows = pl.DataFrame(cells, schema={"g": pl.Int64, "latency_buckets": kind})
    macros.register("rows", rows.with_columns(pl.col("latency_buckets").cast(BUCKETS)).to_arrow())
    found = macros.execute(
        "SELECT g, latency_quantile_ns(list(latency_buckets), ?), merge_buckets(list(latency_buckets)) "
        "FROM rows GROUP BY g ORDER BY g",
        [q],
    ).fetchall()
    merged = {number: merged_counts(rows) for number, rows in enumerate(groups) if rows}
    assert found == [(number, quantile(counts, q), counts) for number, counts in merged.items()]


def merged_counts(rows: list[dict[int, int]]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(row)
    return dict(sorted(counts.items()))


def test_groups_are_kept_apart() -> None:
    frame = pl.DataFrame({"tenant": ["a", "b", "a"]}).with_columns(maps({5: 1}, {9: 4}, {7: 1}))
    found = quantiles(frame, ["tenant"], [1.0]).sort("tenant")
    assert found["p100_ns"].to_list() == [bucket_value_ns(7), bucket_value_ns(9)]


@pytest.mark.parametrize("q", [-0.1, 1.1, 99])
def test_a_quantile_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        quantile({1: 1}, q)
    assert quantile({}, 0.5) is None
