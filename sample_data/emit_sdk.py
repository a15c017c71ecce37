"""Spans through the real OpenTelemetry SDK and its OTLP exporters.

Every process of the platform has a tracer provider (its resource); they share one batch span processor, so that
a few threads and one connection carry them all.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace import SpanKind as SdkSpanKind

from sample_data.encoding import exception_attributes
from sample_data.span import SCOPE_NAME, SCOPE_VERSION, Span
from sample_data.topology import Instance, Topology

QUEUE_SPANS_MAX = 8192
_UNEXPORTED_SPANS_MAX = QUEUE_SPANS_MAX // 2
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class SdkEmitter:
    """Ends given spans through the SDK. For one thread; a context manager that flushes at its end."""

    def __init__(self, topology: Topology, exporter: SpanExporter) -> None:
        self._exporter = _CountingExporter(exporter)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=1000, max_export_batch_size=512
        )
        self._ids = _GivenIds()
        self._instances = topology.instances
        self._tracers: dict[int, Tracer] = {}
        self._ended_spans = 0

    def _tracer(self, index: int) -> Tracer:
        found = self._tracers.get(index)
        if found is None:
            found = self._tracers[index] = self._open_tracer(self._instances[index])
        return found

    def _open_tracer(self, instance: Instance) -> Tracer:
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource(dict(instance.attributes)),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_span_attributes=SpanLimits.UNSET, max_attribute_length=SpanLimits.UNSET),
        )
        provider.add_span_processor(self._processor)
        return provider.get_tracer(SCOPE_NAME, SCOPE_VERSION)

    @property
    def unacknowledged_spans(self) -> int:
        """Spans whose export failed."""
        return self._exporter.failed_spans

    def emit(self, spans: Sequence[Span]) -> None:
        """Start and end these spans at their own times. Waits while too many are not exported yet."""
        for span in spans:
            # The processor drops what its queue has no room for: wait before that.
            self._exporter.wait_until_done(self._ended_spans - _UNEXPORTED_SPANS_MAX)
            self._emit(span)
            self._ended_spans += 1

    def _emit(self, span: Span) -> None:
        self._ids.trace_id = int.from_bytes(span.trace_id, "big")
        self._ids.span_id = int.from_bytes(span.span_id, "big")
        sdk_span = self._tracer(span.instance).start_span(
            span.name,
            context=_parent(span),
            kind=_SDK_KINDS[span.kind],
            attributes=dict(span.attributes),
            links=[Link(_context(*link, is_remote=True)) for link in span.links],
            start_time=span.start_ns,
        )
        if span.exception:
            sdk_span.add_event("exception", dict(exception_attributes(span.exception)), timestamp=span.end_ns)
        if span.error:
            sdk_span.set_status(Status(StatusCode.ERROR, span.status_message or None))
        sdk_span.end(span.end_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processor.force_flush()
        self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK does not annotate it


_SDK_KINDS = {kind.value + 1: kind for kind in SdkSpanKind}


class _GivenIds(IdGenerator):
    """Hands out the ids that were set."""

    trace_id = 0
    span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _CountingExporter(SpanExporter):
    """Passes batches on, and knows how many spans are through."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._progress = threading.Condition()
        self._done_spans = 0
        self.failed_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            with self._progress:
                self._done_spans += len(spans)
                if result is not SpanExportResult.SUCCESS:
                    self.failed_spans += len(spans)
                self._progress.notify_all()
        return result

    def wait_until_done(self, spans: int) -> None:
        """Return once so many spans are exported, whether well or not."""
        if self._done_spans < spans:
            with self._progress:
                self._progress.wait_for(lambda: self._done_spans >= spans)

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _context(trace_id: bytes, span_id: bytes, *, is_remote: bool) -> SpanContext:
    return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote, _SAMPLED)


def _parent(span: Span) -> Context:
    if not span.parent_span_id:
        return Context()
    context = _context(span.trace_id, span.parent_span_id, is_remote=span.parent_is_remote)
    return set_span_in_context(NonRecordingSpan(context), Context())
