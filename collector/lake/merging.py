"""A process that does the merges that are due, and ends: `python -m collector.lake.merging STORAGE`.

STORAGE is a `StorageConfig` as JSON. What DuckDB takes for a merge goes back to the system with the process, where
in the collector it would stay. Standard output has a line of JSON for each merge: `{"files": 8, "started_at_ns": ...}`,
and `{"fault": "..."}` where one failed. SIGTERM lets the merge that is on finish.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time

import duckdb

from collector.config import StorageConfig
from collector.errors import SpanlakeError
from collector.lake import maintain
from collector.lake.lake import Lake
from collector.lake.location import Location, locate

# On two threads a merge takes more than twice the CPU time that it takes on one, and twice the memory.
_THREADS = 1
_MEMORY_BYTES_MAX = 128 * 2**20


def main() -> int:
    """The exit status: 0, or 1 where a merge failed."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        merge_all(locate(StorageConfig.model_validate_json(sys.argv[1])), stopping)
    except (duckdb.Error, OSError, SpanlakeError) as error:
        print(json.dumps({"fault": str(error)}), flush=True)
        return 1
    return 0


def merge_all(location: Location, stopping: threading.Event) -> None:
    """Merge until nothing is due. Raises duckdb.Error, OSError and OperatorError."""
    with Lake(location, read_only=False, threads=_THREADS, memory_bytes_max=_MEMORY_BYTES_MAX) as lake:
        while not stopping.is_set():
            started_at_ns = time.time_ns()
            files = maintain.merge_once(lake, "spans")
            if not files:
                break
            print(json.dumps({"files": files, "started_at_ns": started_at_ns}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
