"""Incidents of load: who asks more than usual, and what becomes of those who share a host with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sample_data.columns import copies, failed, joined, picked
from sample_data.fleet import Fleet
from sample_data.incidents.incident import Incident, Moment
from sample_data.incidents.queueing import loaded, slowed, utilisation_of
from sample_data.incidents.scene import Scene
from sample_data.model import Bools, Kind, Operations, Outcome, key_host
from sample_data.popularity import Keys
from sample_data.topology import HOSTS_PER_SERVICE, KEYS_PER_CACHE, REGIONS, Service

_NOISE_PERIOD_SECONDS = 90
_NOISY_LOAD = 1.5  # of the other tenants' load on the host
_HOT_KEY_RANK = 37
_RETRIES = 3
_BACKOFF_NS = 60_000_000


def noisy_neighbour(scene: Scene) -> Incident:
    """A tenant's batches come and go on one host of the caches: everybody's calls there wait in a queue."""
    factor = scene.factor(2, 10)
    region = scene.region(scene.traffic)
    host = scene.host()
    culprit = scene.tenant(scene.traffic[:, region] * [t.publish_share < 0.5 for t in scene.topology.tenants], 6)
    fleet = Fleet(scene.seed)

    def effect(operations: Operations, moment: Moment) -> Operations:
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * moment.elapsed / _NOISE_PERIOD_SECONDS)
        load = moment.level * (0.35 + 0.65 * wave)
        mine = _at(operations, region) & (operations.tenant == culprit)
        others = _count(_on_host(operations, region, host) & (operations.tenant != culprit))
        extra = _drawn(operations, mine, load * _NOISY_LOAD * others, moment.rng)
        run = int(fleet.runs(moment.second)[region, Service.CACHE, host])
        together = joined([operations, _moved(_as_batches(extra), host, run)])
        rho = utilisation_of(1 + (factor - 1) * load)
        return loaded(together, _on_host(together, region, host), rho, moment.rng)

    return scene.incident(
        effect, "server latency", factor, region=REGIONS[region], service="cache",
        host=scene.host_name(Service.CACHE, region, host), tenants=scene.users(region, but=culprit),
        culprit=scene.topology.tenants[culprit].name,
    )  # fmt: skip


def hot_key(scene: Scene) -> Incident:
    """Everybody at a tenant asks for one key of a cache; the key's host is as busy as that makes it."""
    factor = scene.factor(2, 10)
    tenant = scene.tenant(scene.traffic.sum(axis=1))
    region = scene.region(scene.traffic[[tenant]])
    caches = scene.topology.tenants[tenant].caches
    cache = scene.destination([c.name for c in caches], store_weights(len(caches)))
    host = int(key_host(np.array([tenant]), np.array([cache]), np.array([_HOT_KEY_RANK]))[0])
    fleet = Fleet(scene.seed)

    def effect(operations: Operations, moment: Moment) -> Operations:
        gets = (operations.kind == Kind.GET) & (operations.tenant == tenant) & (operations.region == region)
        gets &= (operations.store == cache) & (operations.outcome == Outcome.OK)
        extra = _drawn(operations, gets, (factor - 1) * moment.level * _count(gets), moment.rng)
        n = len(extra.start_ns)
        run = int(fleet.runs(moment.second)[region, Service.CACHE, host])
        extra = replace(
            extra, key=np.full(n, _HOT_KEY_RANK), server_host=np.full(n, host), server_run=np.full(n, run),
            hit=np.ones(n, np.bool_),
        )  # fmt: skip
        before = _count(_on_host(operations, region, host))
        together = joined([operations, extra])
        return loaded(together, _on_host(together, region, host), _crowded(before, n), moment.rng)

    return scene.incident(
        effect, "calls of the cache", factor, region=REGIONS[region], service="cache", operation="get",
        host=scene.host_name(Service.CACHE, region, host), destination=caches[cache].name,
        tenants=(scene.topology.tenants[tenant].name,), culprit=scene.topology.tenants[tenant].name,
    )  # fmt: skip


def tenant_burst(scene: Scene) -> Incident:
    """A tenant's traffic multiplies and stays so; the caches of its regions get busier by what it adds."""
    factor = scene.factor(4, 12)
    tenant = scene.tenant(scene.traffic.sum(axis=1), 12, skip=2)

    def effect(operations: Operations, moment: Moment) -> Operations:
        mine = operations.tenant == tenant
        extra = _drawn(operations, mine, (factor - 1) * moment.level * _count(mine), moment.rng)
        together = joined([operations, extra])
        for region in np.unique(extra.region).tolist():
            before = _count((operations.region == region) & (operations.kind != Kind.PUBLISH))
            added = _count(extra.region == region)
            there = (together.region == region) & (together.kind != Kind.PUBLISH)
            together = loaded(together, there, _crowded(before, added), moment.rng)
        return together

    name = scene.topology.tenants[tenant].name
    return scene.incident(effect, "calls of the tenant", factor, tenants=(name,), culprit=name)


