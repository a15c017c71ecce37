"""What spans are called and which columns their attributes fill, as tables of numbers over a topology."""

from __future__ import annotations

import numpy as np

from sample_data.frame_columns import Texts
from sample_data.model import Kind, Outcome
from sample_data.semantics import FAILURES, template
from sample_data.topology import Topology

NONE = -1
_CALLS = 3


class Names:
    """Numbers of texts, NONE where there is none; the texts themselves are in `texts`, by column, and `groups`.

    `calls[column]` has shape (gateway, client, server; kind; tenant; store), `fan_out`, `process`, their operations
    and `subscribers` (how many) have (tenant, store), `joining` and `group` (tenant, store, subscription).
    `failures` has a row an outcome: HTTP status, `error_type` at the gateway, the client and the server.
    """

    def __init__(self, topology: Topology) -> None:
        self.texts = {name: Texts() for name in ("name", "operation", "destination", "error_type")}
        self.groups = Texts()
        self._tenants = topology.tenants
        shape = len(self._tenants), max(max(len(t.caches), len(t.topics)) for t in self._tenants)
        self.calls = {c: _table(_CALLS, len(Kind), *shape) for c in ("name", "operation", "destination")}
        self.fan_out, self.fan_out_operation = _table(*shape), _table(*shape)
        self.process, self.subscribers = _table(*shape), _table(*shape)
        most = max(len(topic.subscriptions) for tenant in self._tenants for topic in tenant.topics)
        self.joining, self.group = _table(*shape, most), _table(*shape, most)
        for tenant in range(len(self._tenants)):
            for kind in Kind:
                self._name_calls(tenant, kind)
            self._name_deliveries(tenant)
        self.query = {c: self.texts[c].code(text) for c, text in _QUERY.items()}
        self.processing = self.texts["operation"].code("process")
        self.handler_error = self.texts["error_type"].code("HandlerError")
        self.failures = np.array([self._failure(outcome) for outcome in Outcome])

    def _failure(self, outcome: Outcome) -> list[int]:
        failure, code = FAILURES[outcome], self.texts["error_type"].code
        at_gateway = str(failure.http_status) if failure.http_status >= 500 else ""
        errors = (at_gateway, failure.client_error, failure.server_error)
        return [failure.http_status, *(code(error) if error else NONE for error in errors)]

    def _name_calls(self, tenant: int, kind: Kind) -> None:
        its = self._tenants[tenant]
        publish = kind == Kind.PUBLISH
        for store in range(len(its.topics) if publish else len(its.caches)):
            names = template(its, kind, store, 0)
            client, server = dict(names.client), dict(names.server)
            target = str(server["messaging.destination.name" if publish else "cache.name"])
            called = str(client["messaging.operation.name"] if publish else server["db.operation.name"])
            served = str(server["rpc.method"]) if publish else called
            rows = (
                (names.gateway_name, names.gateway_name, None),
                (names.client_name, called, target),
                (names.server_name, served, target),
            )
            for span, texts in enumerate(rows):
                for column, text in zip(self.calls, texts, strict=True):
                    if text is not None:
                        self.calls[column][span, kind, tenant, store] = self.texts[column].code(text)

    def _name_deliveries(self, tenant: int) -> None:
        for store, topic in enumerate(self._tenants[tenant].topics):
            self.fan_out[tenant, store] = self.texts["name"].code(f"fan out {topic.name}")
            self.fan_out_operation[tenant, store] = self.texts["operation"].code(f"fan out {topic.name}")
            self.process[tenant, store] = self.texts["name"].code(f"process {topic.name}")
            self.subscribers[tenant, store] = len(topic.subscriptions)
            for number, subscription in enumerate(topic.subscriptions):
                self.joining[tenant, store, number] = subscription.joining
                self.group[tenant, store, number] = self.groups.code(subscription.group)


_QUERY = {"name": "SELECT items", "operation": "SELECT", "destination": "items"}


def _table(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.full(shape, NONE, np.int64)
