"""From a server to the sink: admission, tenant, and an answer that a lost client cannot disturb."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector.config import CollectorConfig
from collector.errors import InvalidRequestError
from collector.pipeline import Accepted, TraceRequest, TraceSink
from collector.receive.admission import Admission, Ticket
from collector.receive.log import log
from collector.receive.refusals import Refusals
from collector.receive.workers import Workers

TENANT_HEADER = "x-scope-orgid"


class Intake:
    """Hands requests of both servers to the sink, within the bounds of the configuration."""

    def __init__(self, config: CollectorConfig, sink: TraceSink) -> None:
        self._sink = sink
        self._deliveries: set[asyncio.Task[Accepted]] = set()
        self._unstored: set[str] = set()
        self.refusals = Refusals()
        self.workers = Workers()
        self.admission = Admission(config.requests_in_flight_max, config.pending_bytes_max)

    async def deliver(self, payload: bytes, tenant: str | None, ticket: Ticket, transport: str) -> Accepted:
        """Hand a request, received in full, to the sink; `ticket` holds its bytes already.

        Where the caller is cancelled, because its client is gone, the sink goes on, and the bytes count as
        pending until it is done. Raises what the sink raises, and RetryableError beyond the bounds.
        """
        ticket.enter()
        if not payload:
            return Accepted()
        held = ticket.hand_over()
        task = asyncio.create_task(self._accept(TraceRequest(payload, time.time_ns(), tenant, transport), held))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return await asyncio.shield(task)

    async def _accept(self, request: TraceRequest, held: Ticket) -> Accepted:
        with held:
            return await self._sink.accept(request)

    def close(self) -> None:
        """Let go of the worker threads, once both servers have stopped."""
        self.workers.close()

    def note_unstored(self, signal: str) -> None:
        """Say in the log, once a signal, that its data is answered with success and dropped."""
        if signal not in self._unstored:
            self._unstored.add(signal)
            log.warning(f"OTLP {signal} arrive and are not stored: spanlake stores traces")


def tenant_of(values: Iterable[str | bytes]) -> str | None:
    """The tenant that the values of X-Scope-OrgID name; None without a value or with an empty one.

    Raises InvalidRequestError where they disagree or are not UTF-8: data must not go to a wrong tenant.
    """
    distinct = set(values)
    if not distinct:
        return None
    if len(distinct) > 1:
        raise InvalidRequestError("X-Scope-OrgID names several tenants: send the header once a request")
    value = distinct.pop()
    try:
        name = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"X-Scope-OrgID = {value!r}: expected text in UTF-8") from error
    return name.strip() or None


def response(accepted: Accepted) -> ExportTraceServiceResponse:
    """The answer to a client; `partial_success` is unset where there is nothing to say."""
    answer = ExportTraceServiceResponse()
    if accepted.rejected_spans:
        answer.partial_success.rejected_spans = accepted.rejected_spans
    if accepted.message:
        answer.partial_success.error_message = accepted.message
    return answer
