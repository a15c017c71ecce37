"""Incidents of network, clocks and caches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sample_data.incidents.incident import Incident, Moment
from sample_data.incidents.load import store_weights
from sample_data.incidents.scene import Scene
from sample_data.model import Kind, Operations
from sample_data.popularity import Keys
from sample_data.topology import REGIONS, SERVICE_NAMES, Ints, Service

_USUAL_CALL_NS = 1_500_000
_MISS_SHARE_MAX = 0.95


def region_slow(scene: Scene) -> Incident:
    """Every message within one region takes longer on the network: calls, queries and deliveries."""
    factor = scene.factor(2, 10)
    region = scene.region(scene.traffic)

    def effect(operations: Operations, moment: Moment) -> Operations:
        def late(times: Ints, regions: Ints) -> Ints:
            extra = (factor - 1) * moment.level * _USUAL_CALL_NS * moment.rng.lognormal(0.0, 0.3, len(times))
            return np.where(regions == region, times + extra.astype(np.int64), times)

        its = operations.deliveries
        return replace(
            operations,
            network_ns=late(operations.network_ns, operations.region),
            database_ns=late(operations.database_ns, operations.region),
            deliveries=replace(its, lag_ns=late(its.lag_ns, its.region)),
        )

    return scene.incident(effect, "median latency", factor, region=REGIONS[region], tenants=scene.users(region))


def clock_skew(scene: Scene) -> Incident:
    """The clock of one host jumps; times between it and other hosts are off, in truth nothing is slower."""
    factor = scene.factor(2, 20)
    region = scene.region(scene.traffic)
    service, host = scene.service(Service.CACHE, Service.TOPICS, Service.SUBSCRIBER), scene.host()
    skew_ns = int(factor * 50_000_000 * scene.rng.choice([-1, 1]))

    def effect(operations: Operations, moment: Moment) -> Operations:
        its = operations.deliveries
        served_by = np.where(operations.kind == Kind.PUBLISH, Service.TOPICS, Service.CACHE)
        calls = (served_by == service) & (operations.region == region) & (operations.server_host == host)
        taken = (service == Service.SUBSCRIBER) & (its.region == region) & (its.host == host)
        return replace(
            operations,
            server_clock_ns=operations.server_clock_ns + np.where(calls, skew_ns, 0),
            deliveries=replace(its, clock_ns=its.clock_ns + np.where(taken, skew_ns, 0)),
        )

    return scene.incident(
        effect, "50 ms ahead or behind", factor, region=REGIONS[region], service=SERVICE_NAMES[service],
        host=scene.host_name(service, region, host), harmless=True,
    )  # fmt: skip


def hit_collapse(scene: Scene) -> Incident:
    """A tenant's cache forgets most of what it held: more calls end in a query, until it is warm again."""
    factor = scene.factor(2, 6)
    tenant = scene.tenant(scene.traffic.sum(axis=1))
    its = scene.topology.tenants[tenant]
    hit_ratio = Keys(scene.topology).hit_ratio[tenant, : len(its.caches)]
    cache = scene.destination([c.name for c in its.caches], store_weights(len(its.caches)) * (hit_ratio > 0.4))
    usual = 1 - float(hit_ratio[cache])
    missing = min(_MISS_SHARE_MAX, factor * usual)
    kept = (1 - missing) / (1 - usual)

    def effect(operations: Operations, moment: Moment) -> Operations:
        which = (operations.tenant == tenant) & (operations.store == cache) & (operations.kind != Kind.PUBLISH)
        share = 1 - moment.level * (1 - kept)
        still = np.where(which, moment.rng.random(len(which)) < share, True)
        batch_hits = moment.rng.binomial(operations.batch_hits, np.where(which, share, 1.0))
        return replace(operations, hit=operations.hit & still, batch_hits=batch_hits)

    return scene.incident(
        effect, "share of misses", missing / usual, service="cache", operation="get",
        destination=its.caches[cache].name, tenants=(its.name,),
    )  # fmt: skip
