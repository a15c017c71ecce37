"""Reading the message of a gRPC call: in time, and given up where the process holds too much memory.

gRPC gathers a message by itself and gives it out when it is whole. Until a call reads, its client can send no more than
the window of its connection; once it reads, all of the message. So a call reads when it is admitted, and while calls
read the memory is looked at: over the limit all but the oldest are given up, which frees what came of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol

import grpc
from grpc import aio

from collector.errors import InvalidRequestError, RetryableError
from collector.receive.memory import LOOK_SECONDS, Memory


class Call(Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def read(self) -> Awaitable[bytes | None]: ...

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, bytes]]
    ) -> NoReturn: ...


Abort = Callable[[Call, Exception], Awaitable[None]]


class GivenUpError(Exception):
    """The call has ended: its client was told `reason`, and must not be told anything else."""

    def __init__(self, reason: RetryableError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Reading:
    __slots__ = ("began_at", "call", "end", "given_up")

    def __init__(self, call: Call, began_at: float) -> None:
        self.call = call
        self.began_at = began_at
        self.given_up: RetryableError | None = None
        self.end: asyncio.Future[None] | None = None


class Readings:
    """The messages that are being read. To be used in one event loop."""

    def __init__(self, memory: Memory, seconds_max: float, abort: Abort) -> None:
        """`abort` ends a call from outside of its method, telling the client of the error."""
        self._memory = memory
        self._seconds_max = seconds_max
        self._abort = abort
        self._under_way: dict[_Reading, None] = {}
        """In the order in which they began."""
        self._looks = False

    async def read(self, call: Call) -> bytes:
        """The message of a call.

        Raises GivenUpError where it is not whole in time, or where memory is short; InvalidRequestError where there
        is none.
        """
        loop = asyncio.get_running_loop()
        reading = _Reading(call, loop.time())
        self._under_way[reading] = None
        if not self._looks:
            self._looks = True
            loop.call_later(LOOK_SECONDS, self._look, loop)
        message: object = aio.EOF
        try:
            message = await call.read()
        finally:
            del self._under_way[reading]
            if reading.given_up is not None and reading.end is not None:
                await reading.end
                raise GivenUpError(reading.given_up)
        if not isinstance(message, bytes):
            raise InvalidRequestError("the call has no message: send one ExportTraceServiceRequest")
        return message

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looks = bool(self._under_way)
        if not self._looks:
            return
        loop.call_later(LOOK_SECONDS, self._look, loop)
        overdue_since = loop.time() - self._seconds_max
        for reading in self._under_way:
            if reading.began_at > overdue_since:
                break
            self._give_up(
                reading,
                RetryableError(f"the request was not complete after {self._seconds_max:g} s: send it again"),
            )
        if len(self._under_way) > 1 and self._memory.is_over():
            _oldest, *others = self._under_way
            for reading in others:
                self._give_up(reading, self._memory.error())

    def _give_up(self, reading: _Reading, error: RetryableError) -> None:
        if reading.given_up is None:
            reading.given_up = error
            reading.end = asyncio.ensure_future(self._end(reading.call, error))

    async def _end(self, call: Call, error: RetryableError) -> None:
        # The call may end by itself at the same moment.
        with contextlib.suppress(aio.BaseError):
            await self._abort(call, error)
