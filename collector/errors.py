"""The two families of errors that a client can be told: try again, or never again.

SpanlakeError
├── RetryableError      the same request may succeed later
│   └── OverloadedError     a bound was reached; carries a hint when to come back
├── PermanentError      the same request can never succeed
│   ├── InvalidRequestError     the bytes are no OTLP request
│   └── RequestTooLargeError    over `collector.request_bytes_max`
└── OperatorError       the process cannot start or go on; message says what to do (exit code 1)
"""

from __future__ import annotations


class SpanlakeError(Exception):
    """Base of every error that spanlake raises on purpose. The message is meant for a person."""


class RetryableError(SpanlakeError):
    """A fault that could pass: the client keeps the data and sends it again after `retry_after_seconds`.

    `refused_spans` is the number of spans in the refused request, None where it was not read so far.
    """

    def __init__(self, message: str, retry_after_seconds: float = 1.0, *, refused_spans: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.refused_spans = refused_spans


class OverloadedError(RetryableError):
    """A bound on memory, queue or disk was reached."""


class PermanentError(SpanlakeError):
    """The request can never be accepted; a client must not send it again."""


class InvalidRequestError(PermanentError):
    """The bytes are not a valid OTLP request."""


class RequestTooLargeError(PermanentError):
    """The request is over the configured limit, before or after decompression."""


class OperatorError(SpanlakeError):
    """Shown to the operator as it is: key, value, what was expected, what to do."""