def mix_shift(scene: Scene) -> Incident:
    """In one region, traffic goes over from a tenant that hits to one that misses: slower on average, none slower."""
    factor = scene.factor(3, 10)
    region = scene.region(scene.traffic)
    traffic, hit_ratio = scene.traffic[:, region], Keys(scene.topology).hit_ratio
    main = np.argsort(-traffic, kind="stable")[:6]
    grows = int(main[np.argmin(hit_ratio[main, 0])])
    loses = int(main[np.argmax(np.where(main == grows, 0.0, traffic[main]))])
    # What it gains, the other one loses: never more than most of what that has.
    factor = min(factor, 1 + 0.8 * traffic[loses] / traffic[grows])

    def effect(operations: Operations, moment: Moment) -> Operations:
        there = operations.region == region
        mine = there & (operations.tenant == grows)
        extra = _drawn(operations, mine, (factor - 1) * moment.level * _count(mine), moment.rng)
        losing = np.flatnonzero(there & (operations.tenant == loses))
        gone = moment.rng.permutation(losing)[: len(extra.start_ns)]
        kept = np.setdiff1d(np.arange(len(operations.start_ns)), gone)
        return joined([picked(operations, kept), extra])

    tenants = scene.topology.tenants
    return scene.incident(
        effect, "share of the traffic", factor, region=REGIONS[region], harmless=True,
        tenants=(tenants[grows].name, tenants[loses].name), culprit=tenants[grows].name,
    )  # fmt: skip


def retry_storm(scene: Scene) -> Incident:
    """Calls to a region's caches fail, clients call again at once, up to three times; the added load slows the rest."""
    factor = scene.factor(1.7, 3.2)
    region = scene.region(scene.traffic)
    roots = np.roots([1, 1, 1, 1 - factor])
    probability = float(roots[np.isreal(roots)].real.max())

    def effect(operations: Operations, moment: Moment) -> Operations:
        parts = [_failing(operations, region, moment.level * probability, moment.rng)]
        origin = np.arange(len(operations.start_ns))
        for _ in range(_RETRIES):
            again = np.flatnonzero(_at(parts[-1], region) & np.isin(parts[-1].outcome, _FAILURES))
            origin = origin[again]
            retried = copies(parts[-1], again, moment.rng)
            waited = _BACKOFF_NS * (0.5 + moment.rng.random(len(again)))
            retried = replace(
                retried,
                start_ns=parts[-1].start_ns[again] + waited.astype(np.int64),
                outcome=np.full(len(again), int(Outcome.OK)),
                server_ns=operations.server_ns[origin],
            )
            parts.append(_failing(retried, region, moment.level * probability, moment.rng))
        together = joined(parts)
        before, all_calls = _count(_at(operations, region)), _count(_at(together, region))
        return slowed(together, _at(together, region), 1 + 0.5 * (all_calls / max(before, 1) - 1), moment.rng)

    return scene.incident(
        effect, "calls to the region", factor, region=REGIONS[region], service="cache", tenants=scene.users(region)
    )


_FAILURES = (int(Outcome.UNAVAILABLE), int(Outcome.TIMEOUT))


def _failing(operations: Operations, region: int, probability: float, rng: np.random.Generator) -> Operations:
    fails = _at(operations, region) & (rng.random(len(operations.start_ns)) < probability)
    refused = rng.random(len(fails)) < 0.7
    return failed(failed(operations, fails & refused, Outcome.UNAVAILABLE, rng), fails & ~refused, Outcome.TIMEOUT, rng)


def _at(operations: Operations, region: int) -> Bools:
    """Calls to the caches of a region."""
    calls: Bools = (operations.region == region) & (operations.kind != Kind.PUBLISH)
    return calls


def _on_host(operations: Operations, region: int, host: int) -> Bools:
    calls: Bools = _at(operations, region) & (operations.server_host == host)
    return calls


def _drawn(operations: Operations, which: Bools, mean: float, rng: np.random.Generator) -> Operations:
    """About `mean` copies of these rows, drawn with replacement; none where there is no row."""
    rows = np.flatnonzero(which)
    count = int(rng.poisson(mean)) if len(rows) else 0
    return copies(operations, rng.choice(rows, count) if count else np.empty(0, np.int64), rng)


def _as_batches(operations: Operations) -> Operations:
    """Large batches instead, of which nearly all items are found."""
    n = len(operations.start_ns)
    per_item_ns = 15_000
    return replace(
        operations,
        kind=np.full(n, int(Kind.GET_BATCH)),
        batch_size=np.full(n, 32),
        batch_hits=np.full(n, 30),
        server_ns=operations.server_ns + 31 * per_item_ns,
    )


def _moved(operations: Operations, host: int, run: int) -> Operations:
    """Of keys close by that live on this host, on which this run of the caches' process is."""
    ahead = (host - operations.server_host) % HOSTS_PER_SERVICE
    key = operations.key + ahead
    key = np.where(key < KEYS_PER_CACHE, key, key - HOSTS_PER_SERVICE)
    n = len(key)
    return replace(operations, key=key, server_host=np.full(n, host), server_run=np.full(n, run))


def _count(which: Bools) -> int:
    return int(np.count_nonzero(which))


def _crowded(before: int, added: int) -> float:
    """Utilisation when a host or region that was as busy as usual gets so many calls more."""
    return utilisation_of(1.0) * (1 + added / max(before, 1))


def store_weights(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """How the model spreads a tenant's calls over its caches or topics."""
    edges = (np.arange(count + 1) / count) ** (1 / 1.5)
    return np.diff(edges)
