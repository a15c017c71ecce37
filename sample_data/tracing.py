"""From operations to spans.

A cache operation is a trace of the gateway's HTTP server span, its cache client span, the cache's RPC server
span and, after a missed `get`, a database client span. A publish is the gateway's HTTP server span, its
producer span, the topics service's RPC server span, that service's internal fan-out span, and one consumer span
a subscriber, in the same trace or in one of its own, as the subscription says.
"""

from __future__ import annotations

from typing import NamedTuple

from sample_data.model import CLIENT_DEADLINE_NS, SPANS_PER_OPERATION_MAX, Kind, Operations, Outcome
from sample_data.semantics import (
    FAILURES,
    Template,
    consumer_attributes,
    database_attributes,
    fan_out_attributes,
    key_hash,
    template,
)
from sample_data.span import Attributes, Span, SpanKind
from sample_data.topology import Joining, Service, Topology, instance_index

CONNECT_REFUSED_NS = 1_000_000
LOCAL_WORK_NS = 20_000


class _Operation(NamedTuple):
    """One row of `Operations` in Python values; the names are its columns'."""

    start_ns: int
    tenant: int
    region: int
    kind: int
    store: int
    key: int
    hit: bool
    batch_size: int
    batch_hits: int
    item_bytes: int
    outcome: int
    gateway_host: int
    server_host: int
    gateway_run: int
    server_run: int
    gateway_clock_ns: int
    server_clock_ns: int
    gateway_ns: int
    network_ns: int
    server_ns: int
    database_ns: int

    @property
    def call_start_ns(self) -> int:
        """When the gateway calls the service."""
        return self.start_ns + self.gateway_ns // 2

    @property
    def call_end_ns(self) -> int:
        """When the gateway has its answer, or gives up waiting."""
        if self.outcome == Outcome.TIMEOUT:
            return self.call_start_ns + CLIENT_DEADLINE_NS
        if self.outcome == Outcome.UNAVAILABLE:
            return self.call_start_ns + self.network_ns + CONNECT_REFUSED_NS
        return self.call_start_ns + self.network_ns + self.server_ns

    @property
    def served_ns(self) -> int:
        """When the service begins."""
        return self.call_start_ns + self.network_ns // 2

    @property
    def fan_out_start_ns(self) -> int:
        """When the topics service begins to hand out the message."""
        return self.served_ns + self.server_ns // 2


class _Delivery(NamedTuple):
    """One row of `Deliveries` in Python values."""

    operation: int
    subscription: int
    region: int
    host: int
    run: int
    clock_ns: int
    lag_ns: int
    process_ns: int
    lost: bool
    failed: bool


class _Ids(NamedTuple):
    """The ids that belong to an operation; `fourth` is the fan-out's or the database query's."""

    trace: bytes
    gateway: bytes
    client: bytes
    server: bytes
    fourth: bytes


