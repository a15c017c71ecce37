"""Whether the collector can do its work, told as it is: asked of the disk where nothing else has just shown it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.maintenance import Maintenance
from collector.receive.memory import Memory
from collector.seal import Sealer
from collector.spool import Spool

PROVEN_SECONDS = 5.0
"""How long a successful write, of a request or of a probe, counts as proof."""
FAILED_SECONDS = 1.0
"""How long a failed probe counts, before the next one is tried."""
PROBE_BYTES = 64 * 1024
PROBE_SECONDS_MAX = 5.0
STALLED_SECONDS = 15.0
"""Longer than a merge and the transactions of jobs make a seal wait."""


class State(StrEnum):
    """OK; DEGRADED: requests are acknowledged, something else does not work; UNAVAILABLE: they are not."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a part."""

    part: str
    state: State
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """The state, which is that of the worst problem, and all problems."""

    problems: tuple[Problem, ...]

    @property
    def state(self) -> State:
        """Of the whole collector."""
        states = {problem.state for problem in self.problems}
        return next((state for state in (State.UNAVAILABLE, State.DEGRADED) if state in states), State.OK)


@dataclass(frozen=True, slots=True)
class _Probe:
    at: float
    fault: str


class Health:
    """Looks at the stages of one collector. Use it in one event loop."""

    def __init__(
        self,
        config: CollectorConfig,
        ingest: Ingest,
        spool: Spool,
        sealer: Sealer,
        maintenance: Maintenance,
        *,
        memory: Memory | None = None,
        stalled_seconds: float = STALLED_SECONDS,
        probe_seconds_max: float = PROBE_SECONDS_MAX,
    ) -> None:
        self._config = config
        self._ingest = ingest
        self._spool = spool
        self._sealer = sealer
        self._maintenance = maintenance
        self._memory = memory
        self._stalled_seconds = stalled_seconds
        self._probe_seconds_max = probe_seconds_max
        self._stopping = False
        self._last_probe: _Probe | None = None
        self._probing: asyncio.Task[None] | None = None

    def announce_stop(self) -> None:
        """From now on the collector is not ready."""
        self._stopping = True

    def live(self) -> Report:
        """Whether it works at all: UNAVAILABLE is what only a restart mends."""
        threads = {"ingest": self._ingest.is_alive, "sealer": self._sealer.is_alive}
        return Report(
            tuple(
                Problem(part, State.UNAVAILABLE, "a thread has ended; restart the collector, its log says why")
                for part, is_alive in threads.items()
                if not is_alive
            )
        )

    async def ready(self) -> Report:
        """Whether requests are acknowledged now, and whether what was acknowledged comes into the lake."""
        if self._stopping:
            return Report((Problem("collector", State.UNAVAILABLE, "stopping"),))
        spool = await self._spool_problems()
        return Report((*self.live().problems, *self._memory_problems(), *spool, *self._lake_problems()))

    def _memory_problems(self) -> Iterator[Problem]:
        if self._memory is not None and self._memory.is_over():
            yield Problem("memory", State.UNAVAILABLE, str(self._memory.error()))

    async def _spool_problems(self) -> list[Problem]:
        problems = []
        held, bound = self._spool.payload_bytes, self._config.spool_bytes_max
        if held >= bound:
            message = f"holds {held} bytes that are not in the lake yet: collector.spool_bytes_max = {bound} is reached"
            problems.append(Problem("spool", State.UNAVAILABLE, message))
        fault = await self._spool_fault()
        if fault:
            problems.append(Problem("spool", State.UNAVAILABLE, f"cannot be written: {fault}"))
        return problems

    async def _spool_fault(self) -> str:
        """Why the last write failed; '' where the spool takes requests."""
        append = self._ingest.last_append
        if append is not None and not append.fault and time.monotonic() - append.at < PROVEN_SECONDS:
            return ""
        if self._probe_is_old():
            if self._probing is None or self._probing.done():
                size_bytes = max(PROBE_BYTES, append.size_bytes if append is not None and append.fault else 0)
                self._probing = asyncio.create_task(self._probe(size_bytes))
            done, _ = await asyncio.wait([self._probing], timeout=self._probe_seconds_max)
            if not done:
                return f"the disk has not answered for {self._probe_seconds_max:g} s"
        return self._last_probe.fault if self._last_probe else ""

    def _probe_is_old(self) -> bool:
        probe, append = self._last_probe, self._ingest.last_append
        if probe is None or (append is not None and append.fault and append.at > probe.at):
            return True
        return time.monotonic() - probe.at > (FAILED_SECONDS if probe.fault else PROVEN_SECONDS)

    async def _probe(self, size_bytes: int) -> None:
        try:
            await asyncio.to_thread(self._spool.probe, size_bytes)
        except Exception as error:  # noqa: BLE001 - whatever it is, the spool cannot be written
            self._last_probe = _Probe(time.monotonic(), str(error) or type(error).__name__)
        else:
            self._last_probe = _Probe(time.monotonic(), "")

    def _lake_problems(self) -> Iterator[Problem]:
        """Requests are acknowledged all the same, until the spool is full."""
        sealer = self._sealer
        waiting = f"{sealer.unsealed_requests} requests wait in the spool"
        if sealer.consecutive_failures:
            message = f"the last {sealer.consecutive_failures} seals failed: {sealer.last_fault}; {waiting}"
            yield Problem("lake", State.DEGRADED, message)
        elif sealer.stalled_seconds > self._stalled_seconds:
            message = f"no seal has succeeded for {sealer.stalled_seconds:.0f} s; {waiting}"
            yield Problem("lake", State.DEGRADED, message)
        if self._maintenance.consecutive_failures or not self._maintenance.is_alive:
            yield Problem("maintenance", State.DEGRADED, "merges fail, its log says why; small files pile up")
