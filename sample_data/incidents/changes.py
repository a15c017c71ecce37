"""Incidents of releases and processes: bad ones, harmless ones, and one that runs out of something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sample_data.columns import failed
from sample_data.incidents.incident import Incident, Moment
from sample_data.incidents.queueing import slowed
from sample_data.incidents.scene import Scene
from sample_data.model import Bools, Kind, Operations, Outcome
from sample_data.topology import HOSTS_PER_SERVICE, REGIONS, SERVICE_NAMES, Ints, Service, version

_SECONDS_BETWEEN_HOSTS = 100
_USUAL_ERROR_SHARE = 0.0017
_SLOW_SHARE = 0.06
_TAIL = 3.0  # the usual 99th percentile over the median
_BACK = 4
_EXHAUSTED_AT = 0.9
_REFUSED_SHARE = 0.3


def deploy_errors(scene: Scene) -> Incident:
    """A release, rolled out host by host in a region, fails in a part of the calls; at the end it is rolled back."""
    factor = scene.factor(6, 60)
    region, service = scene.region(scene.traffic), scene.service(Service.CACHE, Service.TOPICS)
    fix = scene.fix(service)

    def effect(operations: Operations, moment: Moment) -> Operations:
        new = _rolled_out(operations, service, region, moment)
        fails = new & (moment.rng.random(len(new)) < factor * _USUAL_ERROR_SHARE)
        return _released(failed(operations, fails, Outcome.INTERNAL, moment.rng), service, region, moment, fix)

    return scene.incident(
        effect, "share of errors", factor, region=REGIONS[region], service=SERVICE_NAMES[service],
        version=version(service, fix), tenants=scene.users(region), leaves_traces=True,
    )  # fmt: skip


def deploy_latency(scene: Scene) -> Incident:
    """A release, rolled out as above, is slow in a few calls of a hundred: the tail grows, the median does not."""
    factor = scene.factor(2, 10)
    region, service = scene.region(scene.traffic), scene.service(Service.CACHE, Service.TOPICS)
    fix = scene.fix(service)

    def effect(operations: Operations, moment: Moment) -> Operations:
        new = _rolled_out(operations, service, region, moment)
        slow = new & (moment.rng.random(len(new)) < _SLOW_SHARE)
        return _released(slowed(operations, slow, _TAIL * factor, moment.rng), service, region, moment, fix)

    return scene.incident(
        effect, "99th percentile of server latency", factor, region=REGIONS[region], service=SERVICE_NAMES[service],
        version=version(service, fix), tenants=scene.users(region), leaves_traces=True,
    )  # fmt: skip


def deploy(scene: Scene) -> Incident:
    """A release like the ones above that does no harm, and stays."""
    region, service = scene.region(scene.traffic), scene.service(Service.CACHE, Service.TOPICS, Service.SUBSCRIBER)
    fix = scene.fix(service)

    def effect(operations: Operations, moment: Moment) -> Operations:
        staying = replace(moment, level=1.0)
        return _released(operations, service, region, staying, fix)

    return scene.incident(
        effect, "nothing", 1.0, region=REGIONS[region], service=SERVICE_NAMES[service],
        version=version(service, fix), harmless=True, leaves_traces=True,
    )  # fmt: skip


def restart(scene: Scene) -> Incident:
    """A process of the caches starts anew, at no cost to anybody."""
    region, host = scene.region(scene.traffic), scene.host()

    def effect(operations: Operations, moment: Moment) -> Operations:
        there = _of(operations, Service.CACHE, region) & (operations.server_host == host)
        return replace(operations, server_run=operations.server_run + np.where(there, _BACK, 0))

    return scene.incident(
        effect, "nothing", 1.0, region=REGIONS[region], service="cache",
        host=scene.host_name(Service.CACHE, region, host), harmless=True, leaves_traces=True,
    )  # fmt: skip


def leak(scene: Scene) -> Incident:
    """A process of the caches gets slower and slower, refuses calls when it has run out, and is started anew."""
    factor = scene.factor(2, 10)
    region, host = scene.region(scene.traffic), scene.host()

    def effect(operations: Operations, moment: Moment) -> Operations:
        there = _of(operations, Service.CACHE, region) & (operations.server_host == host)
        if moment.level == 0:
            return replace(operations, server_run=operations.server_run + np.where(there, _BACK, 0))
        slower = slowed(operations, there, factor**moment.progress, moment.rng)
        refused = there & (moment.rng.random(len(there)) < _REFUSED_SHARE * (moment.progress > _EXHAUSTED_AT))
        return failed(slower, refused, Outcome.UNAVAILABLE, moment.rng)

    return scene.incident(
        effect, "server latency", factor, region=REGIONS[region], service="cache",
        host=scene.host_name(Service.CACHE, region, host), tenants=scene.users(region), leaves_traces=True,
    )  # fmt: skip


def _of(operations: Operations, service: Service, region: int) -> Bools:
    """Operations served by this service of the region."""
    publish = operations.kind == Kind.PUBLISH
    found: Bools = (operations.region == region) & (publish == (service == Service.TOPICS))
    return found


def _rolled_out(operations: Operations, service: Service, region: int, moment: Moment) -> Bools:
    """Operations that the new release serves."""
    if moment.level == 0:
        return np.zeros(len(operations.start_ns), np.bool_)
    hosts = min(HOSTS_PER_SERVICE, 1 + moment.elapsed // _SECONDS_BETWEEN_HOSTS)
    rolled: Bools = _of(operations, service, region) & (operations.server_host < hosts)
    return rolled


def _released(operations: Operations, service: Service, region: int, moment: Moment, fix: int) -> Operations:
    """Run the new release where it is rolled out; after that the former one again, in processes of their own.

    A daily release that comes meanwhile waits for the end.
    """
    its = operations.deliveries
    hosts = min(HOSTS_PER_SERVICE, 1 + moment.elapsed // _SECONDS_BETWEEN_HOSTS)

    def runs(run: Ints, there: Bools) -> Ints:
        new = np.where(run < fix, fix, run) if moment.progress == 1 else np.full(len(run), fix)
        return np.where(there, new if moment.level > 0 else run + _BACK, run)

    if service == Service.SUBSCRIBER:
        taken = (its.region == region) & (its.host < hosts)
        return replace(operations, deliveries=replace(its, run=runs(its.run, taken)))
    served = _of(operations, service, region) & (operations.server_host < hosts)
    return replace(operations, server_run=runs(operations.server_run, served))
