"""Threads for work on request bodies that would hold up the event loop. The work is C code without the GIL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

INLINE_BYTES = 8 * 1024
"""Up to this size the work is done in the event loop: the way to a thread and back would cost more."""

_T = TypeVar("_T")


class Workers:
    """A pool of as many threads as there are cores, at most eight."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="otlp-body")

    async def run(self, size_bytes: int, work: Callable[..., _T], *args: bytes) -> _T:
        """Result of `work(*args)`, here or in a thread according to the size of its input."""
        if size_bytes <= INLINE_BYTES:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
