"""The mark of the job of insight in table `progress`: a minute since the Unix epoch, not a snapshot."""

from __future__ import annotations

from datetime import UTC, datetime

JOB = "insight"


def position(minute: datetime) -> int:
    """The mark of the end of the minutes that are judged (aware)."""
    return int(minute.timestamp()) // 60


def time(mark: int) -> datetime:
    """The end of the minutes that are judged at a mark (aware)."""
    return datetime.fromtimestamp(mark * 60, UTC)
