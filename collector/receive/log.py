"""The log of the servers: what clients can provoke must not flood it."""

from __future__ import annotations

import logging
import time

REPEAT_SECONDS = 10.0


class Sparse(logging.Filter):
    """Passes one record of a kind in `repeat_seconds`; the next one says how many were left out.

    A kind is a message before its arguments are filled in, and the type of the exception.
    """

    def __init__(self, repeat_seconds: float = REPEAT_SECONDS) -> None:
        super().__init__()
        self._repeat_seconds = repeat_seconds
        self._last: dict[tuple[str, type[BaseException] | None], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record; adds the count of those left out to its message."""
        kind = (str(record.msg), record.exc_info[0] if record.exc_info else None)
        now = time.monotonic()
        since, left_out = self._last.get(kind, (-self._repeat_seconds, 0))
        if now - since < self._repeat_seconds:
            self._last[kind] = (since, left_out + 1)
            return False
        self._last[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more like this since)"
        return True


log = logging.getLogger("collector.receive")
log.addFilter(Sparse())
