"""Which minutes the job of insight has judged, by which settings, and how many spans it knew of them.

Table `judged_minutes` tells of stretches of minutes that were judged one after the other by one process, of an hour at
most. With each minute a stretch goes on, in the transaction of its findings: a row more, which takes the place of those
with the same start. Minutes without enough history before them are not judged. Spans that came since show by comparing
`spans` with what the rollups count now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import polars as pl

from analytics.insight.evidence import Evidence
from analytics.insight.going_on import REREAD_MINUTES
from analytics.insight.grains import minute_number
from analytics.insight.loading import naive
from analytics.window import HOUR, MINUTE, Window
from collector.config import InsightConfig
from collector.lake.lake import Reader, Transaction

TABLE = "judged_minutes"
LATE_SHARE_MAX = 0.01
"""Of the spans of a stretch; where more came after it was judged, it is taken as not judged."""
_NUMBER = "(epoch_us(window_start) // 60_000_000)::INTEGER"


def settings_of(config: InsightConfig) -> str:
    """16 hex digits that tell settings apart by which the same spans may give other findings."""
    deciding = config.model_dump(mode="json", exclude={"enabled"})
    return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Judged:
    """Minutes from `start` up to `until` (aware) that were judged with `spans`; `spans_now` are counted of them now."""

    start: datetime
    until: datetime
    spans: int
    spans_now: int

    @property
    def late(self) -> int:
        """Spans that came after they were judged; 0 where the rollups are gone."""
        return max(0, self.spans_now - self.spans)

    @property
    def holds(self) -> bool:
        """Whether too few came late to change much."""
        return self.late <= LATE_SHARE_MAX * self.spans_now


@dataclass
class Record:
    """The stretch that a job is at, as it was committed last."""

    settings: str
    start: datetime | None = None
    until: datetime | None = None
    spans: dict[int, int] = field(default_factory=dict)
    """Spans by number of the minute, as they were counted last: while it is among those that are read again."""

    def write(self, transaction: Transaction, evidence: Evidence, minute: datetime) -> Record:
        """Write that the minute that ends at `minute` was judged by `evidence`; returns the record after that.

        Raises duckdb.Error.
        """
        start = self.start
        goes_on = start is not None and self.until == minute - MINUTE and minute <= start.replace(minute=0) + HOUR
        if start is None or not goes_on:
            start = minute - MINUTE
        spans = {**(self.spans if goes_on else {}), **_counted(evidence, start, minute)}
        values = [naive(start), naive(minute), self.settings, sum(spans.values())]
        transaction.execute(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?)", values)
        return Record(self.settings, start, minute, spans)


def stretches(reader: Reader, window: Window, settings: str) -> list[Judged]:
    """What was judged of `window` by `settings`, in order; the first and the last may reach beyond it.

    Empty for a lake of an older release, which has no such table. Raises duckdb.Error.
    """
    if TABLE not in reader.filled():
        return []
    found = reader.rows(
        f"SELECT start, max(until), arg_max(spans, until) FROM {TABLE} WHERE until > ? AND start < ? AND settings = ? "
        "GROUP BY start ORDER BY start",
        [naive(window.start), naive(window.end), settings],
    )
    counts = _counts(reader, found[0][0], found[-1][1]) if found else {}
    return [
        Judged(
            start.replace(tzinfo=UTC),
            until.replace(tzinfo=UTC),
            int(spans),
            sum(counts.get(number, 0) for number in range(minute_number(start), minute_number(until))),
        )
        for start, until, spans in found
    ]


def without(window: Window, known: Sequence[Judged]) -> list[Window]:
    """The parts of `window` that none of `known` (in order) covers."""
    parts, start = [], window.start
    for one in known:
        if one.start > start:
            parts.append(Window(start, min(one.start, window.end)))
        start = max(start, one.until)
    if start < window.end:
        parts.append(Window(start, window.end))
    return parts


def _counted(evidence: Evidence, start: datetime, minute: datetime) -> dict[int, int]:
    """Spans of the last minutes from `start` on, which are those that the evidence has read anew."""
    first = max(start, minute - (REREAD_MINUTES + 1) * MINUTE)
    rows = evidence.base.between(naive(first), naive(minute)).rows
    return dict(rows.group_by("minute").agg(pl.col("count").sum()).iter_rows())


def _counts(reader: Reader, start: datetime, until: datetime) -> dict[int, int]:
    """Spans by number of the minute (naive times)."""
    counted = (
        f"SELECT {_NUMBER}, sum(count)::BIGINT FROM rollup_1m WHERE window_start >= ? AND window_start < ? GROUP BY 1"
    )
    return dict(reader.rows(counted, [start, until]))
