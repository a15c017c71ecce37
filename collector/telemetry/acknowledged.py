"""What the sink acknowledged, by transport: counted in front of it, in the event loop, once a request."""

from __future__ import annotations

from collections import Counter
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

    async def accept(self, request: TraceRequest) -> Accepted:
        """See TraceSink."""
        started = perf_counter()
        accepted = await self._sink.accept(request)
        self.spans[request.transport] += accepted.spans
        self.latencies[request.transport].record(perf_counter() - started)
        return accepted
