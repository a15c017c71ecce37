"""Synthetic requests for the benchmarks: spans of a cache and topic platform with ten attributes of mixed types.

A share of them can be rich: two events, a link, and attributes that hold a list and a map.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.decode import otlp_json

REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "ap-southeast-2")
TENANTS = tuple(f"tenant-{i:02}" for i in range(48))
OPERATIONS = ("get", "set", "delete", "get_batch")
_MARK = bytes(range(1, 17))


def attribute(key: str, value: str | bool | int | float) -> KeyValue:
    """An OTLP attribute of the value's type."""
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    if isinstance(value, float):
        return KeyValue(key=key, value=AnyValue(double_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))


def enrich(span: Span, rng: random.Random) -> None:
    """Give a span two events, a link, an attribute with a list, and one with a map."""
    for name in ("cache.miss", "exception"):
        event = span.events.add(name=name, time_unix_nano=span.start_time_unix_nano)
        event.attributes.append(attribute("exception.type", "TimeoutError"))
        event.attributes.append(attribute("exception.message", f"no answer from shard {rng.randrange(64)}"))
    link = span.links.add(trace_id=rng.randbytes(16), span_id=rng.randbytes(8))
    link.attributes.append(attribute("messaging.operation.type", "process"))
    keys = span.attributes.add(key="cache.keys").value.array_value
    keys.values.extend(AnyValue(string_value=f"{rng.getrandbits(32):08x}") for _ in range(4))
    client = span.attributes.add(key="client").value.kvlist_value
    client.values.extend([attribute("sdk", "go"), attribute("retries", rng.randrange(4))])


def request(rng: random.Random, spans: int, start_ns: int, rich_share: float = 0.0) -> ExportTraceServiceRequest:
    """One request of one resource: `spans` spans of ten attributes, 5 texts, 2 integers, 2 booleans, 1 double."""
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    region = rng.choice(REGIONS)
    for key, value in (
        ("service.name", "cache"),
        ("service.version", f"1.{rng.randrange(4)}.0"),
        ("service.instance.id", f"{region}-{rng.randrange(8)}"),
        ("cloud.region", region),
        ("host.name", f"{region}-host-{rng.randrange(8)}"),
    ):
        resource_spans.resource.attributes.append(attribute(key, value))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "cache-server"
    for i in range(spans):
        start = start_ns + rng.randrange(1_000_000_000)
        span = scope_spans.spans.add(
            trace_id=_MARK if i == 0 else rng.randbytes(16),
            span_id=rng.randbytes(8),
            parent_span_id=rng.randbytes(8),
            name="cache " + OPERATIONS[i % 4],
            kind=2,
            start_time_unix_nano=start,
            end_time_unix_nano=start + int(rng.lognormvariate(13.5, 0.6)),
            attributes=[
                attribute("tenant.id", TENANTS[min(int(rng.paretovariate(0.8)), 48) - 1]),
                attribute("db.system.name", "redis"),
                attribute("db.operation.name", OPERATIONS[i % 4]),
                attribute("cache.name", f"cache-{rng.randrange(12)}"),
                attribute("cache.key.hash", f"{rng.getrandbits(32):08x}"),
                attribute("cache.hit", rng.random() < 0.9),
                attribute("cache.item.size", int(rng.lognormvariate(7, 1))),
                attribute("cache.ttl_seconds", rng.randrange(3600)),
                attribute("cache.compressed", rng.random() < 0.2),
                attribute("cache.shard.load", rng.random()),
            ],
        )
        if rng.random() < rich_share:
            enrich(span, rng)
    return message


class Traffic:
    """Endless distinct requests at next to no cost: built once, then each sent with a fresh first trace id."""

    def __init__(
        self, spans_per_request: int, distinct_spans: int, seed: int = 1, *, rich_share: float = 0.0, json: bool = False
    ) -> None:
        """`json` makes them OTLP/JSON instead of protobuf."""
        rng = random.Random(seed)
        now = time.time_ns()
        self.spans_per_request = spans_per_request
        self._json = json
        self._halves = []
        for _ in range(max(1, distinct_spans // spans_per_request)):
            message = request(rng, spans_per_request, now, rich_share)
            body, mark = (otlp_json(message), _MARK.hex().encode()) if json else (message.SerializeToString(), _MARK)
            head, tail = body.split(mark, 1)
            self._halves.append((head, tail))

    def __iter__(self) -> Iterator[bytes]:
        while True:
            for head, tail in self._halves:
                trace_id = os.urandom(16)
                yield head + (trace_id.hex().encode() if self._json else trace_id) + tail
