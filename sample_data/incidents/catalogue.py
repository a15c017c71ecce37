"""The kinds of incidents by name, and how the command line asks for one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sample_data.incidents import changes, delivery, load, platform
from sample_data.incidents.incident import Incident
from sample_data.incidents.scene import PARAMETERS, Scene
from sample_data.topology import Topology

KINDS: Mapping[str, Callable[[Scene], Incident]] = {
    make.__name__: make
    for make in (
        load.noisy_neighbour,
        load.hot_key,
        load.tenant_burst,
        load.retry_storm,
        load.mix_shift,
        platform.region_slow,
        platform.clock_skew,
        platform.hit_collapse,
        delivery.subscriber_lag,
        delivery.lost_deliveries,
        changes.deploy_errors,
        changes.deploy_latency,
        changes.leak,
        changes.deploy,
        changes.restart,
    )
}
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "": 1}
_FORM = "KIND[:param=value]...@START+DURATION, such as noisy_neighbour:factor=5@10m+15m"


@dataclass(frozen=True, slots=True)
class Order:
    """An incident as asked for: `start` is a time, or seconds after the start of the run."""

    kind: str
    given: Mapping[str, str]
    start: datetime | float
    duration_seconds: int

    def incident(self, topology: Topology, seed: int, run_start_second: int) -> Incident:
        """The incident in a run. Raises ValueError for parameters that it cannot have."""
        start = self.start
        second = start.timestamp() if isinstance(start, datetime) else run_start_second + start
        return incident(self.kind, topology, seed, int(second), self.duration_seconds, self.given)


def incident(
    kind: str,
    topology: Topology,
    seed: int,
    start_second: int,
    duration_seconds: int,
    given: Mapping[str, str] | None = None,
) -> Incident:
    """An incident of KINDS on the platform whose traffic has this seed.

    `given` holds parameters by name (PARAMETERS, those that the kind knows); what is not given is drawn: the same
    arguments, the same incident. Raises ValueError for an unknown kind or parameter, or a value out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"incident is {kind!r}, expected one of {', '.join(KINDS)}")
    if duration_seconds < 1 or start_second < 0:
        raise ValueError(f"incident {kind} starts at {start_second} s and lasts {duration_seconds} s, expected more")
    return KINDS[kind](Scene(kind, topology, seed, start_second, duration_seconds, dict(given or {})))


def parse(text: str) -> Order:
    """An incident of the command line, KIND[:param=value]...@START+DURATION. Raises ValueError for another form.

    START is a time as in ISO 8601 (UTC unless it says otherwise) or a duration after the start of the run, before it
    with a minus; durations are such as 90, 90s, 15m, 2h.
    """
    what, _, when = text.partition("@")
    kind, *parameters = what.split(":")
    start, _, duration = when.rpartition("+")
    given = dict(parameter.partition("=")[::2] for parameter in parameters)
    if not start or not all(given.values()):
        raise ValueError(f"incident is {text!r}, expected {_FORM}")
    for name in given:
        if name not in PARAMETERS:
            raise ValueError(f"incident {text!r} has parameter {name}, expected one of {', '.join(PARAMETERS)}")
    return Order(kind, given, _start(start), int(_seconds(duration)))


def _start(text: str) -> datetime | float:
    if re.fullmatch(r"-?[\d.]+[smh]?", text):
        return -_seconds(text[1:]) if text.startswith("-") else _seconds(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"an incident starts at {text!r}, expected 10m, -10m or 2026-09-01T12:00:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise ValueError(f"{text!r} is no duration, expected such as 90, 90s, 15m or 2h: an incident is {_FORM}")
    return float(match[1]) * _UNIT_SECONDS[match[2]]
