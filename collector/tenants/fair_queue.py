"""A queue that serves tenants in turn, by bytes.

Deficit round robin: M. Shreedhar, G. Varghese, "Efficient Fair Queuing Using Deficit Round-Robin" (SIGCOMM 1995).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
CONTENDED_SECONDS = 1.0


class FairQueue(Generic[Item]):
    """Items of one key in the order they came; of several keys, each `quantum_bytes` in turn. Not thread-safe."""

    def __init__(self, quantum_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._quantum_bytes = quantum_bytes
        self._clock = clock
        self._queues: OrderedDict[str, deque[tuple[int, Item]]] = OrderedDict()
        self._deficits_bytes: dict[str, int] = {}
        self._has_turn = False
        self._count = 0
        self._size_bytes = 0
        self._latest: str | None = None
        self._contended_until = -1.0

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Of all items together, as they were pushed."""
        return self._size_bytes

    @property
    def is_contended(self) -> bool:
        """Whether items of more than one key came within about the last CONTENDED_SECONDS."""
        return self._clock() < self._contended_until

    def push(self, key: str, size_bytes: int, item: Item) -> None:
        """Add an item behind those of its key."""
        if key not in self._queues:
            self._queues[key] = deque()
            self._deficits_bytes[key] = 0
        self._queues[key].append((size_bytes, item))
        self._count += 1
        self._size_bytes += size_bytes
        if key != self._latest:
            if self._latest is not None:
                self._contended_until = self._clock() + CONTENDED_SECONDS
            self._latest = key

    def take(self, count_max: int, bytes_max: int) -> list[Item]:
        """The next items, cut before `count_max` or `bytes_max` are exceeded; at least one where there is any."""
        taken: list[Item] = []
        taken_bytes = 0
        while self._queues and len(taken) < count_max:
            key, queue = next(iter(self._queues.items()))
            if not self._has_turn:
                self._deficits_bytes[key] += self._quantum_bytes
                self._has_turn = True
            size_bytes, item = queue[0]
            if size_bytes > self._deficits_bytes[key]:
                self._queues.move_to_end(key)
                self._has_turn = False
                continue
            if taken and taken_bytes + size_bytes > bytes_max:
                break
            queue.popleft()
            self._count -= 1
            self._size_bytes -= size_bytes
            self._deficits_bytes[key] -= size_bytes
            taken.append(item)
            taken_bytes += size_bytes
            if not queue:
                del self._queues[key], self._deficits_bytes[key]
                self._has_turn = False
        return taken
