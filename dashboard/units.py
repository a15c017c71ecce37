"""Numbers as people read them: durations, rates, shares, counts, ages and what changed between two of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

NONE = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_DURATIONS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=&])")


def duration(ns: float | None) -> str:
    """Nanoseconds in the unit that keeps one to three digits before the point: `1.84 ms`, `42 µs`."""
    if ns is None:
        return NONE
    for scale, unit in _DURATIONS:
        # 999.6 µs would round to 1000 µs, which is read as 1 ms.
        if ns >= scale * 0.9995:
            return f"{_three_digits(ns / scale, keep_zeros=True)} {unit}"
    return "0 ns" if ns <= 0 else f"{ns:.2g} ns"


def rate(per_second: float | None) -> str:
    """Spans per second, or per minute where there are fewer than one in ten seconds: `1.2k/s`, `3/min`."""
    if per_second is None:
        return NONE
    if 0 < per_second < 0.1:
        return f"{_three_digits(per_second * 60)}/min"
    return f"{magnitude(per_second)}/s"


def share(fraction: float | None) -> str:
    """A fraction of 1 as percent; what is not nothing never reads as zero: `0.3 %`, `<0.01 %`."""
    if fraction is None:
        return NONE
    percent = fraction * 100
    if 0 < percent < 0.01:
        return "<0.01 %"
    if 99.99 < percent < 100:
        return ">99.99 %"
    return f"{percent:.{0 if percent in {0, 100} else 1 if percent >= 1 else 2}f} %"


def magnitude(value: float) -> str:
    """Three digits and a suffix: `950`, `1.25k`, `18.2M`."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale * 0.9995:
            return _three_digits(value / scale) + suffix
    return _three_digits(value)


def age(time: datetime, now: datetime) -> str:
    """How long before `now` a time was, in whole units: `12 s ago`, `3 h ago`; `just now` under a minute."""
    seconds = (now - time).total_seconds()
    return "just now" if seconds < 60 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A length of time in its largest whole unit: `42 s`, `15 min`, `6 h`, `3 d`."""
    for unit_seconds, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(time: datetime, now: datetime) -> str:
    """A time of day in UTC, with the date where it is not today's: `04:47 UTC`, `22 Nov 04:47 UTC`."""
    utc = time.astimezone(UTC)
    day = "" if utc.date() == now.astimezone(UTC).date() else f"{utc.day} {utc:%b} "
    return f"{day}{utc:%H:%M} UTC"


def relative_change(ratio: float | None) -> str:
    """A value over its baseline as growth: `+12 %`, from doubling on as a factor; empty for None."""
    if ratio is None:
        return ""
    if ratio >= 2:
        return f"{ratio:.1f}{_TIMES}" if ratio < 9.95 else f"{magnitude(ratio)}{_TIMES}"
    percent = round((ratio - 1) * 100)
    return f"{_signed(percent)} %" if percent else "±0 %"


def point_change(difference: float | None) -> str:
    """A difference of two fractions of 1 in percentage points: `+0.8 pp`; empty for None."""
    if difference is None:
        return ""
    points = round(difference * 100, 2 if abs(difference) < 0.001 else 1)
    return f"{_signed(points)} pp" if points else "±0 pp"


def escape_markdown(text: str) -> str:
    """Text of unknown origin for a place that renders Markdown, where it must stay text."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _three_digits(value: float, *, keep_zeros: bool = False) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    text = f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
    return text if keep_zeros else text.rstrip("0").rstrip(".")


def _signed(value: float) -> str:
    return f"+{value:g}" if value > 0 else f"\N{MINUS SIGN}{-value:g}"
