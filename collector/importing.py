"""Sends requests of OTLP files into a sink: a running collector's endpoint, or the ingest of a data folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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

REQUESTS_IN_FLIGHT_MAX = 8
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
) -> list[FileReport]:
    """Send every request of every file; returns one report a file. A bad request hinders no other one.

    `on_progress` is told file and bytes read of it. A request that `marks` has is skipped; others get one.

    Raises OperatorError where a file cannot be opened, or where the sink refuses for GIVE_UP_SECONDS what could be
    accepted later.
    """
    reports = []
    for path in paths:
        report = FileReport(path)
        records = read_requests(path, request_bytes_max, partial(on_progress, path))
        await _import_file(records, sink, report, marks)
        reports.append(report)
    return reports


async def _import_file(
    records: Iterator[Record], sink: TraceSink, report: FileReport, marks: ImportMarks | None
) -> None:
    slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT_MAX)
    try:
        async with asyncio.TaskGroup() as tasks:
            while (record := await asyncio.to_thread(_next, records, report.path)) is not None:
                if record.problem:
                    report.fail(record.offset, record.problem)
                    continue
                request = TraceRequest(record.payload, time.time_ns())
                if marks is not None and marks.has(request):
                    report.known += 1
                    continue
                await slots.acquire()
                task = tasks.create_task(_send(record.offset, request, sink, report, marks))
                task.add_done_callback(lambda _: slots.release())
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


def _next(records: Iterator[Record], path: Path) -> Record | None:
    try:
        return next(records, None)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}; expected a file of OTLP requests") from error


async def _send(
    offset: int, request: TraceRequest, sink: TraceSink, report: FileReport, marks: ImportMarks | None
) -> None:
    try:
        spans = _count_spans(request.payload)
        accepted = await _accept(sink, request)
    except (PermanentError, DecodeError) as error:
        report.fail(offset, str(error))
        return
    if marks is not None:
        marks.add(request)
    report.requests += 1
    report.spans += spans - accepted.rejected_spans
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
