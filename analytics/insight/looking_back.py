"""Findings of a whole window, past or present: what was found at any of its minutes, and whether it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from analytics.insight.engine import findings, has_history
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Finding
from analytics.insight.loading import Source, load, naive
from analytics.insight.rhythm import of_reader
from analytics.window import MINUTE, Window
from collector.config import InsightConfig
from collector.errors import SpanlakeError
from collector.lake.lake import Lake, Reader

_LOOKS_MAX = 24
_ROWS_HELD_MAX = 1_850_000
"""Rows of the base set that are held where those of a history are fewer: so much is read ahead."""


class NoHistoryError(SpanlakeError):
    """There is not enough history before the window to compare it with."""


def look_back(
    lake: Lake, window: Window, config: InsightConfig, region: str | None = None, tenant: str | None = None
) -> list[Finding]:
    """Findings of `window`, most important first; `state` is 'ongoing' for those still seen at its end, else
    'resolved'.

    Looks at _LOOKS_MAX moments of the window at most, two in a row of which must agree. Holds the evidence of
    `history_minutes`, and of as many minutes more as make _ROWS_HELD_MAX rows, twice that time at most, however long
    the window is. Raises NoHistoryError.
    """
    stride = max(1, -(-window.minutes // _LOOKS_MAX))
    moments = [window.end - stride * step * MINUTE for step in range(window.minutes // stride + 1)][::-1]
    scope = {name: [value] for name, value in (("region", region), ("tenant", tenant)) if value is not None}
    judged = max(window.end - window.start, config.recent_minutes * MINUTE)
    seen: dict[str, tuple[int, Finding]] = {}
    before: set[str] = set()
    evidence = Evidence.empty()
    with lake.read() as reader:
        past = of_reader(reader, config, scope)
        for number, (moment, evidence) in enumerate(_evidence(reader, moments, config, region, tenant)):
            found = {one.identity: one for one in findings(evidence, moment, judged, config, past)}
            for identity, one in found.items():
                if identity in before or len(moments) == 1:
                    since = min(one.since, seen[identity][1].since) if identity in seen else one.since
                    seen[identity] = (number, replace(one, since=since))
            before = set(found)
    if not has_history(evidence, window.end, config):
        raise NoHistoryError(
            f"insufficient history: expected at least {config.recent_minutes + 15} minutes of rollups before "
            f"{window.end:%Y-%m-%d %H:%M} UTC to compare with; ask again later, or for a later time"
        )
    told = [
        replace(one, state="ongoing" if number == len(moments) - 1 else "resolved") for number, one in seen.values()
    ]
    return sorted(told, key=lambda one: (one.state == "resolved", -one.score))


def _evidence(
    reader: Reader, moments: Sequence[datetime], config: InsightConfig, region: str | None, tenant: str | None
) -> Iterator[tuple[datetime, Evidence]]:
    """Each moment, and what the minutes of history before it tell.

    Each minute is read once, those of some moments together: a reading has its price. How many depends on the rows that
    they have, which are held beside those of a history.
    """
    history = config.history_minutes * MINUTE
    held = _minutes_of_rows(reader, moments[0], moments[-1], region, tenant) * MINUTE
    ahead = min(history, held - history)
    known, end = Evidence.empty(), moments[0] - history
    for moment in moments:
        if moment > end:
            start = max(end, moment - history)
            end = max(later for later in moments if later <= max(moment, start + ahead))
            before = known.between(moment - history, start).pruned()
            known = load(reader, start, end, region, tenant, before=before)
        yield moment, known.between(moment - history, moment)


def _minutes_of_rows(reader: Reader, start: datetime, end: datetime, region: str | None, tenant: str | None) -> int:
    """Over how many minutes _ROWS_HELD_MAX rows of the base set are spread between two times."""
    source = Source(reader, reader.filled(), naive(start), naive(end), region, tenant)
    return int((end - start) / MINUTE) * _ROWS_HELD_MAX // max(source.count(), 1)
