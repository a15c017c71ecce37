"""How many requests the servers refused, and why."""

from __future__ import annotations

import re
from collections import Counter

from collector.errors import RetryableError, SpanlakeError

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


class Refusals:
    """Counts of refused trace requests. Counted in the event loop, read from anywhere."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """By (transport, reason); a reason is the kind of the error, such as 'overloaded'."""
        self.spans: Counter[str] = Counter()
        """By transport. A request that was refused before its spans were counted counts as one span."""

    def count(self, transport: str, error: Exception) -> None:
        """Count a request that was told `error`."""
        spans = error.refused_spans if isinstance(error, RetryableError) else None
        self.requests[transport, reason(error)] += 1
        self.spans[transport] += 1 if spans is None else spans


def reason(error: Exception) -> str:
    """'invalid_request' for InvalidRequestError; 'unexpected' for errors that spanlake does not raise itself."""
    if not isinstance(error, SpanlakeError):
        return "unexpected"
    return _WORD_START.sub("_", type(error).__name__.removesuffix("Error")).lower()
