"""A soft limit on the memory of the process, so that no flood of requests makes the system kill it."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from collector.errors import OverloadedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
RELEASE_SECONDS = 1.0
RESERVE_BYTES = 448 * 2**20
"""What those that were taken before need while they are decoded and sealed; measured by benchmarks/memory.py."""
_STATM = Path("/proc/self/statm")


class MemoryLimitError(OverloadedError):
    """The process holds more memory than collector.memory_bytes_max."""


class Memory:
    """The resident memory of the process and its limit. To be used in one thread, that of the event loop.

    Requests are refused from RESERVE_BYTES below the limit.
    """

    def __init__(
        self,
        bytes_max: int,
        read: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        release: Callable[[], None] | None = None,
    ) -> None:
        """`read` gives the resident bytes, 0 where the system does not tell; `release` hands free memory back."""
        self.bytes_max = bytes_max
        self._refused_from_bytes = bytes_max - RESERVE_BYTES
        self._read = read or resident_bytes
        self._clock = clock
        self._release = release or _release_in_thread
        self._looked_at = self._released_at = -RELEASE_SECONDS
        self._resident_bytes = 0
        self._was_over = False

    def is_over(self) -> bool:
        """Whether requests are refused, looked up at most every LOOK_SECONDS.

        Where it is, memory that is free and still held by an allocator is handed back, at most every RELEASE_SECONDS:
        else a peak would be remembered, and requests be refused, for ever.
        """
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._resident_bytes = self._read()
            self._report()
        if self._resident_bytes <= self._refused_from_bytes:
            return False
        if now - self._released_at >= RELEASE_SECONDS:
            self._released_at = now
            self._release()
        return True

    def error(self) -> MemoryLimitError:
        """What to tell a client that is refused."""
        return MemoryLimitError(
            f"collector.memory_bytes_max = {self.bytes_max}: {self._resident_bytes} bytes are resident, and requests "
            f"are refused from {self._refused_from_bytes}; send this one again later"
        )

    def _report(self) -> None:
        is_over = self._resident_bytes > self._refused_from_bytes
        if is_over and not self._was_over:
            log.warning(
                "%d bytes are resident, collector.memory_bytes_max = %d: requests are refused from %d",
                self._resident_bytes,
                self.bytes_max,
                self._refused_from_bytes,
            )
        elif self._was_over and not is_over:
            log.info("%d bytes are resident: requests are taken again", self._resident_bytes)
        self._was_over = is_over


def resident_bytes() -> int:
    """Resident memory of this process; 0 where there is no /proc/self/statm (proc(5)), as on macOS."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def release() -> None:
    """Hand memory that is free, and still held by the allocators of Arrow and of glibc, back to the system."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3), of glibc alone
    if trim is not None:
        trim(0)


def _release_in_thread() -> None:
    """It takes tens of milliseconds, without the GIL."""
    threading.Thread(target=release, name="release memory", daemon=True).start()
