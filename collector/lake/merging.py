"""A process that does the upkeep that is due, and ends: `python -m collector.lake.merging STORAGE RETENTION SAMPLING`.

The arguments are a `StorageConfig`, a `RetentionConfig` and a `SamplingConfig` as JSON. What DuckDB takes for a merge
goes back to the system with the process, where in the collector it would stay. Standard output has a line of JSON for
each merge, `{"files": 8, "started_at_ns": ...}`, one for what was sampled, `{"sampled_spans": 50, "kept_spans": 6}`,
one for what retention removed, `{"removed_files": 3}`, and `{"fault": "..."}` where something failed. SIGTERM lets the
merge that is on finish.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from collector.config import RetentionConfig, SamplingConfig, StorageConfig
from collector.errors import SpanlakeError
from collector.footprint import do_without_unused, give_back_large_blocks
from collector.lake import maintain, retention, sampling
from collector.lake.lake import Lake
from collector.lake.location import Location, locate

# On two threads a merge takes more than twice the CPU time that it takes on one, and twice the memory.
_THREADS = 1
_NICENESS = 10
"""Whoever waits for an answer or a commit goes first; a merge that comes later harms nobody."""
# Of DuckDB, which merges where swap.py does not know the catalog.
# The first suffices for the usual spans; the others are for spans with kilobytes of text each.
MEMORY_BYTES_MAX = (128 * 2**20, 256 * 2**20, 512 * 2**20, 1024 * 2**20)


def main() -> int:
    """The exit status: 0, or 1 where something failed."""
    os.nice(_NICENESS)
    do_without_unused()
    give_back_large_blocks()
    pa.set_memory_pool(pa.system_memory_pool())  # gives back between blocks what the others keep
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        location = locate(StorageConfig.model_validate_json(sys.argv[1]))
        kept = RetentionConfig.model_validate_json(sys.argv[2])
        sampled = SamplingConfig.model_validate_json(sys.argv[3])
        for memory_bytes_max in MEMORY_BYTES_MAX:
            try:
                work(location, kept, sampled, memory_bytes_max, stopping)
                break
            except duckdb.OutOfMemoryException:
                if memory_bytes_max == MEMORY_BYTES_MAX[-1]:
                    raise
    except (duckdb.Error, OSError, SpanlakeError) as error:
        print(json.dumps({"fault": str(error)}), flush=True)
        return 1
    return 0


def work(
    location: Location,
    kept: RetentionConfig,
    sampled: SamplingConfig,
    memory_bytes_max: int,
    stopping: threading.Event,
) -> None:
    """Do and tell all that is due; merges that fail keep nothing from being sampled and removed.

    Raises duckdb.Error, OSError and OperatorError.
    """
    fault: OSError | duckdb.Error | None = None
    with open_for_upkeep(location, memory_bytes_max) as lake:
        try:
            merge_all(lake, stopping)
        except duckdb.OutOfMemoryException:
            raise
        except (OSError, duckdb.Error) as error:
            fault = error
        done = sampling.apply(lake, sampled, stopped=stopping.is_set)
        removed = retention.apply(lake, kept, stopped=stopping.is_set)
    if done.steps:
        print(json.dumps({"sampled_spans": done.spans, "kept_spans": done.kept_spans}), flush=True)
    if removed:
        print(json.dumps({"removed_files": len(removed)}), flush=True)
    if fault is not None:
        raise fault


@contextmanager
def open_for_upkeep(location: Location, memory_bytes_max: int) -> Iterator[Lake]:
    """The lake with the memory and threads that suit merges. Raises OperatorError."""
    with (
        tempfile.TemporaryDirectory(prefix="spanlake-merge-") as spill,
        Lake(
            location, read_only=False, threads=_THREADS, memory_bytes_max=memory_bytes_max, spill_folder=spill
        ) as lake,
    ):
        yield lake


def merge_all(lake: Lake, stopping: threading.Event) -> None:
    """Merge until nothing is due. Raises duckdb.Error and OSError."""
    while not stopping.is_set():
        started_at_ns = time.time_ns()
        files = maintain.merge_once(lake, retention.SPANS)
        if not files:
            break
        print(json.dumps({"files": files, "started_at_ns": started_at_ns}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
