"""What the simulator itself counted while it emitted: the truth that tests and demonstrations compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sample_data.incidents.truth import Truth as IncidentTruth
from sample_data.span import Span, SpanKind
from sample_data.topology import REGIONS, Topology


@dataclass(slots=True)
class Counts:
    """Numbers of spans. `operations` are root spans of the gateway, `errors` spans with an error status.

    `hits` and `misses` are single `get` lookups, counted once each, at the cache. `deliveries` are spans of
    subscribers that processed a message, `undelivered` the subscribers that a message never reached.
    """

    spans: int = 0
    operations: int = 0
    errors: int = 0
    hits: int = 0
    misses: int = 0
    deliveries: int = 0
    undelivered: int = 0


@dataclass(slots=True)
class Truth:
    """Counts by tenant and region of the emitting process.

    `unacknowledged_spans` were emitted, but the receiver refused them or never confirmed them. `incidents` are those
    of the run, whether it got that far or not.
    """

    by_tenant_region: dict[tuple[str, str], Counts] = field(default_factory=dict)
    unacknowledged_spans: int = 0
    first_start_ns: int = 0
    last_start_ns: int = 0
    incidents: list[IncidentTruth] = field(default_factory=list)
    _counts: dict[tuple[int, int], Counts] = field(default_factory=dict, repr=False)

    def add(self, topology: Topology, spans: Sequence[Span]) -> None:
        """Count spans that are being emitted; always of the same topology."""
        for span in spans:
            key = (span.tenant, topology.instances[span.instance].region)
            counts = self._counts.get(key)
            if counts is None:
                counts = self._counts[key] = Counts()
                self.by_tenant_region[topology.tenants[span.tenant].name, REGIONS[key[1]]] = counts
            _count(counts, span)
        if spans:
            starts = [span.start_ns for span in spans]
            self.first_start_ns = min(self.first_start_ns or starts[0], *starts)
            self.last_start_ns = max(self.last_start_ns, *starts)

    @property
    def total(self) -> Counts:
        """The sum over tenants and regions."""
        total = Counts()
        for counts in self.by_tenant_region.values():
            for name, value in asdict(counts).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    def as_json(self) -> dict[str, Any]:
        """`total`, `by_tenant_region` (a list, sorted), the times and `unacknowledged_spans`."""
        rows = sorted(self.by_tenant_region.items())
        return {
            "total": asdict(self.total),
            "unacknowledged_spans": self.unacknowledged_spans,
            "first_start_time_unix_nano": self.first_start_ns,
            "last_start_time_unix_nano": self.last_start_ns,
            "by_tenant_region": [{"tenant": t, "region": r, **asdict(counts)} for (t, r), counts in rows],
        }


def _count(counts: Counts, span: Span) -> None:
    counts.spans += 1
    counts.errors += span.error
    counts.undelivered += span.undelivered
    if span.hit is not None:
        counts.hits += span.hit
        counts.misses += not span.hit
    if span.kind == SpanKind.CONSUMER:
        counts.deliveries += 1
    elif span.kind == SpanKind.SERVER and not span.parent_span_id:
        counts.operations += 1
