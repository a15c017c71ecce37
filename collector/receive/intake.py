"""From a server to the sink: sender, admission, and an answer that a lost client cannot disturb."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from collector.config import CollectorConfig
from collector.pipeline import Accepted, TraceRequest, TraceSink
from collector.receive.admission import Admission, Ticket
from collector.receive.log import log
from collector.receive.memory import Memory
from collector.receive.refusals import Refusals
from collector.receive.workers import Workers
from collector.tenants.gate import Gate, Sender


class Reception:
    """A request while it comes in: its sender, what it holds of the bounds, and its message, None while unread."""

    __slots__ = ("message", "sender", "ticket")

    def __init__(self, sender: Sender, ticket: Ticket) -> None:
        self.sender = sender
        self.ticket = ticket
        self.message: bytes | None = None


class Intake:
    """Hands requests of both servers to the sink, within the bounds of the configuration."""

    def __init__(self, config: CollectorConfig, sink: TraceSink, gate: Gate) -> None:
        self._sink = sink
        self.gate = gate
        self._unstored: set[str] = set()
        self.refusals = Refusals()
        self.workers = Workers()
        self.memory = Memory(config.memory_bytes_max)
        self.admission = Admission(config.requests_in_flight_max, config.pending_bytes_max)

    @contextmanager
    def receive(self, sender: Sender) -> Iterator[Reception]:
        """Take in one request, of which nothing is read yet. Counts for its sender what is refused.

        Raises RetryableError beyond the bounds.
        """
        reception: Reception | None = None
        try:
            self._check_memory()
            with self.admission.ticket(sender.account) as ticket:
                reception = Reception(sender, ticket)
                yield reception
        except Exception as error:
            self.gate.refused(sender, reception.message if reception else None, error)
            raise

    def check_quota(self, sender: Sender) -> None:
        """Raise QuotaExceededError while the sender is over its quota."""
        self.gate.check(sender)

    def _check_memory(self) -> None:
        """A request that is alone passes: it cannot be those on their way that hold so much."""
        if not self.admission.is_idle and self.memory.is_over():
            raise self.memory.error()

    async def deliver(self, reception: Reception, payload: bytes, transport: str) -> Accepted:
        """Hand a request, received in full, to the sink; its ticket holds its bytes already.

        Where the caller is cancelled, because its client is gone, the sink goes on, and the bytes count as
        pending until it is done. Raises what the sink raises, and RetryableError beyond the bounds.
        """
        reception.message = payload
        reception.ticket.enter()
        if not payload:
            return Accepted()
        sender = reception.sender
        held = reception.ticket.hand_over()
        request = TraceRequest(payload, time.time_ns(), sender.tenant, transport)
        self.gate.charge(sender, len(payload))
        delivery = asyncio.ensure_future(self._sink.accept(request))
        delivery.add_done_callback(partial(self._settle, request, sender, held))
        return await asyncio.shield(delivery)

    def _settle(
        self, request: TraceRequest, sender: Sender, held: Ticket, delivery: asyncio.Future[Accepted]
    ) -> None:
        """What is to be done when the sink is done, whether its client still waits or not."""
        held.release()
        if delivery.cancelled() or delivery.exception() is not None:
            self.gate.charge(sender, -len(request.payload))
        else:
            self.gate.settle(sender, len(request.payload), delivery.result())

    def close(self) -> None:
        """Let go of the worker threads, once both servers have stopped."""
        self.workers.close()

    def note_unstored(self, signal: str) -> None:
        """Say in the log, once a signal, that its data is answered with success and dropped."""
        if signal not in self._unstored:
            self._unstored.add(signal)
            log.warning(f"OTLP {signal} arrive and are not stored: spanlake stores traces")


def response(accepted: Accepted) -> ExportTraceServiceResponse:
    """The answer to a client; `partial_success` is unset where there is nothing to say."""
    answer = ExportTraceServiceResponse()
    if accepted.rejected_spans:
        answer.partial_success.rejected_spans = accepted.rejected_spans
    if accepted.message:
        answer.partial_success.error_message = accepted.message
    return answer
