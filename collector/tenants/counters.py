"""What tenants sent and what was refused: plain numbers for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock

TENANTS_MAX = 200
OTHERS = "(other)"
UNAUTHENTICATED = "(unauthenticated)"


@dataclass(frozen=True, slots=True)
class TenantCounts:
    """Since the start. Bytes are decompressed where a request was read; a repeated request adds no spans.

    `refused_spans` misses those of requests that were refused before their spans were counted;
    `refused_uncounted_requests` says how many these were.
    """

    requests: int = 0
    spans: int = 0
    bytes: int = 0
    rejected_spans: int = 0
    refused_requests: int = 0
    refused_spans: int = 0
    refused_bytes: int = 0
    refused_uncounted_requests: int = 0


_NOTHING = TenantCounts()


class TenantCounters:
    """Counts by tenant, the first TENANTS_MAX by name and OTHERS for the rest. Thread-safe."""

    def __init__(self, tenants_max: int = TENANTS_MAX) -> None:
        self._tenants_max = tenants_max
        self._lock = Lock()
        self._tenants: dict[str, TenantCounts] = {}

    def admitted(self, tenant: str, size_bytes: int, spans: int, rejected_spans: int) -> None:
        """Count a request that is durable, but for the rejected spans."""
        with self._lock:
            name, was = self._find(tenant)
            self._tenants[name] = replace(
                was,
                requests=was.requests + 1,
                spans=was.spans + spans,
                bytes=was.bytes + size_bytes,
                rejected_spans=was.rejected_spans + rejected_spans,
            )

    def refused(self, tenant: str, size_bytes: int, spans: int | None) -> None:
        """Count a request that was refused as a whole; `spans` is None where they were not counted."""
        with self._lock:
            name, was = self._find(tenant)
            self._tenants[name] = replace(
                was,
                refused_requests=was.refused_requests + 1,
                refused_spans=was.refused_spans + (spans or 0),
                refused_bytes=was.refused_bytes + size_bytes,
                refused_uncounted_requests=was.refused_uncounted_requests + (spans is None),
            )

    def tenants(self) -> dict[str, TenantCounts]:
        """Counts by tenant, in the order first seen."""
        with self._lock:
            return dict(self._tenants)

    def _find(self, tenant: str) -> tuple[str, TenantCounts]:
        known = tenant in self._tenants or len(self._tenants) - (OTHERS in self._tenants) < self._tenants_max
        name = tenant if known else OTHERS
        return name, self._tenants.get(name, _NOTHING)
