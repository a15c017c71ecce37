"""A platform with a history, and the same platform with an incident after it, as evidence by stretches of minutes.

Everything follows from the seed. Seeds of RESERVED are for judging only: no threshold may be chosen by looking at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np

from analytics.insight.evidence import Evidence, of_spans
from sample_data.columns import joined
from sample_data.frames import Frames
from sample_data.incidents.catalogue import incident
from sample_data.incidents.incident import Incident, Platform
from sample_data.incidents.truth import Truth
from sample_data.model import Workload
from sample_data.topology import build_topology

RESERVED = range(1000, 2000)
TENANTS = 48
RECOVERY_MINUTES = 6
STRETCH_MINUTES = 5
_FIRST_SECOND = 1_790_000_000 // 60 * 60
_WEEK_MINUTES = 7 * 24 * 60
_MINUTES = {"leak": (20, 30), "deploy": (5, 6), "restart": (5, 6)}
_MINUTES_USUAL = (5, 20)


@dataclass(frozen=True)
class Scenario:
    """An incident (None: a quiet time), its evidence, and the minutes (their ends) at which findings are asked for.

    `minutes` start with the incident (or after the history); the evidence of the time before is that of `quiet`.
    """

    kind: str
    seed: int
    truth: Truth | None
    evidence: Evidence
    minutes: tuple[datetime, ...]


class Platforms:
    """The scenarios of one seed; they share their history."""

    def __init__(self, seed: int, operations_per_second: float, history_minutes: int) -> None:
        """The history is rounded up to STRETCH_MINUTES."""
        rng = np.random.default_rng([seed, 7])
        self.seed = seed
        self.history_minutes = -(-history_minutes // STRETCH_MINUTES) * STRETCH_MINUTES
        self.start_second = _FIRST_SECOND + 60 * int(rng.integers(_WEEK_MINUTES))
        self._lengths = {low: int(rng.integers(*low)) for low in (_MINUTES_USUAL, *_MINUTES.values())}
        self._topology = build_topology(seed, TENANTS)
        self._workload = Workload(self._topology, seed, operations_per_second)
        self._frames = Frames(self._topology)
        self._quiet: dict[int, Evidence] = {}

    @property
    def incident_second(self) -> int:
        """When the incidents of this seed begin."""
        return self.start_second + 60 * self.history_minutes

    @cached_property
    def before(self) -> Evidence:
        """The history before the incident."""
        return Evidence.concat(
            [self._stretch(minute, None) for minute in range(0, self.history_minutes, STRETCH_MINUTES)]
        )

    def with_incident(self, kind: str, factor: float | None = None) -> Scenario:
        """An incident of this kind after the history, and the recovery."""
        lasts = self._lengths[_MINUTES.get(kind, _MINUTES_USUAL)]
        given = {} if factor is None else {"factor": str(factor)}
        scripted = incident(kind, self._topology, self.seed, self.incident_second, 60 * lasts, given)
        end = self.history_minutes + lasts + RECOVERY_MINUTES
        stretches = [self._stretch(minute, scripted) for minute in range(self.history_minutes, end, STRETCH_MINUTES)]
        evidence = Evidence.concat([self.before, *stretches])
        return Scenario(kind, self.seed, scripted.truth, evidence, self.minutes(self.history_minutes, end))

    def quiet(self, minutes: int) -> Scenario:
        """Nothing but ordinary days after the history."""
        end = self.history_minutes + minutes
        stretches = [self._stretch(minute, None) for minute in range(self.history_minutes, end, STRETCH_MINUTES)]
        evidence = Evidence.concat([self.before, *stretches])
        return Scenario("quiet", self.seed, None, evidence, self.minutes(self.history_minutes, end))

    def minutes(self, first: int, last: int) -> tuple[datetime, ...]:
        """Ends of the minutes from `first` to before `last`, counted from the start of the history."""
        start = datetime.fromtimestamp(self.start_second, UTC)
        return tuple(start + timedelta(minutes=minute + 1) for minute in range(first, last))

    def _stretch(self, minute: int, scripted: Incident | None) -> Evidence:
        """The evidence of STRETCH_MINUTES from this minute on."""
        first = self.start_second + 60 * minute
        seconds = range(first, first + 60 * STRETCH_MINUTES)
        touched = scripted is not None and any(map(scripted.touches, seconds))
        if not touched and minute in self._quiet:
            return self._quiet[minute]
        platform = Platform(self._workload, [scripted] if scripted is not None and touched else [])
        found = of_spans(self._frames.spans(joined([platform.operations(second) for second in seconds])))
        if not touched:
            self._quiet[minute] = found
        return found