class SpanBuilder:
    """Makes the spans of operations on one topology. Holds tables of attribute tuples and no other state."""

    def __init__(self, topology: Topology) -> None:
        self._tenants = topology.tenants
        self._templates: dict[tuple[int, int, int, int], Template] = {}
        self._consumers: dict[tuple[int, int, int, int], Attributes] = {}

    def spans_of(self, operations: Operations) -> list[Span]:
        """All spans of these operations, in no particular order."""
        columns = (getattr(operations, name).tolist() for name in _Operation._fields)
        rows = [_Operation(*values) for values in zip(*columns, strict=True)]
        ids = [_ids(operations, index) for index in range(len(rows))]
        spans: list[Span] = []
        for row, its in zip(rows, ids, strict=True):
            spans += self._call(row, its)
        return spans + self._deliveries(operations, rows, ids)

    def _call(self, row: _Operation, ids: _Ids) -> list[Span]:
        """Gateway, client and server span of an operation, and the database query after a miss."""
        names = self._template(row)
        dynamic, hit = _measured(row)
        spans = [_client(row, ids, names, dynamic)]
        if row.outcome != Outcome.UNAVAILABLE:
            spans.append(_server(row, ids, names, dynamic, hit))
        end_ns = row.call_end_ns
        if hit is False:
            start_ns = end_ns + LOCAL_WORK_NS
            end_ns = start_ns + row.database_ns
            spans.append(self._query(row, ids, start_ns))
        spans.append(_gateway(row, ids, names, end_ns + row.gateway_ns // 2))
        return spans

    def _template(self, row: _Operation) -> Template:
        key = (row.tenant, row.kind, row.store, row.region)
        found = self._templates.get(key)
        if found is None:
            found = self._templates[key] = template(self._tenants[row.tenant], row.kind, row.store, row.region)
        return found

    def _query(self, row: _Operation, ids: _Ids, start_ns: int) -> Span:
        told_ns = start_ns + row.gateway_clock_ns
        return Span(
            _gateway_of(row), row.tenant, ids.trace, ids.fourth, ids.gateway, False,
            "SELECT items", SpanKind.CLIENT, told_ns, told_ns + row.database_ns,
            database_attributes(self._tenants[row.tenant], row.region),
        )  # fmt: skip

    def _deliveries(self, operations: Operations, rows: list[_Operation], ids: list[_Ids]) -> list[Span]:
        """The fan-out spans of published messages and the consumer spans of their subscribers."""
        deliveries = operations.deliveries
        columns = (getattr(deliveries, name).tolist() for name in _Delivery._fields)
        spans = []
        handed_out: dict[int, tuple[int, int]] = {}
        for index, values in enumerate(zip(*columns, strict=True)):
            it = _Delivery(*values)
            last_lag_ns, lost = handed_out.get(it.operation, (0, 0))
            handed_out[it.operation] = (max(last_lag_ns, it.lag_ns), lost + it.lost)
            if not it.lost:
                trace_id = deliveries.trace_ids[16 * index : 16 * index + 16]
                span_id = deliveries.span_ids[8 * index : 8 * index + 8]
                spans.append(self._consumer(it, rows[it.operation], ids[it.operation], trace_id, span_id))
        for operation, (last_lag_ns, lost) in handed_out.items():
            spans.append(self._fan_out(rows[operation], ids[operation], last_lag_ns, lost))
        return spans

    def _fan_out(self, row: _Operation, ids: _Ids, last_lag_ns: int, lost: int) -> Span:
        tenant = self._tenants[row.tenant]
        start_ns = row.fan_out_start_ns + row.server_clock_ns
        return Span(
            instance_index(Service.TOPICS, row.region, row.server_host, row.server_run), row.tenant,
            ids.trace, ids.fourth, ids.server, False,
            f"fan out {tenant.topics[row.store].name}", SpanKind.INTERNAL, start_ns, start_ns + last_lag_ns,
            (*fan_out_attributes(tenant, row.store), ("messaging.message.id", ids.client.hex())),
            undelivered=lost,
        )  # fmt: skip

    def _consumer(self, it: _Delivery, row: _Operation, ids: _Ids, trace_id: bytes, span_id: bytes) -> Span:
        topic = self._tenants[row.tenant].topics[row.store]
        joining = topic.subscriptions[it.subscription].joining
        parented = joining != Joining.LINK
        start_ns = row.fan_out_start_ns + it.lag_ns + it.clock_ns
        attributes: Attributes = (
            *self._consumer_attributes(row, it),
            ("messaging.message.id", ids.client.hex()),
            ("messaging.message.body.size", row.item_bytes),
        )
        return Span(
            instance_index(Service.SUBSCRIBER, it.region, it.host, it.run), row.tenant,
            ids.trace if parented else trace_id, span_id, ids.client if parented else b"", parented,
            f"process {topic.name}", SpanKind.CONSUMER, start_ns, start_ns + it.process_ns,
            (*attributes, ("error.type", "HandlerError")) if it.failed else attributes,
            error=it.failed,
            exception=("HandlerError", "the subscriber's handler failed") if it.failed else None,
            links=() if joining == Joining.PARENT else ((ids.trace, ids.client),),
        )  # fmt: skip

    def _consumer_attributes(self, row: _Operation, it: _Delivery) -> Attributes:
        key = (row.tenant, row.store, it.subscription, it.region)
        found = self._consumers.get(key)
        if found is None:
            tenant = self._tenants[row.tenant]
            topic = tenant.topics[row.store]
            found = consumer_attributes(tenant, topic.name, topic.subscriptions[it.subscription], it.region)
            self._consumers[key] = found
        return found


def _ids(operations: Operations, index: int) -> _Ids:
    at = 8 * SPANS_PER_OPERATION_MAX * index
    spans = operations.span_ids
    trace = operations.trace_ids[16 * index : 16 * index + 16]
    return _Ids(trace, spans[at : at + 8], spans[at + 8 : at + 16], spans[at + 16 : at + 24], spans[at + 24 : at + 32])


def _gateway_of(row: _Operation) -> int:
    return instance_index(Service.GATEWAY, row.region, row.gateway_host, row.gateway_run)


def _measured(row: _Operation) -> tuple[Attributes, bool | None]:
    """Attributes of the server span that differ from call to call, and the result of a single lookup."""
    sized: Attributes = (("cache.item.size", row.item_bytes),)
    key: Attributes = (("cache.key.hash", key_hash(row.tenant, row.store, row.key)),)
    served = row.outcome == Outcome.OK
    if row.kind == Kind.PUBLISH:
        return (("messaging.message.body.size", row.item_bytes),), None
    if row.kind == Kind.GET_BATCH:
        batch: Attributes = (("db.operation.batch.size", row.batch_size),)
        return (*batch, ("cache.batch.hit_count", row.batch_hits)) if served else batch, None
    if row.kind == Kind.SET:
        return (*key, *sized), None
    if row.kind == Kind.GET and served:
        return (*key, ("cache.hit", row.hit), *(sized if row.hit else ())), row.hit
    return key, None


def _gateway(row: _Operation, ids: _Ids, names: Template, end_ns: int) -> Span:
    status = FAILURES[row.outcome].http_status
    attributes: Attributes = (*names.gateway, ("http.response.status_code", status))
    return Span(
        _gateway_of(row), row.tenant, ids.trace, ids.gateway, b"", False,
        names.gateway_name, SpanKind.SERVER, row.start_ns + row.gateway_clock_ns, end_ns + row.gateway_clock_ns,
        (*attributes, ("error.type", str(status))) if status >= 500 else attributes,
        error=status >= 500,
    )  # fmt: skip


def _client(row: _Operation, ids: _Ids, names: Template, dynamic: Attributes) -> Span:
    failure = FAILURES[row.outcome]
    attributes = names.client
    if row.kind == Kind.PUBLISH:
        attributes = (*attributes, *dynamic, ("messaging.message.id", ids.client.hex()))
    elif row.kind == Kind.GET_BATCH:
        attributes = (*attributes, ("db.operation.batch.size", row.batch_size))
    if failure.client_error:
        attributes = (*attributes, ("error.type", failure.client_error))
    return Span(
        _gateway_of(row), row.tenant, ids.trace, ids.client, ids.gateway, False,
        names.client_name, SpanKind.PRODUCER if row.kind == Kind.PUBLISH else SpanKind.CLIENT,
        row.call_start_ns + row.gateway_clock_ns, row.call_end_ns + row.gateway_clock_ns, attributes,
        error=bool(failure.client_error), status_message=failure.message,
    )  # fmt: skip


def _server(row: _Operation, ids: _Ids, names: Template, dynamic: Attributes, hit: bool | None) -> Span:
    failure = FAILURES[row.outcome]
    service = Service.TOPICS if row.kind == Kind.PUBLISH else Service.CACHE
    attributes = (*names.server, *dynamic, ("rpc.response.status_code", failure.rpc_status))
    start_ns = row.served_ns + row.server_clock_ns
    return Span(
        instance_index(service, row.region, row.server_host, row.server_run), row.tenant,
        ids.trace, ids.server, ids.client, True,
        names.server_name, SpanKind.SERVER, start_ns, start_ns + row.server_ns,
        (*attributes, ("error.type", failure.server_error)) if failure.server_error else attributes,
        error=bool(failure.server_error),
        status_message=failure.message if failure.server_error else "",
        hit=hit,
    )  # fmt: skip
