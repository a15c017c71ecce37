"""Which process runs on each host at which time: releases and restarts of an ordinary day.

Every service is released once a day, at a time of its own, rolled out host by host; half of the processes
restart once a day. Neither does any harm: whoever looks for causes must not take each change for one.
"""

from __future__ import annotations

import numpy as np

from sample_data.topology import HOSTS_PER_SERVICE, REGIONS, SERVICE_NAMES, STARTS_PER_RELEASE, Ints

_DAY_SECONDS = 86_400
_FIRST_DAY = 20_454  # 2026-01-01, the day of release 0
_SECONDS_BETWEEN_HOSTS = 60
_SECONDS_BETWEEN_REGIONS = 240
_RESTART_PROBABILITY = 0.5
_STREAM = 3

SHAPE = (len(REGIONS), len(SERVICE_NAMES), HOSTS_PER_SERVICE)


class Fleet:
    """The runs of all processes (see `instance_index`), a pure function of seed and time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._days: dict[int, tuple[Ints, Ints]] = {}

    def runs(self, second: int) -> Ints:
        """The run of each process in `second` (since the Unix epoch), of SHAPE: region, service, host."""
        day, offset = divmod(second, _DAY_SECONDS)
        released, restarted = self._day(day)
        _, restarted_before = self._day(day - 1)
        release = day - _FIRST_DAY - (offset < released)
        restarts = np.where(offset < released, restarted_before >= 0, (restarted >= 0) & (offset >= restarted))
        runs: Ints = np.maximum(release, 0) * STARTS_PER_RELEASE + restarts
        return runs

    def _day(self, day: int) -> tuple[Ints, Ints]:
        """Seconds of the day at which each process starts in a new release and again; -1 where it does not again."""
        if day not in self._days:
            rng = np.random.default_rng([self._seed, _STREAM, max(day, 0)])
            region, _, host = np.indices(SHAPE)
            begun = rng.integers(0, _DAY_SECONDS // 2, SHAPE[1])[None, :, None]
            released = begun + region * _SECONDS_BETWEEN_REGIONS + host * _SECONDS_BETWEEN_HOSTS
            again = rng.integers(_DAY_SECONDS // 2 + 3600, _DAY_SECONDS, SHAPE)
            self._days = {k: v for k, v in self._days.items() if k == day - 1}
            self._days[day] = released, np.where(rng.random(SHAPE) < _RESTART_PROBABILITY, again, -1)
        return self._days[day]
