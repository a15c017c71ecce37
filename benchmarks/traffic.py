"""Synthetic requests for the benchmarks: spans of a cache and topic platform with ten attributes of mixed types."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

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


def request(rng: random.Random, spans: int, start_ns: int) -> ExportTraceServiceRequest:
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
        scope_spans.spans.add(
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
    return message


class Traffic:
    """Endless distinct requests at next to no cost: built once, then each sent with a fresh first trace id."""

    def __init__(self, spans_per_request: int, distinct_spans: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        now = time.time_ns()
        self.spans_per_request = spans_per_request
        self._halves = []
        for _ in range(max(1, distinct_spans // spans_per_request)):
            head, tail = request(rng, spans_per_request, now).SerializeToString().split(_MARK, 1)
            self._halves.append((head, tail))

    def __iter__(self) -> Iterator[bytes]:
        while True:
            for head, tail in self._halves:
                yield head + os.urandom(16) + tail
