"""Sends requests of OTLP files into a sink: a running collector's endpoint, or the ingest of a data folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector.errors import OperatorError, PermanentError, RetryableError
from collector.import_marks import ImportMarks
from collector.otlp_files import Record, read_requests
from collector.pipeline import Accepted, TraceRequest, TraceSink
from collector.spool import digest_of

REQUESTS_IN_FLIGHT_MAX = 8
OWN_REQUESTS_IN_FLIGHT_MAX = 64
"""Into a data folder: requests that are there together are decoded together, at half the cost of one alone."""
BYTES_IN_FLIGHT_MAX = 16 * 2**20
_READ_BYTES = BYTES_IN_FLIGHT_MAX // 4
_RECORD_COST_BYTES = 1024
"""What a record costs besides its bytes."""
_FILLING_SECONDS = 0.05
GIVE_UP_SECONDS = 30.0
PROBLEMS_KEPT_MAX = 20
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_RETRYABLE_CODES = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


@dataclass
class FileReport:
    """What became of a file. `known` requests were imported before, and skipped.

    `problems` holds the first PROBLEMS_KEPT_MAX of `failed` requests, with offsets.
    """

    path: Path
    requests: int = 0
    spans: int = 0
    rejected_spans: int = 0
    failed: int = 0
    known: int = 0
    problems: list[str] = field(default_factory=list)

    def fail(self, offset: int, problem: str) -> None:
        """Note a request that was not imported."""
        self.failed += 1
        if len(self.problems) < PROBLEMS_KEPT_MAX:
            self.problems.append(f"{self.path} at byte {offset}: {problem}")


class EndpointSink:
    """The TraceSink of a collector elsewhere, over OTLP/gRPC."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str] | None = None, certificate: Path | None = None
    ) -> None:
        """`endpoint` is HOST:PORT or an http:// or https:// URL; `certificate` a PEM file of the authorities to trust,
        None for those that gRPC brings. Raises OperatorError. Use it in an event loop.
        """
        url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        if url.scheme not in ("http", "https") or not url.hostname or url.path.strip("/"):
            raise OperatorError(
                f"--endpoint {endpoint!r}: expected HOST:PORT or http(s)://HOST:PORT of a collector's OTLP/gRPC "
                "server, such as 127.0.0.1:4317"
            )
        self._channel = (
            grpc.aio.secure_channel(url.netloc, _credentials(certificate))
            if url.scheme == "https"
            else grpc.aio.insecure_channel(url.netloc)
        )
        self._export = self._channel.unary_unary(EXPORT)
        self._metadata = tuple((name.lower(), value) for name, value in (headers or {}).items())

    async def accept(self, request: TraceRequest) -> Accepted:
        """See TraceSink: raises RetryableError or PermanentError as the collector's status says."""
        try:
            answer = await self._export(request.payload, timeout=GIVE_UP_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        success = ExportTraceServiceResponse.FromString(answer).partial_success
        return Accepted(success.rejected_spans, success.error_message)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def _credentials(certificate: Path | None) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(certificate.read_bytes() if certificate else None)
    except OSError as error:
        raise OperatorError(
            f"--certificate {str(certificate)!r} cannot be read: {error.strerror}; expected a PEM file of authorities"
        ) from error


def _failure(error: grpc.aio.AioRpcError) -> RetryableError | PermanentError:
    message = f"{error.code().name}: {error.details()}"
    seconds = _retry_seconds(error)
    if error.code() in _RETRYABLE_CODES or (error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and seconds):
        return RetryableError(message, seconds or 1.0)
    return PermanentError(message)


def _retry_seconds(error: grpc.aio.AioRpcError) -> float | None:
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    for detail in Status.FromString(details).details if details else ():
        info = RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


async def import_files(
    paths: Iterable[Path],
    sink: TraceSink,
    request_bytes_max: int,
    on_progress: Callable[[Path, int], None],
    marks: ImportMarks | None = None,
    requests_in_flight_max: int = REQUESTS_IN_FLIGHT_MAX,
    is_filling: Callable[[], bool] = lambda: False,
) -> list[FileReport]:
    """Send every request of every file; returns one report a file. A bad request hinders no other one.

    `on_progress` is told file and bytes read of it. A request that `marks` has is skipped; others get one. Those on
    their way hold at most BYTES_IN_FLIGHT_MAX, or are one; while the sink `is_filling` none is sent.

    Raises OperatorError where a file cannot be opened, or where the sink refuses for GIVE_UP_SECONDS what could be
    accepted later.
    """
    reports = []
    for path in paths:
        report = FileReport(path)
        records = read_requests(path, request_bytes_max, partial(on_progress, path))
        await _import_file(records, sink, report, marks, _InFlight(requests_in_flight_max, is_filling))
        reports.append(report)
    return reports


class _InFlight:
    """Bounds what is on its way, for one who sends; used in one event loop."""

    def __init__(self, requests_max: int, is_filling: Callable[[], bool]) -> None:
        self._requests_max = requests_max
        self._is_filling = is_filling
        self._requests = 0
        self._bytes = 0
        self._freed = asyncio.Event()

    async def enter(self, size_bytes: int) -> None:
        """Wait for room for a request of this size; one that is alone has room."""
        while self._requests and (
            self._requests >= self._requests_max or self._bytes + size_bytes > BYTES_IN_FLIGHT_MAX
        ):
            self._freed.clear()
            await self._freed.wait()
        while self._is_filling():
            await asyncio.sleep(_FILLING_SECONDS)
        self._requests += 1
        self._bytes += size_bytes

    def leave(self, size_bytes: int, _: object = None) -> None:
        """A request of this size has its answer."""
        self._requests -= 1
        self._bytes -= size_bytes
        self._freed.set()


async def _import_file(
    records: Iterator[Record], sink: TraceSink, report: FileReport, marks: ImportMarks | None, in_flight: _InFlight
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            while some := await asyncio.to_thread(_some, records, report.path):
                for offset, request in some:
                    if isinstance(request, str):
                        report.fail(offset, request)
                    elif marks is not None and marks.has(request):
                        report.known += 1
                    else:
                        size_bytes = len(request.payload)
                        await in_flight.enter(size_bytes)
                        task = tasks.create_task(_send(offset, request, sink, report, marks))
                        task.add_done_callback(partial(in_flight.leave, size_bytes))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _some(records: Iterator[Record], path: Path) -> list[tuple[int, TraceRequest | str]]:
    """The next requests, or the problems in their place, with their offsets: _READ_BYTES of them, or one."""
    found: list[tuple[int, TraceRequest | str]] = []
    size_bytes = 0
    try:
        while size_bytes < _READ_BYTES and (record := next(records, None)) is not None:
            request = TraceRequest(record.payload, time.time_ns())
            found.append((record.offset, record.problem or replace(request, digest=digest_of(request))))
            size_bytes += len(record.payload) + _RECORD_COST_BYTES
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}; expected a file of OTLP requests") from error
    return found


async def _send(
    offset: int, request: TraceRequest, sink: TraceSink, report: FileReport, marks: ImportMarks | None
) -> None:
    try:
        accepted = await _accept(sink, request)
        # A sink that is elsewhere, or had the request before, does not tell how many spans it has.
        spans = accepted.spans or _count_spans(request.payload) - accepted.rejected_spans
    except (PermanentError, DecodeError) as error:
        report.fail(offset, str(error))
        return
    if marks is not None:
        marks.add(request)
    report.requests += 1
    report.spans += spans
    report.rejected_spans += accepted.rejected_spans
    if accepted.rejected_spans:
        report.problems.append(f"{report.path} at byte {offset}: {accepted.message}")
        del report.problems[PROBLEMS_KEPT_MAX:]


async def _accept(sink: TraceSink, request: TraceRequest) -> Accepted:
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while True:
        try:
            return await sink.accept(request)
        except RetryableError as error:
            if time.monotonic() + error.retry_after_seconds > give_up_at:
                raise OperatorError(
                    f"nothing was accepted for {GIVE_UP_SECONDS:g} s ({error}): expected a collector that is "
                    "running and not overloaded; start it, or correct --endpoint, then import again"
                ) from error
            await asyncio.sleep(error.retry_after_seconds)


def _count_spans(payload: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(payload)
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
