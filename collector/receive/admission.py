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
        self._closed = False
        self.lock = Lock()
        self.requests = 0
        self.pending_bytes = 0

    def close(self) -> None:
        """Refuse every request from now on; those counted already are not touched."""
        self._closed = True

    def ticket(self) -> Ticket:
        """What one request holds, nothing as yet. Raises RetryableError where it would be refused anyway."""
        self._check_open()
        if self.pending_bytes >= self._bytes_max:
            raise self._too_many_bytes()
        return Ticket(self)

    def count_request(self) -> None:
        """Raises OverloadedError beyond the bound, RetryableError after close(). The caller has the lock."""
        self._check_open()
        if self.requests >= self._requests_max:
            raise OverloadedError(
                f"collector.requests_in_flight_max = {self._requests_max}: so many requests wait for an answer; "
                "send this one again later"
            )
        self.requests += 1

    def count_bytes(self, size_bytes: int, held_bytes: int) -> None:
        """Add to what a request holds. Raises OverloadedError beyond the bound. The caller has the lock."""
        alone = self.pending_bytes == held_bytes
        if not alone and self.pending_bytes + size_bytes > self._bytes_max:
            raise self._too_many_bytes()
        self.pending_bytes += size_bytes

    def _check_open(self) -> None:
        if self._closed:
            raise RetryableError("the collector is stopping: send the request again, to it or to another one")

    def _too_many_bytes(self) -> OverloadedError:
        return OverloadedError(
            f"collector.pending_bytes_max = {self._bytes_max}: {self.pending_bytes} bytes were received and "
            "are not yet on disk; send this request again later"
        )


class Ticket:
    """What one request holds of an Admission; leaving the `with` block gives it back. Thread-safe."""

    __slots__ = ("_admission", "_held_bytes", "_released", "_requests")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._held_bytes = 0
        self._requests = 0
        self._released = False

    def hold(self, size_bytes: int) -> None:
        """Hold more bytes. Raises OverloadedError beyond the bound, RetryableError once released.

        The latter ends the work of a thread whose request was given up meanwhile.
        """
        with self._admission.lock:
            if self._released:
                raise RetryableError("the request was given up before it was read: send it again")
            self._admission.count_bytes(size_bytes, self._held_bytes)
            self._held_bytes += size_bytes

    def enter(self) -> None:
        """Count as a request in flight: received in full. Raises RetryableError or OverloadedError."""
        with self._admission.lock:
            self._admission.count_request()
            self._requests += 1

    def hand_over(self) -> Ticket:
        """A ticket that holds all that this one held; this one is released."""
        other = Ticket(self._admission)
        with self._admission.lock:
            other._held_bytes, other._requests = self._held_bytes, self._requests
            self._held_bytes = self._requests = 0
            self._released = True
        return other

    def release(self) -> None:
        """Give everything back; safe to call twice."""
        with self._admission.lock:
            self._admission.requests -= self._requests
            self._admission.pending_bytes -= self._held_bytes
            self._held_bytes = self._requests = 0
            self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
