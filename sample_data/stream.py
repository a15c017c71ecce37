"""Spans in the order in which they end, second by second: what every emitter consumes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from sample_data.incidents.catalogue import Order
from sample_data.incidents.incident import Platform
from sample_data.incidents.truth import Truth
from sample_data.model import Workload
from sample_data.span import Span
from sample_data.topology import Topology, build_topology
from sample_data.tracing import SpanBuilder

NS_PER_SECOND = 1_000_000_000

_by_end = attrgetter("end_ns", "span_id")


class Stream:
    """The platform's spans from a second on; the same arguments give the same spans, ids included."""

    def __init__(
        self,
        *,
        seed: int,
        operations_per_second: float,
        tenants: int,
        start_second: int,
        incidents: Sequence[Order] = (),
        run_start_second: int | None = None,
    ) -> None:
        """Raises ValueError for a negative seed or start, a rate that is not positive, no tenant, or a bad incident.

        `incidents` that say after which time they begin count from `run_start_second`, by default the start.
        """
        if start_second < 0:
            raise ValueError(f"start is {start_second} s, expected a time at or after 1970-01-01T00:00:00Z")
        self.topology: Topology = build_topology(seed, tenants)
        self.second = start_second
        self._builder = SpanBuilder(self.topology)
        run_start = start_second if run_start_second is None else run_start_second
        self._platform = Platform(
            Workload(self.topology, seed, operations_per_second),
            [order.incident(self.topology, seed, run_start) for order in incidents],
        )
        self._open: list[Span] = []

    @property
    def truths(self) -> list[Truth]:
        """The truth about the incidents."""
        return [incident.truth for incident in self._platform.incidents]

    @property
    def now_ns(self) -> int:
        """Where the stream stands: every span that ended before is out."""
        return self.second * NS_PER_SECOND

    def advance(self) -> list[Span]:
        """Let one second pass: the spans that end in it, by time of end."""
        started = self._builder.spans_of(self._platform.operations(self.second))
        self.second += 1
        known = self._open + started
        self._open = [span for span in known if span.end_ns >= self.now_ns]
        return sorted((span for span in known if span.end_ns < self.now_ns), key=_by_end)

    def rest(self) -> list[Span]:
        """The spans that began and have not ended yet, by time of end; the stream then holds none of them."""
        spans, self._open = sorted(self._open, key=_by_end), []
        return spans


class Batches:
    """Gathers spans by process, as each process's SDK does, up to `spans_per_request`."""

    def __init__(self, spans_per_request: int) -> None:
        """Raises ValueError for less than one span a request."""
        if spans_per_request < 1:
            raise ValueError(f"spans per request is {spans_per_request}, expected at least 1")
        self._size = spans_per_request
        self._waiting: dict[int, list[Span]] = {}

    def add(self, spans: list[Span]) -> Iterator[list[Span]]:
        """Take spans; yields the batches that are full, each of one process."""
        for span in spans:
            batch = self._waiting.setdefault(span.instance, [])
            batch.append(span)
            if len(batch) >= self._size:
                yield self._waiting.pop(span.instance)

    def rest(self) -> Iterator[list[Span]]:
        """The batches that are not full."""
        waiting, self._waiting = self._waiting, {}
        yield from waiting.values()
