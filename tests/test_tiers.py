"""Tiers of files: days of looks and merges simulated, at any rate of spans, and what of an hour is live meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.rollup import compact
from collector import maintenance
from collector.config import CollectorConfig
from collector.lake import maintain, tiers
from collector.lake.rewrite import COPIED_ROWS_MIN

DAYS = ["", "2026-11-21", "2026-11-22"]
FILES = st.lists(st.tuples(st.integers(1, 2**30), st.sampled_from(DAYS), st.sampled_from([0, 30, 240])), max_size=90)
HOUR = 3600
SORTED_SECONDS, COPIED_SECONDS = 3.6e-6, 0.23e-6
"""CPU of a span in a merge."""
SLOWER = 2
"""By the clock, of a process that others go before."""
DISK_BYTES_PER_SECOND = 150e6


@dataclass
class Simulated:
    """A lake that takes `rate` spans a second of so many bytes, from second 0 on, and looks as Maintenance does.

    `lives` has of each file when it was made and replaced, and the first and last second whose spans it has.
    """

    rate: int
    bytes_a_span: int
    lives: list[tuple[float, float, int, int]] = field(default_factory=list)
    files: dict[int, tiers.File] = field(default_factory=dict)
    made_at: dict[int, float] = field(default_factory=dict)
    sorted_spans: int = 0
    copied_spans: int = 0

    def run(self, seconds: int) -> None:
        config = CollectorConfig()
        merging: list[tiers.File] = []
        ends_at, waiting, number, is_waiting = 0.0, 0, 0, False
        for second in range(seconds):
            waiting += self.rate
            for rows in [config.seal_spans_max] * (waiting // config.seal_spans_max) or [waiting]:
                self._add(_file(number, rows, rows * self.bytes_a_span, second, second), second)
                waiting, number = waiting - rows, number + 1
            goes_on = bool(merging) and second >= ends_at
            if goes_on:
                self._swap(merging, second)
                merging = []
            elif merging or second % config.merge_interval_seconds:
                continue
            groups = tiers.due(sorted(self.files.values(), key=lambda file: file.data_file_id))
            sizes = [file.size_bytes for group in groups for file in group]
            if not goes_on:
                is_much = maintenance.is_much(maintain.Due(len(sizes), sum(sizes)))
                is_waiting = bool(groups) and not is_much and not is_waiting
            if groups and (goes_on or not is_waiting):
                merging = groups[0]
                ends_at = second + 1 + self._cost(merging)
        for number in list(self.files):
            self._remove(number, seconds)

    def _add(self, file: tiers.File, now: float) -> None:
        self.made_at[file.data_file_id] = now
        if file.is_settled:
            self.lives.append((now, np.inf, file.begin_snapshot, file.last_snapshot))
        else:
            self.files[file.data_file_id] = file

    def _remove(self, number: int, now: float) -> None:
        file = self.files.pop(number)
        self.lives.append((self.made_at[number], now, file.begin_snapshot, file.last_snapshot))

    def _swap(self, sources: list[tiers.File], now: float) -> None:
        for file in sources:
            self._remove(file.data_file_id, now)
        first, last = sources[0].begin_snapshot, max(file.last_snapshot for file in sources)
        rows = sum(file.rows for file in sources)
        self._add(_file(sources[0].data_file_id, rows, rows * self.bytes_a_span, first, last), now)

    def _cost(self, sources: list[tiers.File]) -> float:
        """Seconds that a merge takes; its spans are counted."""
        rows = sum(file.rows for file in sources)
        is_copied = rows >= COPIED_ROWS_MIN * len(sources)
        self.copied_spans += rows * is_copied
        self.sorted_spans += rows * (not is_copied)
        cpu_seconds = rows * (COPIED_SECONDS if is_copied else SORTED_SECONDS)
        return SLOWER * cpu_seconds + rows * self.bytes_a_span / DISK_BYTES_PER_SECOND

    def most_of_an_hour(self, seconds: int) -> int:
        """The most files that are live at once and have spans of one hour, of all hours that begin with a quarter."""
        born, died, first, last = np.array(self.lives).T
        most = 0
        for start in range(1 - HOUR, seconds, HOUR // 4):
            among = (last >= start) & (first < start + HOUR)
            times = np.concatenate([born[among], died[among]])
            changes = np.repeat([1, -1], np.count_nonzero(among))
            most = max(most, int(changes[np.lexsort((changes, times))].cumsum().max(initial=0)))
        return most


def _file(number: int, rows: int, size: int, first: int, last: int) -> tiers.File:
    day = f"day {last // (24 * HOUR)}"
    return tiers.File(number, f"{number}", True, rows, size, first, last, number, day, last - first)


@pytest.mark.parametrize(("rate", "at_most"), [(1_000, 80), (10_000, 90), (60_000, 65), (100_000, 70), (150_000, 99)])
def test_a_day_has_few_files_in_any_hour(rate: int, at_most: int) -> None:
    simulated, day = Simulated(rate, bytes_a_span=57), 24 * HOUR
    simulated.run(day + HOUR)
    assert simulated.most_of_an_hour(day + HOUR) <= at_most
    spans = rate * (day + HOUR)
    assert simulated.sorted_spans <= 2.1 * spans
    assert simulated.sorted_spans + simulated.copied_spans <= 3.6 * spans
    lives = np.array(simulated.lives)
    of_the_day = lives[(lives[:, 1] >= day + HOUR) & (lives[:, 3] < day)]
    assert len(of_the_day) <= 1 + rate * day * 57 / tiers.SETTLED_BYTES


@settings(max_examples=20)
@given(st.integers(1, 120_000), st.integers(30, 90))
def test_any_rate_has_under_a_hundred_files_in_any_hour(rate: int, bytes_a_span: int) -> None:
    simulated = Simulated(rate, bytes_a_span)
    simulated.run(2 * HOUR)
    assert simulated.most_of_an_hour(2 * HOUR) < 100


@given(FILES)
def test_tiers_rise_and_days_end(files: list[tuple[int, str, int]]) -> None:
    known = [tiers.File(i, f"{i}", True, 1, size, i, i, i, day, s) for i, (size, day, s) in enumerate(files)]
    groups = tiers.due(known)
    chosen = [file for group in groups for file in group]
    assert len(set(chosen)) == len(chosen)
    assert not any(file.is_settled for file in chosen)
    for group in groups:
        assert len(group) >= 2
        assert sum(file.size_bytes for file in group) <= tiers.MERGED_BYTES_MAX
        assert group == sorted(group, key=lambda file: file.data_file_id)
        if max(file.size_bytes for file in group) >= tiers.TIER_BYTES[-1][0]:
            assert len({file.day for file in group}) == 1
    left = [file for file in known if file not in set(chosen)]
    for low, high in tiers.TIER_BYTES[:-1]:
        assert len([file for file in left if low <= file.size_bytes < high]) < tiers.TIER_FILES


def test_a_file_is_settled_by_its_size_and_by_the_time_its_spans_took() -> None:
    def file(size: int, seconds: int) -> tiers.File:
        return _file(0, 1, size, 0, seconds)

    assert not file(tiers.SETTLED_BYTES - 1, 10 * HOUR).is_settled
    assert file(tiers.SETTLED_BYTES, tiers.SETTLED_SECONDS).is_settled
    assert not file(tiers.SETTLED_BYTES, tiers.SETTLED_SECONDS - 1).is_settled
    assert not file(tiers.FULL_BYTES - 1, 0).is_settled
    assert file(tiers.FULL_BYTES, 0).is_settled


@settings(max_examples=30)
@given(st.integers(1_000, 10_000_000), st.integers(2_000, 400_000_000), st.sampled_from([2, 10]))
def test_tables_of_jobs_have_under_a_hundred_files_an_hour(run_bytes: int, minute_bytes: int, interval: int) -> None:
    """Each run adds a file; rows of a minute are summed to `minute_bytes` at most, or are as many as they were."""
    files: dict[str, tiers.File] = {}

    def replace(number: int, sources: list[tiers.File], *, is_summed: bool) -> None:
        first, last = min(file.begin_snapshot for file in sources), max(file.last_snapshot for file in sources)
        size = sum(file.size_bytes for file in sources)
        size = min(size, (1 + last // 60 - first // 60) * minute_bytes) if is_summed else size
        for file in sources:
            files.pop(file.path, None)
        files[f"{number}"] = _file(number, 1, size, first, last)

    most = number = 0
    for second in range(0, HOUR, interval):
        number += 1
        replace(number, [_file(number, 1, run_bytes, second, second)], is_summed=True)
        while chosen := compact.due([compact.File(file.path, file.size_bytes) for file in files.values()]):
            number += 1
            replace(number, [files[file.path] for file in chosen], is_summed=True)
        while groups := tiers.due([file for file in files.values() if file.size_bytes >= compact.FILE_BYTES_MAX]):
            number += 1
            replace(number, groups[0], is_summed=False)
        most = max(most, len(files))
    assert most < 100
