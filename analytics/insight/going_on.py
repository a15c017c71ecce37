"""Evidence of a lake that goes on: what `loading.load` tells of the time before now, minute after minute, without
reading all of it again.

Of the minutes that were read before, the last REREAD_MINUTES are looked at again, for what came late. The rollups of
one are read again where more spans are counted there than before: spans are only ever added, and all sets of dimensions
together. What traces tell may change without that, and is read again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import polars as pl

from analytics.insight.evidence import Evidence
from analytics.insight.grains import minute_number, minute_time
from analytics.insight.loading import Source, clock_minutes, load, naive
from analytics.window import MINUTE
from collector.lake.lake import Reader

REREAD_MINUTES = 3
_HOUR_READ_MINUTES = 5
"""Of each hour, in which those before it are read again: they are summed up when they are over."""


class Ongoing:
    """The evidence of `history_minutes` up to a time that goes on. Not for several threads at once."""

    def __init__(self, history_minutes: int) -> None:
        self._history = history_minutes * MINUTE
        self._known = Evidence.empty()
        self._known_until: datetime | None = None
        self._clocks: set[int] = set()

    def until(self, reader: Reader, until: datetime) -> Evidence:
        """What the history before `until` (aware, a whole minute) tells, as `load` says it. Raises duckdb.Error."""
        start = until - self._history
        before = self._known_until
        if before is None or not start < before <= until:
            self._known = load(reader, start, until)
            self._clocks = clock_minutes(naive(start), naive(until))
        else:
            if until.minute == 0:
                self._known = self._known.pruned()
            self._go_on(reader, start, before, until)
        self._known_until = until
        wanted = [minute_time(number) for number in clock_minutes(naive(start), naive(until))]
        return replace(self._known, skew=self._known.skew.filter(pl.col("minute").is_in(wanted)))

    def _go_on(self, reader: Reader, start: datetime, before: datetime, until: datetime) -> None:
        looked_at = max(start, before - REREAD_MINUTES * MINUTE)
        source = Source(reader, reader.filled(), naive(looked_at), naive(until))
        changed = self._changed(source, naive(before))
        kept = self._known.between(start, looked_at).with_traced([source.told()])
        known = replace(source, start=changed).counted_after(self._known.between(start, changed).with_traced_of(kept))
        first, wanted = minute_number(changed), clock_minutes(naive(start), naive(until))
        self._clocks = {number for number in self._clocks if minute_number(naive(start)) <= number < first}
        skew = source.skew(known.base, sorted(wanted - self._clocks))
        self._clocks |= wanted
        is_new = until.minute < _HOUR_READ_MINUTES or until.hour != before.hour
        hourly = source.hourly() if is_new else self._known.hourly
        self._known = replace(known, skew=pl.concat([known.skew, skew]), hourly=hourly)

    def _changed(self, source: Source, before: datetime) -> datetime:
        """The first minute that counts other spans than it did (naive UTC), of those that are looked at again."""
        counts = source.spans_by_minute()
        rows = self._known.base.between(source.start, before).rows
        known = dict(rows.group_by("minute").agg(pl.col("count").sum()).iter_rows())
        again = range(minute_number(source.start), minute_number(before))
        return next((minute_time(at) for at in again if counts.get(at, 0) != known.get(at, 0)), before)
