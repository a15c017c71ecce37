"""What the engine tells, minute by minute, as the live job would: each minute it knows what ended before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta

from analytics.insight.engine import findings
from analytics.insight.evidence import Evidence
from analytics.insight.finding import INFORMATION, Finding
from analytics.insight.lifecycle import Tracker
from collector.config import InsightConfig

WINDOW = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Minute:
    """What is open at `at` (the end of a minute), most important first, without INFORMATION; `seconds` of CPU to find
    it."""

    at: datetime
    told: tuple[Finding, ...]
    seconds: float


class Live:
    """Asks the engine for minute after minute of evidence, and keeps the identity of what it finds."""

    def __init__(self, config: InsightConfig) -> None:
        self._config = config
        self._tracker = Tracker(config.resolve_minutes)

    def fork(self) -> Live:
        """Another one that goes on from here by itself."""
        return deepcopy(self)

    def run(self, evidence: Evidence, minutes: Sequence[datetime]) -> list[Minute]:
        """What is told at each of these minutes, which follow each other."""
        return [self._minute(evidence, at) for at in minutes]

    def _minute(self, evidence: Evidence, at: datetime) -> Minute:
        began = time.process_time()
        known = evidence.between(at - timedelta(minutes=self._config.history_minutes), at)
        told = self._tracker.update(findings(known, at, WINDOW, self._config), at)
        unresolved = tuple(one for one in told if one.state != "resolved" and one.kind not in INFORMATION)
        return Minute(at, unresolved, time.process_time() - began)
