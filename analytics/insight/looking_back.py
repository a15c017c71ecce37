"""Findings of a whole window, past or present: what the job told of its minutes, and what it would have told of those
that it has not judged.

Minutes that the job has judged by the same settings (`judged`) are answered from table `findings`. All others are
judged now, at _LOOKS_MAX moments or so: as the job would have at each of them, by the same lifecycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import polars as pl

from analytics.insight import judged
from analytics.insight.engine import findings, has_history
from analytics.insight.evidence import Evidence
from analytics.insight.finding import FINDINGS_SCHEMA, Finding
from analytics.insight.judged import Judged
from analytics.insight.lifecycle import WARM_UP_MINUTES, Tracker
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


@dataclass(frozen=True)
class Answer:
    """Findings of a window, most important first; `state` is 'ongoing' for those that are open at its end, else
    'resolved'.

    `anew`: the parts that were judged now. `late`: how many spans came after the others were judged; counted by
    stretches, of which the first and the last may reach beyond the window.
    """

    found: list[Finding]
    anew: list[Window]
    late: int


def look_back(
    lake: Lake,
    window: Window,
    config: InsightConfig,
    region: str | None = None,
    tenant: str | None = None,
    *,
    anew: bool = False,
) -> Answer:
    """Findings of `window`, of what concerns a region or tenant where one is given; all judged now if `anew`.

    A part that is judged now is looked at minute by minute, or at _LOOKS_MAX moments of all such parts where these are
    longer. Holds the evidence of `history_minutes`, and of as many minutes more as make _ROWS_HELD_MAX rows, twice that
    time at most, however long the window is. Raises NoHistoryError where the end of the window is judged now, and has
    none; duckdb.Error where the lake cannot be read.
    """
    with lake.read() as reader:
        every = [] if anew else judged.stretches(reader, window, judged.settings_of(config))
        known = [one for one in every if one.holds]
        parts = judged.without(window, known)
        if len(parts) > _LOOKS_MAX:
            parts = [Window(parts[0].start, parts[-1].end)]
        told = _Told()
        told.add(_stored(reader, window, known))
        told.add(_judged_now(reader, parts, config, window.end))
    found = [one for one in told.answer(window.end) if concerns(one, region, tenant)]
    return Answer(found, parts, sum(one.late for one in known))


def concerns(finding: Finding, region: str | None, tenant: str | None) -> bool:
    """Whether a finding is of a region, or not confined to one; and hurts a tenant, is about it or suspects it."""
    of_region = region is None or finding.region in (None, region)
    tenants = {finding.tenant_scope, *finding.tenants}
    return of_region and (tenant is None or tenant in tenants or f"tenant={tenant}" in finding.suspects)


class _Told:
    """What was told last of each finding, and when; since when it is the earliest that was told."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[datetime, Finding]] = {}

    def add(self, told: Iterable[tuple[datetime, Finding]]) -> None:
        for moment, one in told:
            before = self._last.get(one.identity, (moment, one))
            last = max(before, (moment, one), key=lambda pair: pair[0])
            since = min(before[1].since, one.since)
            self._last[one.identity] = last[0], replace(last[1], since=since)

    def answer(self, end: datetime) -> list[Finding]:
        told = [
            replace(one, state="ongoing" if moment == end and one.state != "resolved" else "resolved")
            for moment, one in self._last.values()
        ]
        return sorted(told, key=lambda one: (one.state == "resolved", -one.score))


def _stored(reader: Reader, window: Window, known: Sequence[Judged]) -> Iterator[tuple[datetime, Finding]]:
    """The last row of each finding in the minutes of `window` that are `known`, with the earliest `since`."""
    if not known:
        return
    rows = reader.frame(
        "SELECT minute, identity, since FROM findings WHERE minute > ? AND minute <= ? ORDER BY minute",
        [naive(window.start), naive(window.end)],
    )
    bounds = {"begin": [naive(one.start) for one in known], "end": [naive(one.until) for one in known]}
    stretches = pl.DataFrame(bounds, schema=dict.fromkeys(bounds, pl.Datetime("us")))
    of = rows.join_asof(stretches, left_on="minute", right_on="begin", allow_exact_matches=False)
    inside = of.filter(pl.col("minute") <= pl.col("end"))
    last = inside.group_by("identity").agg(pl.max("minute"), first=pl.min("since"))
    names = ", ".join(FINDINGS_SCHEMA.names())
    found = reader.frame(
        f"SELECT {names} FROM findings SEMI JOIN "
        "(SELECT unnest(?::TIMESTAMP[]) AS minute, unnest(?::VARCHAR[]) AS identity) USING (minute, identity)",
        [last["minute"].to_list(), last["identity"].to_list()],
    )
    first = dict(last.select("identity", "first").iter_rows())
    for row in found.iter_rows(named=True):
        since = first[row["identity"]].replace(tzinfo=UTC)
        yield row["minute"].replace(tzinfo=UTC), replace(Finding.of_row(row), since=since)


def _judged_now(
    reader: Reader, parts: Sequence[Window], config: InsightConfig, end: datetime
) -> Iterator[tuple[datetime, Finding]]:
    """What the job would have told at moments of `parts`. Raises NoHistoryError."""
    stride = max(1, -(-sum(part.minutes for part in parts) // _LOOKS_MAX)) * MINUTE
    moments = [_moments(part, stride) for part in parts]
    found = {}
    for moment, evidence in _evidence(reader, sorted({one for each in moments for one in each}), config):
        found[moment] = findings(evidence, moment, config.recent_minutes * MINUTE, config, of_reader(reader, config))
        if moment == end and not has_history(evidence, end, config):
            raise NoHistoryError(
                f"insufficient history: expected at least {config.recent_minutes + 15} minutes of rollups before "
                f"{end:%Y-%m-%d %H:%M} UTC to compare with; ask again later, or for a later time"
            )
    for part, each in zip(parts, moments, strict=True):
        tracker = Tracker(config.resolve_minutes)
        for moment in each:
            told = tracker.update(found[moment], moment)
            yield from ((moment, one) for one in told if moment > part.start)


def _moments(part: Window, stride: timedelta) -> list[datetime]:
    """The end of a part and what lies strides before it; and before the part, what goes on by its start."""
    before = -(-WARM_UP_MINUTES * MINUTE // stride)
    inside = -(-(part.end - part.start) // stride)
    return [part.end - step * stride for step in reversed(range(inside + before))]


def _evidence(
    reader: Reader, moments: Sequence[datetime], config: InsightConfig
) -> Iterator[tuple[datetime, Evidence]]:
    """Each moment, and what the minutes of history before it tell.

    Each minute is read once, those of some moments together: a reading has its price. How many depends on the rows that
    they have, which are held beside those of a history.
    """
    if not moments:
        return
    history = config.history_minutes * MINUTE
    held = _minutes_of_rows(reader, moments[0], moments[-1]) * MINUTE
    ahead = min(history, held - history)
    known, end = Evidence.empty(), moments[0] - history
    for moment in moments:
        if moment > end:
            start = max(end, moment - history)
            end = max(later for later in moments if later <= max(moment, start + ahead))
            before = known.between(moment - history, start).pruned()
            known = load(reader, start, end, before=before)
        yield moment, known.between(moment - history, moment)


def _minutes_of_rows(reader: Reader, start: datetime, end: datetime) -> int:
    """Over how many minutes _ROWS_HELD_MAX rows of the base set are spread between two times."""
    source = Source(reader, reader.filled(), naive(start), naive(end))
    return int((end - start) / MINUTE) * _ROWS_HELD_MAX // max(source.count(), 1)
