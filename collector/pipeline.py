"""What the stages of the collector hand to each other. Each stage knows only the next one's one method."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One export request as received: a decompressed, serialized `ExportTraceServiceRequest`.

    `tenant` is the tenant that the transport names (header), None where it names none; `transport` is grpc or http,
    empty where the request came from a file. `digest` is what `spool.digest_of` gives, where that was asked before.
    """

    payload: bytes
    received_at_ns: int
    tenant: str | None = None
    transport: str = ""
    digest: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a request: all of it is durable but for `rejected_spans`, which `message` explains.

    `spans` is how many this request added: none where it repeats one that was stored before. Answers that tell
    a client the same are equal.
    """

    rejected_spans: int = 0
    message: str = ""
    spans: int = field(default=0, compare=False)


class TraceSink(Protocol):
    """Takes requests from the servers."""

    def accept(self, request: TraceRequest) -> Awaitable[Accepted]:
        """Take over a request; what is returned is done only once every accepted span of it is durable on disk.

        It raises RetryableError (nothing was kept, the client should send it again) or PermanentError.
        """
        ...
