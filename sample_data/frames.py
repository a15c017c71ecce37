"""Spans of operations as a polars frame, without making a single one: for millions of them.

`Frames.spans` gives the rows that the collector stores for `tracing.SpanBuilder.spans_of` of the same operations:
names, types and values are those of table `spans`, in another order. Of `attributes` it has ATTRIBUTE_KEYS only;
what is of no use to analysis is left out: flags, trace state, status message, scope, events, resource, arrival.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sample_data.frame_assembly import CACHE, DATABASE, HTTP, TOPIC, Part, assemble
from sample_data.frame_names import NONE, Names
from sample_data.model import CLIENT_DEADLINE_NS, SPANS_PER_OPERATION_MAX, Bools, Kind, Operations, Outcome
from sample_data.span import SpanKind
from sample_data.topology import Ints, Joining, Service, Topology, instance_indices
from sample_data.tracing import CONNECT_REFUSED_NS, LOCAL_WORK_NS

_GATEWAY, _CLIENT, _SERVER, _FOURTH = range(SPANS_PER_OPERATION_MAX)


@dataclass(frozen=True, slots=True)
class _Times:
    """When what happens, by operation, in true time."""

    call_start: Ints
    call_end: Ints
    served: Ints
    end: Ints
    query_start: Ints
    queried: Bools

    @classmethod
    def of(cls, it: Operations) -> _Times:
        call_start = it.start_ns + it.gateway_ns // 2
        waited = np.select(
            [it.outcome == Outcome.TIMEOUT, it.outcome == Outcome.UNAVAILABLE],
            [np.int64(CLIENT_DEADLINE_NS), it.network_ns + CONNECT_REFUSED_NS],
            it.network_ns + it.server_ns,
        )
        call_end = call_start + waited
        queried = (it.kind == Kind.GET) & (it.outcome == Outcome.OK) & ~it.hit
        query_start = call_end + LOCAL_WORK_NS
        end = np.where(queried, query_start + it.database_ns, call_end) + it.gateway_ns // 2
        return cls(call_start, call_end, call_start + it.network_ns // 2, end, query_start, queried)


class Frames:
    """Makes frames of spans of operations on one topology; holds tables of names and no other state."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._names = Names(topology)

    def spans(self, operations: Operations) -> pl.DataFrame:
        """All spans of these operations: columns as in table `spans`, ATTRIBUTE_KEYS in `attributes`."""
        times = _Times.of(operations)
        parts = (
            self._gateway(operations, times),
            self._client(operations, times),
            self._server(operations, times),
            self._query(operations, times),
            *self._deliveries(operations, times),
        )
        return assemble(self._topology, self._names, operations, parts)

    def _call(self, it: Operations, span: int, rows: Ints | slice) -> Part:
        """What the gateway, client and server span of an operation are alike in."""
        row = np.arange(len(it.start_ns))[rows]
        kind, tenant, store = it.kind[rows], it.tenant[rows], it.store[rows]
        error_type = self._names.failures[it.outcome[rows], 1 + span]
        return {
            "row": row,
            "tenant": tenant,
            "trace": row,
            "span": SPANS_PER_OPERATION_MAX * row + span,
            "parent": SPANS_PER_OPERATION_MAX * row + span - 1 if span else NONE,
            "error_type": error_type,
            "status": error_type != NONE,
            **{column: table[span, kind, tenant, store] for column, table in self._names.calls.items()},
        }

    def _gateway(self, it: Operations, times: _Times) -> Part:
        return self._call(it, _GATEWAY, slice(None)) | {
            "instance": instance_indices(Service.GATEWAY, it.region, it.gateway_host, it.gateway_run),
            "kind": SpanKind.SERVER,
            "component": HTTP,
            "start": it.start_ns + it.gateway_clock_ns,
            "duration": times.end - it.start_ns,
            "http_status": self._names.failures[it.outcome, 0],
        }

    def _client(self, it: Operations, times: _Times) -> Part:
        publish = it.kind == Kind.PUBLISH
        return self._call(it, _CLIENT, slice(None)) | {
            "instance": instance_indices(Service.GATEWAY, it.region, it.gateway_host, it.gateway_run),
            "kind": np.where(publish, SpanKind.PRODUCER, SpanKind.CLIENT),
            "component": np.where(publish, TOPIC, CACHE),
            "start": times.call_start + it.gateway_clock_ns,
            "duration": times.call_end - times.call_start,
            "payload": np.where(publish, it.item_bytes, NONE),
        }

    def _server(self, it: Operations, times: _Times) -> Part:
        rows = np.flatnonzero(it.outcome != Outcome.UNAVAILABLE)
        kind, hit = it.kind[rows], it.hit[rows]
        found = (kind == Kind.GET) & (it.outcome[rows] == Outcome.OK)
        publish = kind == Kind.PUBLISH
        service = np.where(publish, Service.TOPICS, Service.CACHE)
        return self._call(it, _SERVER, rows) | {
            "instance": instance_indices(service, it.region[rows], it.server_host[rows], it.server_run[rows]),
            "kind": SpanKind.SERVER,
            "component": np.where(publish, TOPIC, CACHE),
            "start": times.served[rows] + it.server_clock_ns[rows],
            "duration": it.server_ns[rows],
            "hit": np.where(found, hit, NONE),
            "payload": np.where(publish | (kind == Kind.SET) | (found & hit), it.item_bytes[rows], NONE),
        }

    def _query(self, it: Operations, times: _Times) -> Part:
        rows = np.flatnonzero(times.queried)
        return {
            "row": rows,
            "instance": instance_indices(
                Service.GATEWAY, it.region[rows], it.gateway_host[rows], it.gateway_run[rows]
            ),
            "tenant": it.tenant[rows],
            "trace": rows,
            "span": SPANS_PER_OPERATION_MAX * rows + _FOURTH,
            "parent": SPANS_PER_OPERATION_MAX * rows + _GATEWAY,
            "kind": SpanKind.CLIENT,
            "component": DATABASE,
            "status": 0,
            "start": times.query_start[rows] + it.gateway_clock_ns[rows],
            "duration": it.database_ns[rows],
            **self._names.query,
        }

    def _deliveries(self, it: Operations, times: _Times) -> tuple[Part, Part]:
        """The fan-out spans and the consumer spans."""
        fan_out_start = times.served + it.server_ns // 2
        last_lag = np.full(len(it.start_ns), NONE, np.int64)
        np.maximum.at(last_lag, it.deliveries.operation, it.deliveries.lag_ns)
        rows = np.flatnonzero(last_lag != NONE)
        tenant, store = it.tenant[rows], it.store[rows]
        fan_out = {
            "row": rows,
            "instance": instance_indices(Service.TOPICS, it.region[rows], it.server_host[rows], it.server_run[rows]),
            "tenant": tenant,
            "trace": rows,
            "span": SPANS_PER_OPERATION_MAX * rows + _FOURTH,
            "parent": SPANS_PER_OPERATION_MAX * rows + _SERVER,
            "name": self._names.fan_out[tenant, store],
            "operation": self._names.fan_out_operation[tenant, store],
            "destination": self._names.calls["destination"][_SERVER, Kind.PUBLISH, tenant, store],
            "kind": SpanKind.INTERNAL,
            "component": TOPIC,
            "status": 0,
            "start": fan_out_start[rows] + it.server_clock_ns[rows],
            "duration": last_lag[rows],
        }
        return fan_out, self._consumers(it, fan_out_start)

    def _consumers(self, it: Operations, fan_out_start: Ints) -> Part:
        its = it.deliveries
        rows = np.flatnonzero(~its.lost)
        of = its.operation[rows]
        tenant, store = it.tenant[of], it.store[of]
        joining = self._names.joining[tenant, store, its.subscription[rows]]
        parented, count = joining != Joining.LINK, len(it.start_ns)
        return {
            "row": rows,
            "joining": joining,
            "instance": instance_indices(Service.SUBSCRIBER, its.region[rows], its.host[rows], its.run[rows]),
            "tenant": tenant,
            "trace": np.where(parented, of, count + rows),
            "span": SPANS_PER_OPERATION_MAX * count + rows,
            "parent": np.where(parented, SPANS_PER_OPERATION_MAX * of + _CLIENT, NONE),
            "name": self._names.process[tenant, store],
            "operation": self._names.processing,
            "destination": self._names.calls["destination"][_CLIENT, Kind.PUBLISH, tenant, store],
            "kind": SpanKind.CONSUMER,
            "component": TOPIC,
            "status": its.failed[rows],
            "error_type": np.where(its.failed[rows], self._names.handler_error, NONE),
            "start": fan_out_start[of] + its.lag_ns[rows] + its.clock_ns[rows],
            "duration": its.process_ns[rows],
            "payload": it.item_bytes[of],
        }
