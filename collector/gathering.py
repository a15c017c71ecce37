"""How long requests wait for others to share a group with: as long as others come, and no longer.

A group costs 2 to 4 ms of CPU however small it is. So small requests gather, from the start of one group to that of the
next for at most GATHER_SECONDS. Waiting is of use only where more requests come meanwhile: clients that each wait
for their answer before they send again would only be held up. So the wait ends once as many requests are there as
lately came; that number falls to what a wait in vain has brought, and is tried half as high again now and then, as TCP
does with its window (Chiu and Jain 1989, with the increase in proportion: so hundreds of clients are found in seconds).
One wait in vain after others that were not is a hiccup: senders that were late for once.
"""

from __future__ import annotations

GATHER_SECONDS = 0.1
ENOUGH_BYTES = 320 * 1024
ENOUGH_REQUESTS = 32
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

    def start_group(self, requests: int, size_bytes: int, now: float, *, has_waited: bool = True) -> None:
        """A group of so many begins at `now`: learn from what it has waited for. Where nothing was there to wait with,
        a pause of the senders, there is nothing to learn.
        """
        self._started_at = now
        if not self.is_enough(requests, size_bytes):
            if has_waited:
                is_hiccup, self._reached = self._reached > 0, 0
                self.expected_requests = self.expected_requests if is_hiccup else max(1, requests)
            return
        self._reached += 1
        if self._reached >= GROUPS_BEFORE_MORE:
            more = max(1, self.expected_requests // 2)
            self.expected_requests, self._reached = min(self.expected_requests + more, ENOUGH_REQUESTS), 0
