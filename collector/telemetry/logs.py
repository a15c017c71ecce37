"""Logs of a server on standard error: lines of text on a terminal, of JSON elsewhere; what repeats is left out.

What clients can provoke must not flood a log. Messages hold neither payloads nor secrets: whoever logs sees to it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import IO

import orjson

from collector.config import TelemetryConfig

REPEAT_SECONDS = 10.0
_KINDS_MAX = 1000

Kind = tuple[str, str, type[BaseException] | None]


class Sparse(logging.Filter):
    """Passes one record of a kind in `repeat_seconds`; the next one says how many were left out.

    A kind is a logger, a message before its arguments are filled in, and the type of the exception. For handlers.
    """

    def __init__(self, repeat_seconds: float = REPEAT_SECONDS) -> None:
        super().__init__()
        self._repeat_seconds = repeat_seconds
        self._last: OrderedDict[Kind, tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record; sets its attribute `left_out`, for the formatters."""
        kind = (record.name, str(record.msg), record.exc_info[0] if record.exc_info else None)
        now = time.monotonic()
        since, left_out = self._last.get(kind, (-self._repeat_seconds, 0))
        if now - since < self._repeat_seconds:
            self._last[kind] = (since, left_out + 1)
            return False
        self._last[kind] = (now, 0)
        self._last.move_to_end(kind)
        if len(self._last) > _KINDS_MAX:
            self._last.popitem(last=False)
        record.left_out = left_out
        return True


class TextFormatter(logging.Formatter):
    """Time in UTC, level, logger, message."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with the number of records that were left out before it."""
        left_out = getattr(record, "left_out", 0)
        line = super().formatMessage(record)
        return f"{line} ({left_out} more like this before)" if left_out else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; exception and left_out where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if left_out := getattr(record, "left_out", 0):
            fields["left_out"] = left_out
        return orjson.dumps(fields, default=str).decode()


def configure(config: TelemetryConfig, stream: IO[str] = sys.stderr) -> None:
    """Log from here on as the configuration says; replaces what an earlier call set up."""
    as_json = config.log_format == "json" or (config.log_format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    handler.addFilter(Sparse())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells starts and stops of its own, three times
