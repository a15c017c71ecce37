"""What the sink acknowledged, by transport: counted in front of it, in the event loop, once a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from time import perf_counter

from collector.pipeline import Accepted, TraceRequest, TraceSink
from collector.telemetry.latency import Latencies

TRANSPORTS = ("grpc", "http")


class Acknowledged:
    """A TraceSink in front of another: counts durable spans and measures how long their acknowledgement took."""

    def __init__(self, sink: TraceSink) -> None:
        self._sink = sink
        self.spans: Counter[str] = Counter()
        """Durable spans by transport; those of a repeated request count once."""
        self.latencies = {transport: Latencies() for transport in TRANSPORTS}
        """By transport, from a request received in full to its acknowledgement; refusals are not in it."""

    def accept(self, request: TraceRequest) -> asyncio.Future[Accepted]:
        """See TraceSink."""
        future = asyncio.ensure_future(self._sink.accept(request))
        future.add_done_callback(partial(self._count, request.transport, perf_counter()))
        return future

    def _count(self, transport: str, started: float, future: asyncio.Future[Accepted]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.spans[transport] += future.result().spans
            self.latencies[transport].record(perf_counter() - started)
