"""Windows of time that health is asked of: whole minutes of UTC, half-open."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
WINDOW_MAX = timedelta(days=400)
_UNITS = {"m": MINUTE, "h": HOUR, "d": timedelta(days=1), "w": timedelta(weeks=1)}
_LENGTH = re.compile(r"(\d{1,6})\s*([mhdw])[a-z]*")


@dataclass(frozen=True)
class Window:
    """The minutes from `start` (in it) to `end` (not in it); both aware UTC on whole minutes."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Raise ValueError for naive or non-UTC times, parts of minutes, and lengths outside 1 minute to 400 days."""
        for name, value in (("start", self.start), ("end", self.end)):
            if value.utcoffset() != timedelta(0):
                raise ValueError(
                    f"window {name} = {value.isoformat()}: expected an aware UTC time; add tzinfo=UTC"
                )
            if value.second or value.microsecond:
                raise ValueError(f"window {name} = {value.isoformat()}: expected a whole minute")
        if not MINUTE <= self.end - self.start <= WINDOW_MAX:
            raise ValueError(
                f"window of {self.end - self.start} from {self.start.isoformat()}: expected an end that is "
                f"1 minute to {WINDOW_MAX.days} days after the start"
            )

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return (self.end - self.start).total_seconds()

    @property
    def minutes(self) -> int:
        """Length in minutes."""
        return (self.end - self.start) // MINUTE

    def previous(self) -> Window:
        """The window of the same length that ends where this one starts."""
        return Window(self.start - (self.end - self.start), self.start)

    @classmethod
    def last(cls, minutes: int, now: datetime) -> Window:
        """The last `minutes` complete minutes before `now` (aware, any zone).

        The running minute is left out: it is not whole yet, so it would show every rate too low.
        """
        if not MINUTE <= minutes * MINUTE <= WINDOW_MAX:
            raise ValueError(f"window of {minutes} minutes: expected 1 minute to {WINDOW_MAX.days} days")
        end = now.astimezone(UTC).replace(second=0, microsecond=0)
        return cls(end - minutes * MINUTE, end)

    @classmethod
    def parse(cls, text: str, now: datetime) -> Window:
        """Read `15m`, `1h`, `24 hours`, `7d`, `2w` (that long before `now`) or `START/END` in ISO 8601.

        Times without an offset are UTC. Raises ValueError that says what was expected.
        """
        length = _LENGTH.fullmatch(text.strip().lower())
        if length:
            return cls.last(int(length[1]) * (_UNITS[length[2]] // MINUTE), now)
        first, slash, second = text.partition("/")
        if not slash:
            raise ValueError(
                f"window {text!r}: expected a length such as 15m, 1h, 24h or 7d, or START/END in ISO 8601"
            )
        return cls(_utc(first, text), _utc(second, text))


def _utc(part: str, text: str) -> datetime:
    try:
        time = datetime.fromisoformat(part.strip())
    except ValueError as error:
        raise ValueError(
            f"window {text!r}: {part.strip()!r} is no ISO 8601 time such as 2026-03-01T12:00Z"
        ) from error
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
