"""Merging, sampling, retention and cleaning of the lake beside the ingest: looked after by a thread, which merges small
files itself, and done by processes of their own where it is heavy."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from collector.child import bound_to_this_process
from collector.config import RetentionConfig, SamplingConfig, StorageConfig
from collector.footprint import POOL_VARIABLE
from collector.lake import maintain, retention, sampling
from collector.lake.lake import Lake
from collector.telemetry.traces import Tracing

log = logging.getLogger(__name__)

_CLEAN_EVERY_ROUNDS = 10
_MERGED_FILES_MIN = 48
_MERGED_BYTES_MIN = 64 * 2**20
"""Less than both waits for one round: the more is sorted at once, the fewer row groups have a tenant."""
_BYTES_HERE_MAX = 128 * 2**20
"""To start a process takes as much CPU as to merge some 200,000 spans, and 200 MiB. More than this is worth it: the
thread takes turns with those that decode."""
_BLOCK_BYTES_HERE = 9 * 2**20
"""Of usual spans some 74,000 are sorted together then, which takes about 80 MiB; in a process, a third more."""


def is_much(due: maintain.Due) -> bool:
    """Whether files are worth a merge at once. Pure."""
    return due.files >= _MERGED_FILES_MIN or due.bytes >= _MERGED_BYTES_MIN


def is_for_thread(due: maintain.Due) -> bool:
    """Whether files are merged without a process of their own: in bounded memory, and soon. Pure."""
    return due.bytes <= _BYTES_HERE_MAX and not due.is_for_ducklake


class Maintenance:
    """Looks for small files to merge once an interval, and for files to remove and to clean up now and then."""

    def __init__(
        self,
        lake: Lake,
        storage: StorageConfig,
        interval_seconds: float,
        tracing: Tracing,
        kept: RetentionConfig | None = None,
        sampled: SamplingConfig | None = None,
    ) -> None:
        """Without `kept` and `sampled` all is kept."""
        self._lake = lake
        self._storage = storage
        self._kept = kept or RetentionConfig()
        self._sampled = sampled or SamplingConfig()
        self._interval_seconds = interval_seconds
        self._tracing = tracing
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="maintain", daemon=True)
        self._starting = threading.Lock()
        self._merging: subprocess.Popen[str] | None = None
        self._is_waiting = False
        """Whether the last round left small files for this one."""
        self.merges = 0
        self.merged_files = 0
        self.removed_files = 0
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
        with self._starting:
            self._stopping.set()
            if self._merging is not None:
                self._merging.terminate()
        self._thread.join()

    def _work(self) -> None:
        rounds = 0
        while not self._stopping.wait(self._interval_seconds):
            is_cleaning = rounds % _CLEAN_EVERY_ROUNDS == 0
            is_well = self._is_done(partial(self._merge_or_remove, looks_for_old=is_cleaning))
            if is_cleaning:
                is_well &= self._is_done(partial(maintain.clean, self._lake))
            self.consecutive_failures = 0 if is_well else self.consecutive_failures + 1
            rounds += 1

    def _is_done(self, work: Callable[[], object]) -> bool:
        """Work, and whether that went well; what fails keeps nothing else from being done."""
        try:
            work()
        except Exception:
            log.exception("maintenance failed; it is tried again")
            return False
        return True

    def _merge_or_remove(self, *, looks_for_old: bool) -> None:
        due = self._due()
        if looks_for_old and self._has_too_old():
            self._do_in_process()
        elif due.files:
            self._merge(due)

    def _due(self) -> maintain.Due:
        """What is to be merged now; what is little waits for the next round, once."""
        due = maintain.due(self._lake, retention.SPANS)
        self._is_waiting = due.files > 0 and not is_much(due) and not self._is_waiting
        return maintain.Due(0, 0) if self._is_waiting else due

    def _merge(self, due: maintain.Due) -> None:
        """Merge what is due, tier by tier, here as long as it is little. Raises as `_do_in_process`, and OSError."""
        while due.files and not self._stopping.is_set():
            if not is_for_thread(due):
                self._do_in_process()
                break
            started_at_ns = time.time_ns()
            files = maintain.merge_once(self._lake, retention.SPANS, _BLOCK_BYTES_HERE)
            if not files:
                break
            self._count(files, started_at_ns)
            due = maintain.due(self._lake, retention.SPANS)

    def _has_too_old(self) -> bool:
        return bool(retention.due(self._lake, self._kept) or sampling.due(self._lake, self._sampled))

    def _do_in_process(self) -> None:
        """Let a process do all that is due. Raises ChildProcessError where it fails."""
        arguments = [config.model_dump_json() for config in (self._storage, self._kept, self._sampled)]
        command = bound_to_this_process([sys.executable, "-m", "collector.lake.merging", *arguments])
        with self._starting:
            if self._stopping.is_set():
                return
            self._merging = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
                env=os.environ | {POOL_VARIABLE: "system"},
            )
        fault = ""
        with self._merging as merging:
            for line in merging.stdout or ():
                report = json.loads(line)
                fault = report.get("fault", "")
                self.removed_files += report.get("removed_files", 0)
                if "files" in report:
                    self._count(report["files"], report["started_at_ns"])
        if merging.returncode and not self._stopping.is_set():
            raise ChildProcessError(f"the process that merges ended with status {merging.returncode}: {fault}")

    def _count(self, files: int, started_at_ns: int) -> None:
        self.merges += 1
        self.merged_files += files
        self._tracing.record("merge", started_at_ns, {"spanlake.files": files})
