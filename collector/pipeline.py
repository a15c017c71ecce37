"""What the stages of the collector hand to each other. Each stage knows only the next one's one method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One export request as received: a decompressed, serialized `ExportTraceServiceRequest`.

    `tenant` is the tenant that the transport names (header), None where it names none.
    """

    payload: bytes
    received_at_ns: int
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a request: all of it is durable but for `rejected_spans`, which `message` explains."""

    rejected_spans: int = 0
    message: str = ""


class TraceSink(Protocol):
    """Takes requests from the servers."""

    async def accept(self, request: TraceRequest) -> Accepted:
        """Return only once every accepted span of the request is durable on disk.

        Raises RetryableError (nothing was kept, the client should send it again) or PermanentError.
        """
        ...
