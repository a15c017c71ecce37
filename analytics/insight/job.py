"""The job of insight: each whole minute once into table `findings`, and told to whom it concerns.

Its mark in table `progress` is a minute (since the Unix epoch), not a snapshot: a minute is judged once, when the
exporters have had their time and the other jobs have seen what came up to then (`complete`): half a minute would look
like a loss. Spans that come later still count as history. Rows, mark and what is known to be judged (`judged`) are
committed together. What was seen before is kept in memory, so that a minute costs one minute of reading; after a start
the last minutes are looked at again without being written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from analytics.insight import judged, marks
from analytics.insight.engine import findings, has_history
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Finding, frame
from analytics.insight.going_on import Ongoing
from analytics.insight.lifecycle import WARM_UP_MINUTES, Tracker
from analytics.insight.loading import newest
from analytics.insight.rhythm import of_reader
from analytics.window import MINUTE
from collector.config import InsightConfig
from collector.lake import maintain
from collector.lake.lake import Lake, Reader, StaleProgressError

log = logging.getLogger(__name__)

TABLE = "findings"
GRACE = timedelta(seconds=15)
_EXPORTED = timedelta(seconds=10)
"""Exporters keep spans for 5 s as a rule, and a seal takes one or two."""
_CAUGHT_UP_MINUTES_MAX = 10
Seen = Callable[[Reader, datetime], datetime]
"""Up to when all that had come is in the tables that findings are made of (`analytics.jobs.seen_until`)."""
Tell = Callable[[list[Finding], datetime], None]


def complete(now: datetime, seen: datetime) -> datetime:
    """The end of the newest minute whose spans are all there (aware), as far as can be told at `now`."""
    return min(now - GRACE, seen - _EXPORTED).astimezone(UTC).replace(second=0, microsecond=0)


class InsightJob:
    """Judges minutes as they end. Not for several threads at once; several processes may run it."""

    def __init__(self, lake: Lake, config: InsightConfig, tell: Tell | None = None) -> None:
        self._lake = lake
        self._config = config
        self._tell = tell or (lambda _found, _minute: None)
        self._tracker = Tracker(config.resolve_minutes)
        self._evidence = Ongoing(config.history_minutes)
        self._record = judged.Record(judged.settings_of(config))
        self._judged_until: datetime | None = None
        self._is_warm = False

    def step(self, now: datetime, seen_until: Seen = lambda _, now: now) -> int:
        """Judge the minutes that are complete at `now` (aware) and were not judged yet; returns how many.

        After a pause only the last _CAUGHT_UP_MINUTES_MAX are. Raises duckdb.Error where the lake cannot be used.
        """
        due = complete(now, now + GRACE)
        if self._judged_until is not None and self._judged_until >= due:
            return 0
        with self._lake.read() as reader:
            position = reader.position(marks.JOB)
            if position is None or marks.time(position) < due:
                due = complete(now, seen_until(reader, now))
            if position is not None and marks.time(position) >= due:
                return 0
            if not self._is_warm and newest(reader) is None:
                return 0
        first = due if position is None else max(marks.time(position) + MINUTE, due - _CAUGHT_UP_MINUTES_MAX * MINUTE)
        if not self._is_warm:
            self._warm_up(first)
            self._is_warm = True
        count = 0
        while first <= due:
            if not self._judge(first, position):
                return count
            self._judged_until = first
            position, first, count = marks.position(first), first + MINUTE, count + 1
        return count

    def _warm_up(self, first: datetime) -> None:
        for step in range(WARM_UP_MINUTES, 0, -1):
            self._found(first - step * MINUTE)

    def _judge(self, minute: datetime, position: int | None) -> bool:
        """Judge one minute and commit it; False where another process did."""
        told, evidence = self._found(minute)
        record = self._record
        try:
            with self._lake.write() as transaction:
                transaction.advance(marks.JOB, expected=position, position=marks.position(minute))
                if told:
                    transaction.insert(TABLE, frame(told, minute).to_arrow())
                if has_history(evidence, minute, self._config):
                    record = record.write(transaction, evidence, minute)
        except StaleProgressError as error:
            log.info("%s", error)
            return False
        self._record = record
        self._tell(told, minute)
        for table in (TABLE, judged.TABLE):
            maintain.merge_once(self._lake, table)
        return True

    def _found(self, minute: datetime) -> tuple[list[Finding], Evidence]:
        """What is open or was resolved at the end of data `minute`, and what it was judged by."""
        window = timedelta(minutes=self._config.recent_minutes)
        with self._lake.read() as reader:
            evidence = self._evidence.until(reader, minute)
            found = findings(evidence, minute, window, self._config, of_reader(reader, self._config))
        return self._tracker.update(found, minute), evidence
