"""Sends spans with the OpenTelemetry SDK of Python and prints how many.

python_exporter.py PROTOCOL ENDPOINT COMPRESSION SPANS PAUSE_MS SERVICE

PROTOCOL is grpc or http, ENDPOINT is HOST:PORT, COMPRESSION is none or gzip.
"""

from __future__ import annotations

import json
import sys
import time

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

START_NS = 1_700_000_000_000_000_000
BATCH_SPANS = 64
TIMEOUT_SECONDS = 90
MS = 1_000_000


def exporter(protocol: str, endpoint: str, compression: str) -> SpanExporter:
    if protocol == "grpc":
        kind = grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression
        return GrpcSpanExporter(endpoint, insecure=True, compression=kind, timeout=TIMEOUT_SECONDS)
    url = f"http://{endpoint}/v1/traces"
    return HttpSpanExporter(url, compression=Compression(compression), timeout=TIMEOUT_SECONDS)


def make_span(tracer: Tracer, i: int) -> None:
    begin = START_NS + i * MS
    attributes = {
        "db.system.name": "redis",
        "db.operation.name": "GET",
        "tenant.id": f"tenant-{i % 3}",
        "cache.hit": i % 2 == 0,
        "cache.item.size": i,
        "ratio": i / 4 + 0.125,
        "text": "größer — 大",
    }
    span = tracer.start_span(f"GET {i}", kind=SpanKind.CLIENT, start_time=begin, attributes=attributes)
    if i % 10 == 0:
        span.set_status(StatusCode.ERROR, "no such key")
    span.add_event("looked up", timestamp=begin)
    span.end(begin + (i + 1) * MS)


def main(protocol: str, endpoint: str, compression: str, spans: int, pause_ms: int, service: str) -> None:
    resource = Resource({"service.name": service, "cloud.region": "eu-west-1"})
    provider = TracerProvider(resource=resource)
    processor = BatchSpanProcessor(
        exporter(protocol, endpoint, compression),
        max_queue_size=spans + BATCH_SPANS,
        max_export_batch_size=BATCH_SPANS,
        schedule_delay_millis=100,
    )
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("exporter")
    for i in range(spans):
        make_span(tracer, i)
        time.sleep(pause_ms / 1000)
    processor.force_flush(TIMEOUT_SECONDS * 1000)
    provider.shutdown()
    print(json.dumps({"sent": spans}))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
