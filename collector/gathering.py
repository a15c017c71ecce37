"""How long requests wait for others to share a group with: as long as others come, and no longer.

A group costs about 2 ms of CPU however small it is. So small requests gather, from the start of one group to that of
the next for at most GATHER_SECONDS. Waiting is of use only where more requests come meanwhile: clients that each wait
for their answer before they send again would only be held up. So the wait ends once as many requests are there as
lately came; that number falls to what a wait in vain has brought, and is tried one higher now and then, as TCP does
with its window (additive increase: Chiu and Jain 1989).
"""

from __future__ import annotations

GATHER_SECONDS = 0.08
ENOUGH_BYTES = 128 * 1024
ENOUGH_REQUESTS = 16
GROUPS_BEFORE_MORE = 16


class Gathering:
    """What is waited for. Not thread-safe."""

    def __init__(self) -> None:
        self._started_at = -GATHER_SECONDS
        self.expected_requests = 1
        self._reached = 0

    def seconds_left(self, now: float) -> float:
        """How long the next group may still wait at `now` (monotonic seconds)."""
        return self._started_at + GATHER_SECONDS - now

    def is_enough(self, requests: int, size_bytes: int) -> bool:
        """Whether a group of so many requests and bytes need not wait for more."""
        return requests >= self.expected_requests or size_bytes >= ENOUGH_BYTES

    def start_group(self, requests: int, size_bytes: int, now: float) -> None:
        """A group of so many begins at `now`: learn from whether it had to wait."""
        self._started_at = now
        if not self.is_enough(requests, size_bytes):
            self.expected_requests, self._reached = max(1, requests), 0
            return
        self._reached += 1
        if self._reached >= GROUPS_BEFORE_MORE:
            self.expected_requests, self._reached = min(self.expected_requests + 1, ENOUGH_REQUESTS), 0
