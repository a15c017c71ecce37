"""Spans of a segment in order: none lost, none changed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from collector.config import LimitsConfig, MappingConfig
from collector.decode.decoder import Decoder
from collector.lake.order import ascending, by_tenant_and_time, parts_by_tenant_and_time
from collector.pipeline import TraceRequest
from sample_data.emit_files import requests


def table(times_and_tenants: list[tuple[int, str]]) -> pa.Table:
    times, tenants = zip(*times_and_tenants, strict=True) if times_and_tenants else ((), ())
    return pa.table(
        {
            "tenant": pa.array(tenants, pa.string()).dictionary_encode(),
            "start_time": pa.array(times, pa.timestamp("ns")),
            "row": pa.array(range(len(times)), pa.int64()),
        }
    )


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "B", "ä", "", "aa"])), max_size=8), max_size=4)
)
def test_rows_are_ordered_and_equal_ones_stay_as_they_came(chunks: list[list[tuple[int, str]]]) -> None:
    whole = pa.concat_tables([table([]), *(table(chunk) for chunk in chunks)])
    found = by_tenant_and_time(whole).to_pylist()
    assert found == sorted(whole.to_pylist(), key=lambda row: (row["tenant"], row["start_time"]))
    parts = list(parts_by_tenant_and_time(whole, 3)) if found else []
    assert [row for part in parts for row in part.to_pylist()] == found
    assert all(part.num_rows == 3 for part in parts[:-1])


def test_whole_spans_move_together() -> None:
    decoder = Decoder(MappingConfig(), LimitsConfig())
    parts = [decoder.decode([TraceRequest(payload, 5)]).spans for payload in requests(3, 300)]
    spans = pa.Table.from_batches(parts)
    ordered = by_tenant_and_time(spans)
    assert ordered.schema.names == spans.schema.names
    assert sorted(map(repr, ordered.to_pylist())) == sorted(map(repr, spans.to_pylist()))
    keys = list(zip(ordered["tenant"].to_pylist(), ordered["start_time"].to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert len({tenant for tenant, _ in keys}) > 1


@given(
    st.sampled_from([3, 2**30, 2**61, 2**63 - 1]).flatmap(
        lambda most: st.lists(st.tuples(st.integers(0, 5), st.integers(0, most)), min_size=1, max_size=40)
    )
)
def test_positions_are_ordered_whatever_the_times(rows: list[tuple[int, int]]) -> None:
    rank, time_ns = np.array([row[0] for row in rows], np.int32), np.array([row[1] for row in rows], np.int64)
    expected = sorted(range(len(rows)), key=lambda position: rows[position])
    assert ascending(rank, time_ns).tolist() == expected
