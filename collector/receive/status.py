"""The one table from errors to what a client is told: gRPC code, HTTP status, when to come back.

Source of the rules: OTLP specification 1.11, sections "OTLP/gRPC Response" and "OTLP/HTTP Response".
A client drops the data on every code that is not retryable, UNKNOWN, INTERNAL and 500 included, so a fault
that spanlake does not know is told as UNAVAILABLE / 503.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
import orjson
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from collector.errors import (
    InvalidRequestError,
    PermanentError,
    RequestTooLargeError,
    RetryableError,
    SpanlakeError,
)
from collector.receive.log import log
from collector.tenants.errors import PermissionDeniedError, QuotaExceededError, UnauthenticatedError

MESSAGE_CHARS_MAX = 1000
"""gRPC carries a message in headers, of which clients take 8 KiB by default."""


class NotFoundError(PermanentError):
    """No OTLP service lives at this path."""


class MethodNotAllowedError(PermanentError):
    """OTLP/HTTP is POST and nothing else."""


class UnsupportedMediaTypeError(PermanentError):
    """The Content-Type is neither protobuf nor JSON."""


class UnsupportedEncodingError(PermanentError):
    """The Content-Encoding is none of those that spanlake reads."""


class HeadersTooLargeError(PermanentError):
    """The head or the trailers of an HTTP request exceed their bound."""


_Code = grpc.StatusCode
_TABLE: tuple[tuple[type[SpanlakeError], grpc.StatusCode, int], ...] = (  # the first that matches
    # Never 429: OTLP/HTTP exporters of Python drop what it answers.
    (QuotaExceededError, _Code.RESOURCE_EXHAUSTED, 503),
    (RetryableError, _Code.UNAVAILABLE, 503),
    (UnauthenticatedError, _Code.UNAUTHENTICATED, 401),
    (PermissionDeniedError, _Code.PERMISSION_DENIED, 403),
    (RequestTooLargeError, _Code.RESOURCE_EXHAUSTED, 413),
    (InvalidRequestError, _Code.INVALID_ARGUMENT, 400),
    (NotFoundError, _Code.NOT_FOUND, 404),
    (MethodNotAllowedError, _Code.UNIMPLEMENTED, 405),
    (UnsupportedMediaTypeError, _Code.INVALID_ARGUMENT, 415),
    (UnsupportedEncodingError, _Code.UNIMPLEMENTED, 415),
    (HeadersTooLargeError, _Code.INVALID_ARGUMENT, 431),
    (PermanentError, _Code.INVALID_ARGUMENT, 400),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What to tell a client. `retry_after_seconds` is None where it must not send the data again."""

    grpc_code: grpc.StatusCode
    http_status: int
    message: str
    retry_after_seconds: float | None

    @property
    def retry_after_header(self) -> str | None:
        """Value of the HTTP header Retry-After: whole seconds, at least 1."""
        if self.retry_after_seconds is None:
            return None
        return str(max(1, math.ceil(self.retry_after_seconds)))

    def protobuf(self) -> bytes:
        """A serialized google.rpc.Status, with RetryInfo where the client may come back."""
        status = Status(code=self.grpc_code.value[0], message=self.message)
        if self.retry_after_seconds is not None:
            status.details.add().Pack(self._retry_info())
        return bytes(status.SerializeToString())

    def json(self) -> bytes:
        """The same Status as JSON, without details: HTTP clients read Retry-After."""
        return orjson.dumps({"code": self.grpc_code.value[0], "message": self.message})

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """RetryInfo for gRPC clients, where the specification puts it and where the Python SDK looks."""
        if self.retry_after_seconds is None:
            return ()
        return (
            ("grpc-status-details-bin", self.protobuf()),
            ("google.rpc.retryinfo-bin", bytes(self._retry_info().SerializeToString())),
        )

    def _retry_info(self) -> RetryInfo:
        nanos = max(0, round((self.retry_after_seconds or 0.0) * 1e9))
        return RetryInfo(retry_delay=Duration(seconds=nanos // 10**9, nanos=nanos % 10**9))


def refusal(error: BaseException) -> Refusal:
    """What to tell a client about an error. One that is not on the table is logged, and is retryable."""
    for kind, grpc_code, http_status in _TABLE:
        if isinstance(error, kind):
            after = error.retry_after_seconds if isinstance(error, RetryableError) else None
            return Refusal(grpc_code, http_status, _short(str(error)), after)
    log.error("A request failed unexpectedly; the client was told to send it again", exc_info=error)
    return refusal(
        RetryableError("the collector failed unexpectedly, its log says why: send the request again")
    )


def _short(message: str) -> str:
    return message if len(message) <= MESSAGE_CHARS_MAX else message[: MESSAGE_CHARS_MAX - 1] + "…"
