"""Where an incident takes place: as it is asked for, else drawn among places with enough traffic to show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sample_data.fleet import Fleet
from sample_data.incidents.incident import Effect, Incident
from sample_data.incidents.truth import Truth
from sample_data.popularity import Floats
from sample_data.topology import (
    HOSTS_PER_SERVICE,
    REGIONS,
    SERVICE_NAMES,
    STARTS_OF_DAILY,
    STARTS_PER_RELEASE,
    Service,
    Topology,
    instance_index,
)

PARAMETERS = ("factor", "region", "tenant", "service", "host", "destination")
_STREAM = 5
_SECONDS_PER_FIX = 600
_REGION_SHARE_MIN = 0.15
_TENANT_SHARE_MIN = 0.008


@dataclass(frozen=True)
class Scene:
    """`given` holds parameters by name, of PARAMETERS; everything else is drawn from the seed, kind and start."""

    kind: str
    topology: Topology
    seed: int
    start_second: int
    duration_seconds: int
    given: Mapping[str, str]
    used: set[str] = field(default_factory=set)
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        number = int.from_bytes(self.kind.encode(), "big") % 2**63
        object.__setattr__(self, "rng", np.random.default_rng([self.seed, _STREAM, number, self.start_second]))

    @property
    def traffic(self) -> Floats:
        """Share of the platform's operations, by tenant and region."""
        return np.array([[t.share * share for share in t.region_shares] for t in self.topology.tenants])

    def factor(self, low: float, high: float) -> float:
        """Effect size: drawn evenly by its logarithm. Raises ValueError where the given one is not above 1."""
        drawn = float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        text = self._given("factor")
        if text is None:
            return drawn
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 1 < value < float("inf"):
            raise ValueError(f"factor of {self.kind} is {text}, expected a number above 1, such as {drawn:.1f}")
        return value

    def region(self, traffic: Floats) -> int:
        """A region, by how much of `traffic` (of tenants and regions) it has."""
        shares = traffic.sum(axis=0) / traffic.sum()
        return self._chosen("region", REGIONS, np.where(shares >= _REGION_SHARE_MIN, shares, 0.0))

    def tenant(self, traffic: Floats, largest: int = 8, skip: int = 0) -> int:
        """One of the `largest` tenants by `traffic` after the first `skip`, drawn evenly.

        Tenants with less than _TENANT_SHARE_MIN are not among them, unless there is no other. Raises ValueError where
        the one that is asked for has no traffic.
        """
        names = [tenant.name for tenant in self.topology.tenants]
        order = np.argsort(-traffic, kind="stable")
        order = order[traffic[order] > 0]
        enough = order[traffic[order] >= _TENANT_SHARE_MIN]
        order = enough if len(enough) else order[:1]
        chosen = order[min(skip, max(0, len(order) - 1)) :][:largest]
        found = self._chosen("tenant", names, np.isin(np.arange(len(names)), chosen).astype(float))
        if not traffic[found]:
            raise ValueError(f"tenant of {self.kind} is {names[found]!r}, without such traffic there: give another")
        return found

    def service(self, *services: Service) -> Service:
        """One of these services."""
        return services[self._chosen("service", [SERVICE_NAMES[s] for s in services], np.ones(len(services)))]

    def host(self) -> int:
        """Number of a host of a service in a region."""
        return self._chosen("host", [str(i + 1) for i in range(HOSTS_PER_SERVICE)], np.ones(HOSTS_PER_SERVICE))

    def destination(self, names: Sequence[str], weights: Floats) -> int:
        """Position of a cache or topic of a tenant, by weight."""
        return self._chosen("destination", names, weights)

    def host_name(self, service: int, region: int, host: int) -> str:
        """`host.name`."""
        return self.topology.instances[instance_index(service, region, host)].host

    def fix(self, service: int) -> int:
        """The run of a fix of the latest release that runs when the scene begins; which one the start says, so that
        two of a day differ."""
        release = int(Fleet(self.seed).runs(self.start_second)[:, service].max()) // STARTS_PER_RELEASE
        number = self.start_second // _SECONDS_PER_FIX % (STARTS_PER_RELEASE - STARTS_OF_DAILY)
        return release * STARTS_PER_RELEASE + STARTS_OF_DAILY + number

    def users(self, region: int | None, *, but: int | None = None) -> tuple[str, ...]:
        """Names of tenants with traffic in the region (anywhere), all `but` one."""
        using = self.traffic.sum(axis=1) if region is None else self.traffic[:, region]
        return tuple(t.name for i, t in enumerate(self.topology.tenants) if using[i] > 0 and i != but)

    def incident(
        self, effect: Effect, measure: str, factor: float, *, leaves_traces: bool = False, **place: Any
    ) -> Incident:
        """The incident with this effect. Raises ValueError where a parameter that was given means nothing to it."""
        for name in self.given:
            if name not in self.used:
                known = ", ".join(sorted(self.used)) or "none"
                raise ValueError(f"incident {self.kind} has no parameter {name}, expected one of: {known}")
        end = self.start_second + self.duration_seconds
        truth = Truth(self.kind, self.start_second, end, measure, round(float(factor), 3), **place)
        return Incident(truth, effect, self.seed, leaves_traces)

    def _given(self, name: str) -> str | None:
        self.used.add(name)
        return self.given.get(name)

    def _chosen(self, name: str, options: Sequence[str], weights: Floats) -> int:
        if not weights.sum() > 0:
            raise ValueError(f"incident {self.kind}: no {name} has traffic that it could touch: choose other places")
        drawn = int(self.rng.choice(len(options), p=weights / weights.sum()))
        text = self._given(name)
        if text is None:
            return drawn
        if text not in options:
            raise ValueError(f"{name} of {self.kind} is {text!r}, expected one of {', '.join(options)}")
        return list(options).index(text)
