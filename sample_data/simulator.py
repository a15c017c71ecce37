"""The live simulation: a stretch of history first, sent fast, then traffic as it happens through the SDK."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from math import ceil

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter

from sample_data.emit_files import OPERATIONS_PER_SECOND, SPANS_PER_REQUEST, TENANTS
from sample_data.emit_otlp import OtlpEmitter, open_transport, parse_endpoint, traces_path
from sample_data.emit_sdk import SdkEmitter
from sample_data.encoding import protobuf_request
from sample_data.incidents.catalogue import Order
from sample_data.span import Span
from sample_data.stream import NS_PER_SECOND, Batches, Stream
from sample_data.truth import Truth

DEMO_HISTORY_SECONDS = 31 * 60.0
_STEP_SECONDS = 0.05


@dataclass(frozen=True)
class Settings:
    """A run. `start_second` (since the epoch) None means now. `speed` is simulated per real seconds, 0 as fast as
    possible. `history_seconds` lie before the start; `duration_seconds` None goes on until it is stopped.
    `incidents` begin so long after the start as they say.
    """

    endpoint: str = "http://127.0.0.1:4317"
    protocol: str = "grpc"
    operations_per_second: float = OPERATIONS_PER_SECOND
    seed: int = 1
    tenants: int = TENANTS
    history_seconds: float = 0.0
    start_second: int | None = None
    duration_seconds: float | None = None
    speed: float = 1.0
    incidents: tuple[Order, ...] = ()


def run(
    endpoint: str,
    protocol: str,
    *,
    rate_per_second: float = OPERATIONS_PER_SECOND,
    seed: int = 1,
    history_seconds: float = DEMO_HISTORY_SECONDS,
    stop: threading.Event | None = None,
) -> Truth:
    """Send history and then live traffic, `rate_per_second` operations of about 3.7 spans, until `stop` is set.

    `protocol` is `grpc` or `http/protobuf`. Raises ValueError for settings that cannot be.
    """
    settings = Settings(
        endpoint=endpoint,
        protocol=protocol,
        operations_per_second=rate_per_second,
        seed=seed,
        history_seconds=history_seconds,
    )
    return simulate(settings, stop or threading.Event())


def simulate(settings: Settings, stop: threading.Event) -> Truth:
    """Run until the duration is over or `stop` is set; then let the operations under way end, and flush.

    Raises ValueError for settings that cannot be; an endpoint that fails is no error, but shows as
    `unacknowledged_spans`.
    """
    if settings.speed < 0 or settings.history_seconds < 0:
        raise ValueError(
            f"speed is {settings.speed} and history {settings.history_seconds} s, expected both to be at least 0"
        )
    exporter = open_exporter(settings.endpoint, settings.protocol)
    live_second = settings.start_second if settings.start_second is not None else int(time.time())
    stream = Stream(
        seed=settings.seed,
        operations_per_second=settings.operations_per_second,
        tenants=settings.tenants,
        start_second=live_second - ceil(settings.history_seconds),
        incidents=settings.incidents,
        run_start_second=live_second,
    )
    truth = Truth(incidents=stream.truths)
    if settings.history_seconds:
        _send_history(settings, stream, live_second, stop, truth)
    with SdkEmitter(stream.topology, exporter) as emitter:
        _send_live(settings, stream, emitter, stop, truth)
    truth.unacknowledged_spans += emitter.unacknowledged_spans
    return truth


def open_exporter(endpoint: str, protocol: str) -> SpanExporter:
    """The SDK's OTLP exporter for this protocol. Raises ValueError for another one, or an endpoint that is no URL."""
    url = parse_endpoint(endpoint)
    if protocol == "grpc":
        return GrpcSpanExporter(endpoint=endpoint, insecure=url.scheme == "http")
    if protocol == "http/protobuf":
        return HttpSpanExporter(endpoint=url._replace(path=traces_path(url)).geturl())
    raise ValueError(f"protocol is {protocol!r}, expected grpc or http/protobuf")


def _send_history(settings: Settings, stream: Stream, live_second: int, stop: threading.Event, truth: Truth) -> None:
    """Send what lies before the live part. In real time that includes what passes while this is sent."""
    real_time = settings.start_second is None and settings.speed == 1.0
    by_process = Batches(SPANS_PER_REQUEST)
    with OtlpEmitter(open_transport(settings.endpoint, settings.protocol), stop) as emitter:

        def send(batch: list[Span]) -> None:
            truth.add(stream.topology, batch)
            payload = protobuf_request(stream.topology.instances[batch[0].instance], batch)
            emitter.send(payload, len(batch))

        while not stop.is_set() and stream.second < (int(time.time()) if real_time else live_second):
            for batch in by_process.add(stream.advance()):
                send(batch)
        for batch in by_process.rest():
            send(batch)
    truth.unacknowledged_spans += emitter.unacknowledged_spans


def _send_live(settings: Settings, stream: Stream, emitter: SdkEmitter, stop: threading.Event, truth: Truth) -> None:
    pace = _Pace(stream.now_ns, settings)
    until_ns = None
    if settings.duration_seconds is not None:
        until_ns = stream.now_ns + ceil(settings.duration_seconds) * NS_PER_SECOND

    def emit(spans: list[Span]) -> None:
        truth.add(stream.topology, spans)
        emitter.emit(spans)

    while not stop.is_set() and (until_ns is None or stream.now_ns < until_ns):
        pace.wait(stream.now_ns, stop)
        for step in _steps(stream.advance()):
            pace.wait(step[-1].end_ns, stop)
            emit(step)
    emit(stream.rest())


def _steps(spans: list[Span]) -> list[list[Span]]:
    """Spans that end within the same _STEP_SECONDS, in order."""
    steps: dict[int, list[Span]] = {}
    for span in spans:
        steps.setdefault(int(span.end_ns / (_STEP_SECONDS * NS_PER_SECOND)), []).append(span)
    return list(steps.values())


class _Pace:
    """Holds simulated time back to `speed` times the real one."""

    def __init__(self, from_ns: int, settings: Settings) -> None:
        self._speed = settings.speed
        self._from_ns = from_ns
        behind_seconds = 0.0
        if settings.start_second is None and settings.speed == 1.0:
            # What is sent as it happens bears the time at which it is sent.
            behind_seconds = (time.time_ns() - from_ns) / NS_PER_SECOND
        self._began = time.monotonic() - behind_seconds

    def wait(self, simulated_ns: int, stop: threading.Event) -> None:
        """Return when this simulated time has come, or at once when stopped."""
        if self._speed:
            due = self._began + (simulated_ns - self._from_ns) / NS_PER_SECOND / self._speed
            ahead_seconds = due - time.monotonic()
            if ahead_seconds > 0:
                stop.wait(ahead_seconds)
