"""A process that does the upkeep that is due, and ends: `python -m collector.lake.merging STORAGE RETENTION`.

The arguments are a `StorageConfig` and a `RetentionConfig` as JSON. What DuckDB takes for a merge goes back to the
system with the process, where in the collector it would stay. Standard output has a line of JSON for each merge,
`{"files": 8, "started_at_ns": ...}`, one for what retention removed, `{"removed_files": 3}`, and
`{"fault": "..."}` where something failed. SIGTERM lets the merge that is on finish.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from collector.config import RetentionConfig, StorageConfig
from collector.errors import SpanlakeError
from collector.lake import maintain, retention
from collector.lake.lake import Lake
from collector.lake.location import Location, locate

# On two threads a merge takes more than twice the CPU time that it takes on one, and twice the memory.
_THREADS = 1
# Sorting the usual spans of a merge takes half of it, spans with a few kilobytes of text all of it; then it spills.
_MEMORY_BYTES_MAX = 512 * 2**20


def main() -> int:
    """The exit status: 0, or 1 where something failed."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        location = locate(StorageConfig.model_validate_json(sys.argv[1]))
        with open_for_upkeep(location) as lake:
            merge_all(lake, stopping)
            removed = retention.apply(lake, RetentionConfig.model_validate_json(sys.argv[2]), stopped=stopping.is_set)
    except (duckdb.Error, OSError, SpanlakeError) as error:
        print(json.dumps({"fault": str(error)}), flush=True)
        return 1
    if removed:
        print(json.dumps({"removed_files": len(removed)}), flush=True)
    return 0


@contextmanager
def open_for_upkeep(location: Location) -> Iterator[Lake]:
    """The lake with the memory and threads that suit merges. Raises OperatorError."""
    with (
        tempfile.TemporaryDirectory(prefix="spanlake-merge-") as spill,
        Lake(
            location, read_only=False, threads=_THREADS, memory_bytes_max=_MEMORY_BYTES_MAX, spill_folder=spill
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
