"""Frames of spans hold what the collector makes of the same operations' spans, value by value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from collector.config import MappingConfig
from collector.decode.decoder import Decoder
from collector.pipeline import TraceRequest
from collector.spans import ATTRIBUTES, SPAN_SCHEMA
from sample_data.columns import joined
from sample_data.encoding import protobuf_request
from sample_data.frame_assembly import ATTRIBUTE_KEYS, COLUMNS
from sample_data.frames import Frames
from sample_data.incidents.catalogue import incident
from sample_data.incidents.incident import Platform
from sample_data.model import Operations, Outcome, Workload
from sample_data.topology import STARTS_PER_RELEASE, Topology, build_topology
from sample_data.tracing import SpanBuilder

START = 1_790_000_000


def decoded(topology: Topology, operations: Operations) -> pl.DataFrame:
    """What the collector stores for the spans of these operations, of the columns that frames have."""
    by_process = defaultdict(list)
    for span in SpanBuilder(topology).spans_of(operations):
        by_process[span.instance].append(span)
    requests = [
        TraceRequest(payload=protobuf_request(topology.instances[index], spans), received_at_ns=START * 10**9)
        for index, spans in by_process.items()
    ]
    found = pl.from_arrow(Decoder(MappingConfig()).decode(requests).spans)
    assert isinstance(found, pl.DataFrame)
    return found.select(COLUMNS)


def comparable(spans: pl.DataFrame) -> pl.DataFrame:
    """In one order, with the chosen attributes as a column each."""
    chosen = map(_attribute, ATTRIBUTE_KEYS)
    return spans.with_columns(*chosen, pl.col(pl.Categorical).cast(pl.String)).drop("attributes").sort("span_id")


def _attribute(key: str) -> pl.Expr:
    entries = pl.col("attributes").map.entries()
    value = entries.list.eval(pl.when(pl.element().struct.field("key") == key).then(pl.element().struct.field("value")))
    return value.list.drop_nulls().list.first().alias(key)


def upset(operations: Operations, seed: int) -> Operations:
    """Any outcome, run, clock, loss and failure, to have every kind of span."""
    rng = np.random.default_rng(seed)
    n, m = len(operations.start_ns), len(operations.deliveries.lag_ns)
    its = operations.deliveries
    # Only served messages are delivered.
    outcome = np.where(np.isin(np.arange(n), its.operation), Outcome.OK, rng.choice(list(Outcome), n))
    return replace(
        operations,
        outcome=outcome,
        server_run=operations.server_run + rng.integers(0, STARTS_PER_RELEASE * 3, n),
        gateway_clock_ns=rng.integers(-(10**9), 10**9, n),
        server_clock_ns=rng.integers(-(10**9), 10**9, n),
        deliveries=replace(
            its,
            lost=rng.random(m) < 0.3,
            failed=rng.random(m) < 0.3,
            clock_ns=rng.integers(-(10**9), 10**9, m),
        ),
    )


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32), tenants=st.sampled_from([1, 7, 48]), second=st.integers(0, 10**6), wild=st.booleans()
)
def test_a_frame_is_what_the_collector_decodes(seed: int, tenants: int, second: int, wild: bool) -> None:
    topology = build_topology(seed, tenants)
    workload = Workload(topology, seed, 120.0)
    operations = joined([workload.operations(START + second + i) for i in range(3)])
    if wild:
        operations = upset(operations, seed)
    expected, found = decoded(topology, operations), Frames(topology).spans(operations)
    assert found.height == expected.height
    assert_frame_equal(comparable(found), comparable(expected))


@pytest.mark.parametrize("kind", ["noisy_neighbour", "retry_storm", "deploy_errors", "clock_skew", "lost_deliveries"])
def test_a_frame_with_an_incident_is_what_the_collector_decodes(kind: str) -> None:
    topology = build_topology(2, 12)
    platform = Platform(Workload(topology, 2, 120.0), [incident(kind, topology, 2, START, 300)])
    operations = joined([platform.operations(START + second) for second in (60, 250, 301)])
    assert_frame_equal(comparable(Frames(topology).spans(operations)), comparable(decoded(topology, operations)))


def test_columns_have_the_names_and_types_of_the_table() -> None:
    topology = build_topology(1, 8)
    found = Frames(topology).spans(Workload(topology, 1, 100.0).operations(START))
    position = SPAN_SCHEMA.get_field_index("attributes")
    schema = SPAN_SCHEMA.set(position, SPAN_SCHEMA.field(position).with_type(ATTRIBUTES))  # their keys without codes
    table = pl.from_arrow(schema.empty_table())
    assert isinstance(table, pl.DataFrame)
    assert found.schema == table.select(COLUMNS).schema
    assert tuple(name for name in table.columns if name in COLUMNS) == COLUMNS


def test_every_kind_of_span_is_in_it() -> None:
    topology = build_topology(3, 20)
    workload = Workload(topology, 3, 400.0)
    operations = upset(joined([workload.operations(START + i) for i in range(5)]), 3)
    found = Frames(topology).spans(operations)
    assert set(found["kind"]) == {"internal", "server", "client", "producer", "consumer"}
    assert set(found["component"]) == {"cache", "topic", "database", "http"}
    assert found["error_type"].n_unique() > 5
    assert found["links"].list.len().max() == 1
    assert found["cache_hit"].sum() > 0


def test_no_operations_give_no_spans() -> None:
    topology = build_topology(1, 1)
    workload = Workload(topology, 1, 0.001)
    empty = next(o for o in map(workload.operations, range(START, START + 50)) if not len(o.start_ns))
    assert Frames(topology).spans(empty).is_empty()


@pytest.mark.parametrize("count", [1, 4])
def test_joined_seconds_have_the_spans_of_each(count: int) -> None:
    topology = build_topology(1, 8)
    workload = Workload(topology, 1, 100.0)
    seconds = [workload.operations(START + i) for i in range(count)]
    frames = Frames(topology)
    assert_frame_equal(
        comparable(frames.spans(joined(seconds))), comparable(pl.concat([frames.spans(one) for one in seconds]))
    )
