"""A bound on the time of queries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import duckdb
import pyarrow as pa

from collector.errors import SpanlakeError

_AGAIN_SECONDS = 0.1


class QueryTimeoutError(SpanlakeError):
    """A query took longer than it may."""


@contextmanager
def bounded(connection: duckdb.DuckDBPyConnection, timeout_seconds: float) -> Iterator[None]:
    """Interrupt whatever runs on `connection` after this time, in the `with` block and not behind it.

    Raises QueryTimeoutError in place of what the interrupted query raises.
    """
    expired, done = threading.Event(), threading.Event()

    def watch() -> None:
        if done.wait(timeout_seconds):
            return
        expired.set()
        # An interrupt that falls between two queries stops neither.
        while not done.wait(_AGAIN_SECONDS):
            with suppress(duckdb.Error):
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="query deadline", daemon=True)
    watcher.start()
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not expired.is_set():
            raise
        raise QueryTimeoutError(
            f"the query was interrupted after query.timeout_seconds = {timeout_seconds:g}: choose a shorter window or "
            "narrower filters, or raise the limit"
        ) from error
    finally:
        done.set()
        watcher.join()
