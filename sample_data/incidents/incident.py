"""An incident: a pure function from the operations of a second to other ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sample_data.incidents.truth import Truth
from sample_data.model import Operations, Workload

_STREAM = 4
RAMP_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Moment:
    """A second of an incident: `elapsed` seconds since its start, `progress` from 0 to 1 at its end.

    `level` is how much of it is there: it grows from 0 to 1 within RAMP_SECONDS, and is 0 after the end.
    """

    second: int
    elapsed: int
    progress: float
    level: float
    rng: np.random.Generator


Effect = Callable[[Operations, Moment], Operations]


@dataclass(frozen=True)
class Incident:
    """`leaves_traces` says that its effect goes on being asked for after the end, at level 0."""

    truth: Truth
    effect: Effect
    seed: int
    leaves_traces: bool = False

    def touches(self, second: int) -> bool:
        """Whether the operations of this second may be other ones."""
        return self.truth.start_second <= second and (self.leaves_traces or second < self.truth.end_second)

    def __call__(self, operations: Operations, second: int) -> Operations:
        """The operations of `second` as the incident changes them."""
        if not self.touches(second) or not len(operations.start_ns):
            return operations
        elapsed = second - self.truth.start_second
        lasts = self.truth.end_second - self.truth.start_second
        level = min(1.0, (elapsed + 1) / RAMP_SECONDS) if elapsed < lasts else 0.0
        rng = np.random.default_rng([self.seed, _STREAM, second])
        return self.effect(operations, Moment(second, elapsed, min(1.0, elapsed / lasts), level, rng))


class Platform:
    """The operations of a workload as incidents change them."""

    def __init__(self, workload: Workload, incidents: Iterable[Incident]) -> None:
        self._workload = workload
        # Incidents that change who runs come last: they must find the rows that others add.
        self.incidents = sorted(incidents, key=lambda incident: incident.leaves_traces)

    def operations(self, second: int) -> Operations:
        """The operations that start in `second` (since the Unix epoch), retries up to a second later."""
        operations = self._workload.operations(second)
        for incident in self.incidents:
            operations = incident(operations, second)
        return operations
