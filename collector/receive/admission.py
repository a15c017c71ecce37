"""How much may be on its way to the disk at once: requests and bytes, both servers together."""

from __future__ import annotations

from threading import Lock
from types import TracebackType
from typing import Self

from collector.errors import OverloadedError, RetryableError


class Admission:
    """Counts requests in flight and bytes pending, and refuses beyond the bounds. Thread-safe.

    A request larger than `bytes_max` passes while no other holds any byte, else it could never pass.
    """

    def __init__(self, requests_max: int, bytes_max: int) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._lock = Lock()
        self._closed = False
        self.requests = 0
        self.pending_bytes = 0

    def close(self) -> None:
        """Refuse every request from now on; those counted already are not touched."""
        self._closed = True

    def ticket(self) -> Ticket:
        """What one request holds, nothing as yet. Raises RetryableError where it would be refused anyway."""
        if self._closed:
            raise RetryableError("the collector is stopping: send the request again, to it or to another one")
        if self.pending_bytes >= self._bytes_max:
            raise self._too_many_bytes()
        return Ticket(self)

    def count_request(self) -> None:
        """Raises OverloadedError beyond the bound, RetryableError after close()."""
        if self._closed:
            raise RetryableError("the collector is stopping: send the request again, to it or to another one")
        with self._lock:
            if self.requests < self._requests_max:
                self.requests += 1
                return
        raise OverloadedError(
            f"collector.requests_in_flight_max = {self._requests_max}: so many requests wait for an answer; "
            "send this one again later"
        )

    def count_bytes(self, size_bytes: int, held_bytes: int) -> None:
        """Add to what a request holds already. Raises OverloadedError beyond the bound."""
        with self._lock:
            alone = self.pending_bytes == held_bytes
            if alone or self.pending_bytes + size_bytes <= self._bytes_max:
                self.pending_bytes += size_bytes
                return
        raise self._too_many_bytes()

    def give_back(self, requests: int, size_bytes: int) -> None:
        """Undo what was counted."""
        with self._lock:
            self.requests -= requests
            self.pending_bytes -= size_bytes

    def _too_many_bytes(self) -> OverloadedError:
        return OverloadedError(
            f"collector.pending_bytes_max = {self._bytes_max}: {self.pending_bytes} bytes were received and "
            "are not yet on disk; send this request again later"
        )


class Ticket:
    """What one request holds of an Admission; leaving the `with` block gives it back."""

    __slots__ = ("_admission", "_held_bytes", "_requests")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held_bytes = 0
        self._requests = 0

    def hold(self, size_bytes: int) -> None:
        """Hold more bytes. Raises OverloadedError beyond the bound."""
        self._admission.count_bytes(size_bytes, self._held_bytes)
        self._held_bytes += size_bytes

    def enter(self) -> None:
        """Count as a request in flight: received in full. Raises RetryableError or OverloadedError."""
        self._admission.count_request()
        self._requests = 1

    def hand_over(self) -> Ticket:
        """A ticket that holds all that this one held; this one is empty afterwards."""
        other = Ticket(self._admission)
        other._held_bytes, other._requests = self._held_bytes, self._requests
        self._held_bytes = self._requests = 0
        return other

    def release(self) -> None:
        """Give everything back; safe to call twice."""
        if self._held_bytes or self._requests:
            self._admission.give_back(self._requests, self._held_bytes)
            self._held_bytes = self._requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
