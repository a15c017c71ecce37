"""Which requests of files were imported into a data folder, by their content: a repeated import skips them.

One SQLite database with a digest a request. A mark is set once the request is durable in the spool; one that a killed
import had no time to set is made up for by the spool, which knows its requests for `collector.dedup_window_seconds`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType

from collector.errors import OperatorError
from collector.pipeline import TraceRequest
from collector.spool import digest_of, former_digest_of

MARKS_PER_COMMIT = 64
_VERSION = 1
"""Of the file, in SQLite's user_version: 0 where some of its digests may be former ones."""


class ImportMarks:
    """The marks of one data folder. Use it in the thread that made it."""

    def __init__(self, path: Path, *, again: bool = False) -> None:
        """Open or make the file; with `again` nothing in it counts. Raises OperatorError where it cannot be used."""
        self._again = again
        try:
            self._connection = sqlite3.connect(path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            is_new = not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            self._connection.execute("CREATE TABLE IF NOT EXISTS requests (digest BLOB PRIMARY KEY) WITHOUT ROWID")
            if is_new:
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._has_former = self._connection.execute("PRAGMA user_version").fetchone()[0] < _VERSION
        except sqlite3.Error as error:
            raise OperatorError(
                f"{str(path)!r}, which notes what was imported, cannot be used: {error}; expected a file of spanlake's "
                "in a folder with free space; removing it forgets what was imported before"
            ) from error
        self._waiting = 0

    def __enter__(self) -> ImportMarks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.commit()
        self._connection.close()

    def has(self, request: TraceRequest) -> bool:
        """Whether a request of this content was imported before."""
        if self._again:
            return False
        return self._has(digest_of(request)) or (self._has_former and self._has(former_digest_of(request)))

    def _has(self, digest: bytes) -> bool:
        found = self._connection.execute("SELECT 1 FROM requests WHERE digest = ?", [digest]).fetchone()
        return found is not None

    def add(self, request: TraceRequest) -> None:
        """Mark a request that is durable. Committed at the end, and every MARKS_PER_COMMIT marks."""
        self._connection.execute("INSERT OR IGNORE INTO requests VALUES (?)", [digest_of(request)])
        self._waiting += 1
        if self._waiting >= MARKS_PER_COMMIT:
            self._connection.commit()
            self._waiting = 0
