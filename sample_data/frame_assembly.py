"""From numbers to the columns of table `spans`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from sample_data.frame_columns import Entries, attributes, hex_texts, labels, links, process_columns
from sample_data.frame_names import NONE, Names
from sample_data.model import SPANS_PER_OPERATION_MAX, Kind, Operations
from sample_data.semantics import key_number
from sample_data.topology import Ints, Joining, Topology

# One sort of span: `row`, the row of its operation or delivery, and by _NUMBERS a number a row or one for all; NONE
# where it is missing. `trace`, `span` and `parent` are positions among all ids of traces and spans.
Part = dict[str, Any]

ATTRIBUTE_KEYS = (
    "cache.key.hash",
    "messaging.message.id",
    "messaging.consumer.group.name",
    "topics.subscription.count",
)
_COMPONENTS = ("cache", "topic", "database", "http")
CACHE, TOPIC, DATABASE, HTTP = range(len(_COMPONENTS))
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "error")
_NUMBERS = (
    "instance", "tenant", "trace", "span", "parent", "name", "kind", "start", "duration", "status", "component",
    "operation", "destination", "hit", "payload", "error_type", "http_status",
)  # fmt: skip
_CLIENT, _SERVER, _FAN_OUT, _CONSUMER = 1, 2, 4, 5
COLUMNS = (
    "trace_id", "span_id", "parent_span_id", "name", "kind", "start_time", "duration_ns", "status", "service_name",
    "service_namespace", "service_version", "service_instance_id", "environment", "region", "zone", "host", "tenant",
    "component", "operation", "destination", "cache_hit", "payload_bytes", "error_type", "http_status",
    "sample_weight", "attributes", "links",
)  # fmt: skip


def assemble(topology: Topology, names: Names, operations: Operations, parts: Sequence[Part]) -> pl.DataFrame:
    """The frame of the gateways', clients', servers', queries', fan-outs' and consumers' spans, in this order."""
    sizes = [len(part["row"]) for part in parts]
    numbers = {
        column: np.concatenate([np.broadcast_to(p.get(column, NONE), n) for p, n in zip(parts, sizes, strict=True)])
        for column in _NUMBERS
    }
    deliveries = operations.deliveries
    trace_ids = pa.concat_arrays([hex_texts(operations.trace_ids, 16), hex_texts(deliveries.trace_ids, 16)])
    span_ids = pa.concat_arrays([hex_texts(operations.span_ids, 8), hex_texts(deliveries.span_ids, 8)])
    firsts = np.cumsum([0, *sizes]).tolist()
    return pl.DataFrame(
        {
            **_ids(numbers, trace_ids, span_ids),
            **{column: texts.labels(numbers[column]) for column, texts in names.texts.items()},
            **process_columns(topology, numbers["instance"]),
            "kind": labels(_KINDS, numbers["kind"]),
            "status": labels(_STATUSES, numbers["status"]),
            "component": labels(_COMPONENTS, numbers["component"]),
            "tenant": labels([tenant.name for tenant in topology.tenants], numbers["tenant"]),
            **_measures(numbers),
            "attributes": attributes(firsts[-1], _entries(names, operations, parts, firsts, span_ids)),
            "links": _links(operations, parts[-1], firsts, trace_ids, span_ids),
        }
    ).select(COLUMNS)


def _ids(numbers: dict[str, Ints], trace_ids: pa.StringArray, span_ids: pa.StringArray) -> dict[str, pl.Series]:
    traces, spans = pl.Series(trace_ids), pl.Series(span_ids)
    parent = pl.Series(numbers["parent"])
    return {
        "trace_id": traces.gather(numbers["trace"]),
        "span_id": spans.gather(numbers["span"]),
        "parent_span_id": spans.gather(pl.select(pl.when(parent != NONE).then(parent)).to_series()),
    }


def _measures(numbers: dict[str, Ints]) -> dict[str, pl.Series]:
    def known(column: str) -> pl.Expr:
        values = pl.lit(pl.Series(numbers[column]))
        return pl.when(values != NONE).then(values)

    return pl.select(
        start_time=pl.lit(pl.Series(numbers["start"])).cast(pl.Datetime("ns")),
        duration_ns=pl.lit(pl.Series(numbers["duration"])),
        cache_hit=known("hit").cast(pl.Boolean),
        payload_bytes=known("payload"),
        http_status=known("http_status").cast(pl.Int32),
        sample_weight=pl.lit(pl.Series(np.zeros(len(numbers["start"])))).replace(0.0, None),
    ).to_dict()


def _entries(
    names: Names, operations: Operations, parts: Sequence[Part], firsts: list[int], span_ids: pa.StringArray
) -> list[Entries]:
    """The attributes of ATTRIBUTE_KEYS, in the order of their rows where a row has two."""
    _, clients, servers, _, fan_outs, consumers = parts
    published = np.flatnonzero(operations.kind[clients["row"]] == Kind.PUBLISH)
    delivered = operations.deliveries.operation[consumers["row"]]

    def message_ids(first: int, part_rows: Ints, of: Ints) -> Entries:
        ids = span_ids.take(pa.array(SPANS_PER_OPERATION_MAX * of + _CLIENT))
        return Entries("messaging.message.id", first + part_rows, ids)

    tenant, store = operations.tenant, operations.store
    counts = names.subscribers[tenant[fan_outs["row"]], store[fan_outs["row"]]]
    subscription = operations.deliveries.subscription[consumers["row"]]
    groups = names.groups.array(names.group[tenant[delivered], store[delivered], subscription])
    fan_out_rows, consumer_rows = np.arange(len(fan_outs["row"])), np.arange(len(delivered))
    return [
        _key_hashes(operations, servers["row"], firsts[_SERVER]),
        Entries("topics.subscription.count", firsts[_FAN_OUT] + fan_out_rows, pa.array(counts).cast(pa.string())),
        Entries("messaging.consumer.group.name", firsts[_CONSUMER] + consumer_rows, groups),
        message_ids(firsts[_CLIENT], published, published),
        message_ids(firsts[_FAN_OUT], fan_out_rows, fan_outs["row"]),
        message_ids(firsts[_CONSUMER], consumer_rows, delivered),
    ]


def _key_hashes(operations: Operations, rows: Ints, first: int) -> Entries:
    kind = operations.kind[rows]
    keyed = np.flatnonzero((kind != Kind.PUBLISH) & (kind != Kind.GET_BATCH))
    of = rows[keyed]
    numbers = key_number(operations.tenant[of], operations.store[of], operations.key[of])
    return Entries("cache.key.hash", first + keyed, hex_texts(numbers.astype(">u4").tobytes(), 4))


def _links(
    operations: Operations, consumers: Part, firsts: list[int], trace_ids: pa.StringArray, span_ids: pa.StringArray
) -> pl.Series:
    linked = np.flatnonzero(consumers["joining"] != Joining.PARENT)
    of = operations.deliveries.operation[consumers["row"][linked]]
    return links(
        firsts[-1],
        firsts[_CONSUMER] + linked,
        trace_ids.take(pa.array(of)),
        span_ids.take(pa.array(SPANS_PER_OPERATION_MAX * of + _CLIENT)),
    )
