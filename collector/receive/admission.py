"""How much may be on its way to the disk at once: requests and bytes, both servers together, fairly shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import TracebackType
from typing import Self

from collector.errors import OverloadedError, RetryableError

HEADROOM = 0.25
"""How far beyond a bound those may go who are under their fair share of it, as a part of the bound."""


class _Bound:
    """One quantity, shared by accounts max-min fairly: what some do not need, others may have.

    The whole bound is for whoever comes. Beyond it, into the headroom, goes only an account that holds nothing yet, or
    will hold no more than the bound divided by the accounts that hold anything: so the others are refused first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self._by_account: dict[str, int] = {}

    def has_room(self, account: str, amount: int) -> bool:
        """Whether the account may hold so much more."""
        total = self.total + amount
        if total <= self.most:
            return True
        own = self._by_account.get(account, 0)
        is_under_share = own == 0 or own + amount <= self.most / len(self._by_account)
        return is_under_share and total <= self.most * (1 + HEADROOM)

    def add(self, account: str, amount: int) -> None:
        """Count so much more, or less where it is negative."""
        self.total += amount
        own = self._by_account.get(account, 0) + amount
        if own:
            self._by_account[account] = own
        else:
            self._by_account.pop(account, None)


class Admission:
    """Counts requests in flight and bytes pending by account, and refuses beyond the bounds. Thread-safe.

    A request larger than `bytes_max` passes while no other holds any byte, else it could never pass.
    """

    def __init__(self, requests_max: int, bytes_max: int) -> None:
        self._requests = _Bound(requests_max)
        self._bytes = _Bound(bytes_max)
        self._closed = False
        self._tickets = 0
        self.lock = Lock()

    @property
    def requests(self) -> int:
        """Requests received and not yet answered."""
        return self._requests.total

    @property
    def pending_bytes(self) -> int:
        """Bytes received and not yet on disk."""
        return self._bytes.total

    @property
    def is_idle(self) -> bool:
        """Whether no request is on its way, not even one that has only begun."""
        return not self._tickets

    def close(self) -> None:
        """Refuse every request from now on; those counted already are not touched."""
        self._closed = True

    def ticket(self, account: str = "") -> Ticket:
        """What one request holds, nothing as yet. Raises RetryableError where it would be refused anyway."""
        self._check_open()
        with self.lock:
            if not self._bytes.has_room(account, 1):
                raise self._too_many_bytes()
            self.count_tickets(1)
        return Ticket(self, account, 1)

    def count_tickets(self, amount: int) -> None:
        """Add to the requests that have begun. The caller has the lock."""
        self._tickets += amount

    def count_request(self, account: str) -> None:
        """Raises OverloadedError beyond the bound, RetryableError after close(). The caller has the lock."""
        self._check_open()
        if not self._requests.has_room(account, 1):
            raise OverloadedError(
                f"collector.requests_in_flight_max = {self._requests.most}: so many requests wait for an answer; "
                "send this one again later"
            )
        self._requests.add(account, 1)

    def count_bytes(self, account: str, size_bytes: int, held_bytes: int) -> None:
        """Add to what a request holds. Raises OverloadedError beyond the bound. The caller has the lock."""
        alone = self._bytes.total == held_bytes
        if not alone and not self._bytes.has_room(account, size_bytes):
            raise self._too_many_bytes()
        self._bytes.add(account, size_bytes)

    def give_back(self, account: str, requests: int, size_bytes: int) -> None:
        """What a request held. The caller has the lock."""
        self._requests.add(account, -requests)
        self._bytes.add(account, -size_bytes)

    def _check_open(self) -> None:
        if self._closed:
            raise RetryableError("the collector is stopping: send the request again, to it or to another one")

    def _too_many_bytes(self) -> OverloadedError:
        return OverloadedError(
            f"collector.pending_bytes_max = {self._bytes.most}: {self.pending_bytes} bytes were received and "
            "are not yet on disk; send this request again later"
        )


class Ticket:
    """What one request holds of an Admission; leaving the `with` block gives it back. Thread-safe."""

    __slots__ = ("_account", "_admission", "_held_bytes", "_released", "_requests", "_tickets")

    def __init__(self, admission: Admission, account: str, tickets: int = 0) -> None:
        self._admission = admission
        self._account = account
        self._held_bytes = 0
        self._requests = 0
        self._tickets = tickets
        self._released = False

    def hold(self, size_bytes: int) -> None:
        """Hold more bytes. Raises OverloadedError beyond the bound, RetryableError once released.

        The latter ends the work of a thread whose request was given up meanwhile.
        """
        with self._admission.lock:
            if self._released:
                raise RetryableError("the request was given up before it was read: send it again")
            self._admission.count_bytes(self._account, size_bytes, self._held_bytes)
            self._held_bytes += size_bytes

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Hold more bytes in the `with` block alone. Raises as hold()."""
        self.hold(size_bytes)
        try:
            yield
        finally:
            with self._admission.lock:
                if not self._released:
                    self._held_bytes -= size_bytes
                    self._admission.give_back(self._account, 0, size_bytes)

    def enter(self) -> None:
        """Count as a request in flight: received in full. Raises RetryableError or OverloadedError."""
        with self._admission.lock:
            self._admission.count_request(self._account)
            self._requests += 1

    def hand_over(self) -> Ticket:
        """A ticket that holds all that this one held; this one is released."""
        other = Ticket(self._admission, self._account)
        with self._admission.lock:
            other._held_bytes, other._requests, other._tickets = self._held_bytes, self._requests, self._tickets
            self._held_bytes = self._requests = self._tickets = 0
            self._released = True
        return other

    def release(self) -> None:
        """Give everything back; safe to call twice."""
        with self._admission.lock:
            self._admission.count_tickets(-self._tickets)
            self._admission.give_back(self._account, self._requests, self._held_bytes)
            self._held_bytes = self._requests = self._tickets = 0
            self._released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
