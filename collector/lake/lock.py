"""Locks between processes: who collects, who runs the jobs, and whose commit is on.

A SQLite catalog takes one writer at a time. Every transaction on it, in whatever process, holds the commit lock
from BEGIN to COMMIT, so several processes write in turn and none of them ever sees "database is locked".
The kernel drops a lock with its process: a killed holder blocks nobody.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collector.errors import OperatorError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock `path` alone, waiting for it as long as it takes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class ProcessLock:
    """A role that one process of a lake has for its lifetime; the file names the holder's pid."""

    def __init__(self, path: Path, role: str) -> None:
        self._path = path
        self._role = role
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the role. Raises OperatorError that names the holder where another process has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise OperatorError(
                f"another {self._role} (pid {holder}) already works on {str(self._path.parent)!r}: expected at most "
                "one for each data folder; stop that one, or give another --data"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the role up. Safe to call twice."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def holder(path: Path) -> int | None:
    """The pid of the process that has the role now, None where nobody has."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(fd, 32).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(fd)
