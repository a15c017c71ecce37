"""The collector's own spans, to any OTLP endpoint: itself too, without one export leading to the next.

The payload of an own export names this process by a random id in its resource. Work that is for such requests
alone is not traced, so an idle collector that traces itself falls silent, and a busy one makes no more spans than
one that exports elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.trace import NoOpTracer, Tracer

from collector.pipeline import TraceRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.util.types import AttributeValue


SAMPLE_SECONDS = 1.0
_LAST_EXPORT_SECONDS = 2.0
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Tracing:
    """Makes spans, or none at all: the default."""

    def __init__(
        self,
        provider: TracerProvider | None = None,
        marker: bytes = b"",
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """`marker` is what the payloads of the provider's exports have in them and no others have.

        `give_up` ends an export that is on.
        """
        self._provider = provider
        self._give_up = give_up
        self._tracer: Tracer = provider.get_tracer("spanlake.collector") if provider else NoOpTracer()
        self._marker = marker
        self._sampled_at = -SAMPLE_SECONDS

    def is_own(self, requests: Iterable[TraceRequest]) -> bool:
        """Whether all of these requests are own exports."""
        return self._provider is not None and all(self._marker in request.payload for request in requests)

    def is_sampled(self) -> bool:
        """Whether to make a span of frequent work: once in SAMPLE_SECONDS, in one thread."""
        now = time.monotonic()
        if self._provider is None or now - self._sampled_at < SAMPLE_SECONDS:
            return False
        self._sampled_at = now
        return True

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, AttributeValue], *, is_own: bool = False) -> Iterator[None]:
        """A span of the work in the `with` block, below the one around it; none of work for own exports alone."""
        if self._provider is None or is_own:
            yield
            return
        with self._tracer.start_as_current_span(name, attributes=dict(attributes)):
            yield

    def record(self, name: str, started_at_ns: int, attributes: Mapping[str, AttributeValue]) -> None:
        """A span of work that began at a Unix time and ends now."""
        self._tracer.start_span(name, attributes=dict(attributes), start_time=started_at_ns).end()

    def stop(self) -> None:
        """Export what is left, for at most two seconds; from then on no spans are made. Safe to call twice."""
        provider, self._provider, self._tracer = self._provider, None, NoOpTracer()
        if provider is None:
            return
        last_export = threading.Thread(target=provider.shutdown, name="last export", daemon=True)
        last_export.start()
        last_export.join(_LAST_EXPORT_SECONDS)
        if last_export.is_alive():
            self._give_up()


def start(endpoint: str) -> Tracing:
    """Export to `endpoint`, or make no spans where it is empty.

    OTLP's own variables keep their meaning: OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, _CERTIFICATE, _COMPRESSION and
    _PROTOCOL, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_SDK_DISABLED.
    """
    if not endpoint:
        return Tracing()
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - most go without
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - as above

    marker = uuid.uuid4().hex
    named = Resource(
        {"service.name": "spanlake-collector", "service.version": version("spanlake"), "service.instance.id": marker}
    )
    always = Resource({"spanlake.collector.id": marker, "process.pid": os.getpid()})
    resource = named.merge(OTELResourceDetector().detect()).merge(always)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _exporter(endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, marker.encode(), exporter.shutdown)


def _exporter(endpoint: str) -> SpanExporter:
    protocol = next(filter(None, map(os.environ.get, _PROTOCOL_VARIABLES)), "grpc")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - only the protocol that is used

        return OTLPSpanExporter(endpoint)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter  # noqa: PLC0415 - only the protocol that is used

    path = "" if urlsplit(endpoint).path.strip("/") else "/v1/traces"
    return trace_exporter.OTLPSpanExporter(endpoint.rstrip("/") + path)
