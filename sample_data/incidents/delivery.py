"""Incidents of subscribers: messages that come late, and messages that never come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sample_data.incidents.incident import Incident, Moment
from sample_data.incidents.load import store_weights
from sample_data.incidents.scene import Scene
from sample_data.model import Operations
from sample_data.popularity import Floats
from sample_data.topology import Tenant

_BACKLOG_SECONDS = 120
_USUAL_LOSS = 0.003


def subscriber_lag(scene: Scene) -> Incident:
    """A tenant's subscribers to a topic work slowly: their backlog grows, and with it the lag."""
    factor = scene.factor(2, 10)
    tenant, topic = _topic(scene)

    def effect(operations: Operations, moment: Moment) -> Operations:
        its = operations.deliveries
        theirs = (operations.tenant[its.operation] == tenant) & (operations.store[its.operation] == topic)
        growth = 1 + (factor - 1) * min(1.0, moment.elapsed / _BACKLOG_SECONDS)
        slower = 1 + (factor - 1) * moment.level
        lag_ns = np.where(theirs, its.lag_ns * growth, its.lag_ns).astype(np.int64)
        process_ns = np.where(theirs, its.process_ns * slower, its.process_ns).astype(np.int64)
        return replace(operations, deliveries=replace(its, lag_ns=lag_ns, process_ns=process_ns))

    its = scene.topology.tenants[tenant]
    return scene.incident(
        effect, "delivery lag", factor, service="subscriber", operation="process",
        destination=its.topics[topic].name, tenants=(its.name,),
    )  # fmt: skip


def lost_deliveries(scene: Scene) -> Incident:
    """Of a tenant's topic, a part of the deliveries never happens."""
    factor = scene.factor(15, 100)
    tenant, topic = _topic(scene)

    def effect(operations: Operations, moment: Moment) -> Operations:
        its = operations.deliveries
        theirs = (operations.tenant[its.operation] == tenant) & (operations.store[its.operation] == topic)
        lost = moment.rng.random(len(theirs)) < (factor - 1) * _USUAL_LOSS * moment.level
        return replace(operations, deliveries=replace(its, lost=its.lost | (theirs & lost)))

    its = scene.topology.tenants[tenant]
    return scene.incident(
        effect, "share of lost deliveries", factor, service="topics", destination=its.topics[topic].name,
        tenants=(its.name,),
    )  # fmt: skip


def _topic(scene: Scene) -> tuple[int, int]:
    publishing = scene.traffic.sum(axis=1) * [t.publish_share for t in scene.topology.tenants]
    tenant = scene.tenant(publishing, 6)
    its = scene.topology.tenants[tenant]
    return tenant, scene.destination([topic.name for topic in its.topics], _topic_weights(its))


def _topic_weights(tenant: Tenant) -> Floats:
    return store_weights(len(tenant.topics))
