"""Windows: whole minutes of UTC."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.window import Window

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_last_leaves_the_running_minute_out() -> None:
    window = Window.last(15, NOON + timedelta(seconds=59, microseconds=7))
    assert window == Window(NOON - timedelta(minutes=15), NOON)
    assert (window.seconds, window.minutes) == (900, 15)


def test_last_takes_any_zone() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=9, minutes=30)))
    assert Window.last(1, east) == Window.last(1, NOON)
    assert Window.last(1, east).end.utcoffset() == timedelta(0)


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)), st.integers(1, 10_000)
)
def test_windows_of_the_past_touch_and_are_as_long(now: datetime, minutes: int) -> None:
    window = Window.last(minutes, now)
    assert timedelta(0) <= now - window.end < timedelta(minutes=1)
    assert window.previous().end == window.start
    assert window.previous().minutes == window.minutes == minutes


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("15m", 15), ("1h", 60), (" 24 hours ", 1440), ("7d", 10080), ("1w", 10080), ("2min", 2)],
)
def test_parse_lengths(text: str, minutes: int) -> None:
    assert Window.parse(text, NOON) == Window.last(minutes, NOON)


def test_parse_times_with_and_without_offset() -> None:
    expected = Window(NOON, NOON + timedelta(hours=1))
    assert Window.parse("2026-03-01T12:00/2026-03-01T13:00", NOON) == expected
    assert Window.parse("2026-03-01T12:00Z/2026-03-01T14:00+01:00", NOON) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "15", "0m", "1h/2h", "2026-03-01T13:00/2026-03-01T12:00", "900000w"]
)
def test_parse_says_what_it_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no ISO 8601"):
        Window.parse(text, NOON)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2026, 1, 1), NOON),
        (NOON, NOON),
        (NOON, NOON + timedelta(minutes=1, seconds=1)),
        (NOON, NOON + timedelta(days=401)),
    ],
)
def test_bad_windows_are_refused(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="window"):
        Window(start, end)
