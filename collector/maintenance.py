"""Merging and cleaning of the lake beside the ingest, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time

from collector.lake import maintain
from collector.lake.lake import Lake
from collector.telemetry.traces import Tracing

log = logging.getLogger(__name__)

_CLEAN_EVERY_ROUNDS = 30


class Maintenance:
    """Looks for small files to merge once an interval, and cleans now and then."""

    def __init__(self, lake: Lake, interval_seconds: float, tracing: Tracing) -> None:
        self._lake = lake
        self._interval_seconds = interval_seconds
        self._tracing = tracing
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="maintain", daemon=True)
        self.merges = 0
        self.merged_files = 0
        self.consecutive_failures = 0
        """Rounds that failed since the last one that succeeded."""

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the merge that is on, then stop."""
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        rounds = 0
        while not self._stopping.wait(self._interval_seconds):
            try:
                self._merge_all()
                if rounds % _CLEAN_EVERY_ROUNDS == 0:
                    maintain.clean(self._lake)
            except Exception:
                self.consecutive_failures += 1
                log.exception("maintenance failed; it is tried again")
            else:
                self.consecutive_failures = 0
            rounds += 1

    def _merge_all(self) -> None:
        while not self._stopping.is_set():
            started_at_ns = time.time_ns()
            files = maintain.merge_once(self._lake, "spans")
            if not files:
                return
            self.merges += 1
            self.merged_files += files
            self._tracing.record("merge", started_at_ns, {"spanlake.files": files})
