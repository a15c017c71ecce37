"""Durations in buckets: cheap enough for every request, unlike the SDK's histograms (about 7 us a record)."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

class Latencies:
    """Durations counted by upper bound in seconds. One thread records, any reads."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_SECONDS) + 1)
        """Durations up to each bound and over the bound before it; the last of all those over the last bound."""
        self.sum_seconds = 0.0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds
