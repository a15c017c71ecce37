"""Keeps the memory of a collector's process small: what it does without, and which allocator it uses."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

POOL_VARIABLE = "ARROW_DEFAULT_MEMORY_POOL"
"""Names the allocator of all that Arrow takes memory for and no caller has chosen one for."""
JEMALLOC_VARIABLE = "JE_ARROW_MALLOC_CONF"
"""Changes how Arrow's build of jemalloc is set up."""
UNUSED_MS = 4000
"""Longer than the second between two seals: what one needs and the next one again is not taken anew."""
LARGE_BYTES = 128 * 1024
DECODED_BYTES = 2**20
"""Larger than most of what is made and dropped for a group of requests."""
KEPT_BYTES = 4 * 2**20
ARENAS_MAX = 4
"""Heaps of glibc, each of which keeps free memory for itself; it would make eight for each core."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_UNUSED = frozenset({"pandas", "pyarrow._s3fs", "pyarrow._gcsfs", "pyarrow._azurefs", "pyarrow._hdfs"})


class _WithoutUnused(MetaPathFinder):
    """Lets the import of what is unused fail as where it is not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _UNUSED:
            raise ModuleNotFoundError(f"a collector does without {fullname}", name=fullname)
        return None


def do_without_unused() -> None:
    """For a process that makes no frames of pandas and has its files on this machine; call it as early as can be.

    pyarrow imports pandas wherever it is installed as soon as arrays are made, which takes 33 MiB, and at once the
    clients of all object stores, which take 4 MiB.
    """
    sys.meta_path.insert(0, _WithoutUnused())


def reduce_footprint() -> None:
    """For a process that only collects; call it before anything imports pyarrow.

    It does without what is unused. And jemalloc, where this build of pyarrow has it, gives back more of what was
    decoded than the default: 30 MiB at 10,000 spans/s. It does so UNUSED_MS after the last use, and does not leave the
    memory to the system for another second. Buffers of writers come from the pool that the environment names instead:
    20 MiB less for a seal of 90,000 spans.
    """
    do_without_unused()
    if sys.platform == "linux":
        os.environ.setdefault(POOL_VARIABLE, "jemalloc")
        os.environ.setdefault(JEMALLOC_VARIABLE, f"dirty_decay_ms:{UNUSED_MS},muzzy_decay_ms:0")
        # With LARGE_BYTES, pages that were just given back and are needed again take a quarter of the time of decoding.
        give_back_large_blocks(DECODED_BYTES, KEPT_BYTES)
    import pyarrow as pa  # noqa: PLC0415 - behind the line above

    try:
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    except NotImplementedError:
        return


def give_back_large_blocks(larger_than_bytes: int = LARGE_BYTES, kept_bytes: int = LARGE_BYTES) -> None:
    """Let glibc return each larger block to the system when it is freed, and of an arena's free end all but so much.

    It would raise these bounds to the largest block it has seen, up to 32 MiB, and twice that, and keep what is less:
    of requests and of what they are parsed into, some 60 MiB under full load. Few arenas take 20 MiB less than many;
    call this before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # mallopt(3), of glibc alone
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS_MAX)
        mallopt(_M_MMAP_THRESHOLD, larger_than_bytes)
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)
