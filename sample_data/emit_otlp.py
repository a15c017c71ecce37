"""Serialized requests straight to an OTLP endpoint, several at a time: much faster than an SDK."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import SplitResult, urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sample_data.access import Access
from sample_data.access import access as own_access

PROTOCOLS = ("grpc", "http/protobuf")
TRACES_PATH = "/v1/traces"
IN_FLIGHT_MAX = 8
GIVE_UP_SECONDS = 60.0
_ATTEMPT_SECONDS = 10.0
_BACKOFF_SECONDS_MAX = 2.0
_EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_RETRYABLE_STATUS = {429, 502, 503, 504}
_RETRYABLE_CODES = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_logger = logging.getLogger(__name__)


class RetryError(Exception):
    """The receiver may take the same request later."""


class RefusedError(Exception):
    """The receiver will never take this request."""


class Transport(Protocol):
    """One way to an endpoint; used by several threads at once."""

    def export(self, payload: bytes) -> bytes:
        """Send a request, return the serialized response. Raises RetryError or RefusedError."""
        ...

    def close(self) -> None:
        """Give up the connections."""
        ...


class OtlpEmitter:
    """Sends requests from IN_FLIGHT_MAX threads; a context manager that waits for all answers at its end."""

    def __init__(self, transport: Transport, stop: threading.Event, give_up_seconds: float = GIVE_UP_SECONDS) -> None:
        self._transport = transport
        self._stop = stop
        self._give_up_seconds = give_up_seconds
        self._threads = ThreadPoolExecutor(IN_FLIGHT_MAX, thread_name_prefix="otlp")
        self._room = threading.Semaphore(2 * IN_FLIGHT_MAX)
        self._lock = threading.Lock()
        self.unacknowledged_spans = 0

    def send(self, payload: bytes, spans: int) -> None:
        """Send a request of so many spans in the background. Waits while too many are under way."""
        self._room.acquire()
        self._threads.submit(self._deliver, payload, spans).add_done_callback(self._finished)

    def _finished(self, _: Future[None]) -> None:
        self._room.release()

    def _deliver(self, payload: bytes, spans: int) -> None:
        missing = spans
        try:
            response = ExportTraceServiceResponse.FromString(self._retrying(payload))
            missing = response.partial_success.rejected_spans
            if missing:
                _logger.warning("%d spans rejected: %s", missing, response.partial_success.error_message)
        except (RetryError, RefusedError) as error:
            _logger.warning("%d spans not delivered: %s", spans, error)
        finally:
            with self._lock:
                self.unacknowledged_spans += missing

    def _retrying(self, payload: bytes) -> bytes:
        deadline = time.monotonic() + self._give_up_seconds
        backoff_seconds = 0.1
        while True:
            try:
                return self._transport.export(payload)
            except RetryError:
                if time.monotonic() + backoff_seconds > deadline or self._stop.wait(backoff_seconds):
                    raise
                backoff_seconds = min(2 * backoff_seconds, _BACKOFF_SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=True)
        self._transport.close()


class GrpcTransport:
    """OTLP/gRPC on one channel."""

    def __init__(self, endpoint: SplitResult, access: Access) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        self._metadata = tuple(access.headers.items())
        if endpoint.scheme == "https":
            self._channel = grpc.secure_channel(endpoint.netloc, access.grpc_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(endpoint.netloc, options)
        self._export: Callable[..., bytes] = self._channel.unary_unary(_EXPORT_METHOD)

    def export(self, payload: bytes) -> bytes:
        """Send a request, return the serialized response."""
        try:
            return self._export(payload, timeout=_ATTEMPT_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            family = RetryError if error.code() in _RETRYABLE_CODES else RefusedError
            raise family(f"{error.code().name}: {error.details()}") from error

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class HttpTransport:
    """OTLP/HTTP with protobuf, one kept connection a thread."""

    def __init__(self, endpoint: SplitResult, access: Access) -> None:
        self._endpoint = endpoint
        self._headers = {"Content-Type": "application/x-protobuf", **access.headers}
        self._tls = access.ssl_context() if endpoint.scheme == "https" else None
        self._path = traces_path(endpoint)
        self._of_thread = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            netloc = self._endpoint.netloc
            if self._tls is None:
                connection = http.client.HTTPConnection(netloc, timeout=_ATTEMPT_SECONDS)
            else:
                connection = http.client.HTTPSConnection(netloc, timeout=_ATTEMPT_SECONDS, context=self._tls)
            self._of_thread.connection = connection
            self._opened.append(connection)
        return connection

    def export(self, payload: bytes) -> bytes:
        """Send a request, return the serialized response."""
        connection = self._connection()
        try:
            connection.request("POST", self._path, payload, self._headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise RetryError(f"{type(error).__name__}: {error}") from error
        if response.status == 200:
            return body
        family = RetryError if response.status in _RETRYABLE_STATUS else RefusedError
        raise family(f"HTTP status {response.status} from {self._endpoint.netloc}{self._path}")

    def close(self) -> None:
        """Close every connection."""
        for connection in self._opened:
            connection.close()


def parse_endpoint(endpoint: str) -> SplitResult:
    """Split a URL. Raises ValueError unless it is http or https with a host and a port."""
    url = urlsplit(endpoint)
    if url.scheme not in {"http", "https"} or not url.hostname or not url.port:
        raise ValueError(f"endpoint is {endpoint!r}, expected a URL such as http://127.0.0.1:4317")
    return url


def traces_path(endpoint: SplitResult) -> str:
    """The path of an OTLP/HTTP endpoint's traces: as given, or below the base URL."""
    path = endpoint.path.rstrip("/")
    return path if path.endswith(TRACES_PATH) else path + TRACES_PATH


def open_transport(endpoint: str, protocol: str, access: Access | None = None) -> Transport:
    """The transport of one of PROTOCOLS; `access` None is that of this process (see `sample_data.access`).

    Raises ValueError for another protocol or for an endpoint that is no URL, OSError for a TLS file that cannot be
    used.
    """
    url = parse_endpoint(endpoint)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    access = access or own_access()
    return GrpcTransport(url, access) if protocol == "grpc" else HttpTransport(url, access)
