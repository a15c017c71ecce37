"""Which operations happen in which second: a pure, seeded model of the platform's traffic.

`Workload.operations(second)` depends on nothing but the seed, the topology, the rate and the second, so that
any stretch of time can be drawn again, in any order, by any number of processes. Operations are columns: what
changes the platform's behaviour for a while (an outage, a noisy neighbour) is a function from `Operations` to
`Operations`, put between `Workload.operations` and `sample_data.tracing.spans_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sample_data.fleet import Fleet
from sample_data.popularity import Floats, Keys, padded
from sample_data.topology import HOSTS_PER_SERVICE, REGION_UTC_OFFSET_HOURS, Ints, Service, Topology

Bools = npt.NDArray[np.bool_]

SPANS_PER_OPERATION_MAX = 4
CLIENT_DEADLINE_NS = 100_000_000
RATE_MAX = 1e6
QUOTA_FACTOR = 12.0

_BURST_FRAME_SECONDS = 600
_BURST_SLOTS = 4
_BURST_PROBABILITY = 0.5
_BURST_SECONDS_MIN, _BURST_SECONDS_SCALE, _BURST_SECONDS_MAX = 2.0, 7.0, 30.0
_BURST_SPREAD = 0.25
_BURST_SECONDS_MEAN = _BURST_SECONDS_MIN + _BURST_SECONDS_SCALE * (
    1 - np.exp((_BURST_SECONDS_MIN - _BURST_SECONDS_MAX) / _BURST_SECONDS_SCALE)
)
_DIURNAL_AMPLITUDE = 0.35
_DIURNAL_PEAK_HOUR = 15.0
_BURST_STREAM, _SECOND_STREAM = 1, 2


class Kind(IntEnum):
    """What an operation does."""

    GET = 0
    SET = 1
    DELETE = 2
    GET_BATCH = 3
    PUBLISH = 4


class Outcome(IntEnum):
    """How an operation ends."""

    OK = 0
    THROTTLED = 1
    UNAVAILABLE = 2
    TIMEOUT = 3
    INTERNAL = 4


_CACHE_KIND_SHARES = (0.74, 0.17, 0.03, 0.06)
_SERVER_MEDIAN_NS = np.array([250_000.0, 380_000.0, 200_000.0, 400_000.0, 600_000.0])


@dataclass(frozen=True, slots=True)
class Deliveries:
    """One row a subscriber of a published message; `operation` is the row of its publish in `Operations`.

    `lag_ns` runs from the fan-out's start to the start of processing. A `lost` delivery never happens, a
    `failed` one ends in an error of the subscriber. `run` tells which process on the host takes it, `clock_ns` how
    far the host's clock is ahead. `trace_ids` holds 16 bytes a row, `span_ids` 8.
    """

    operation: Ints
    subscription: Ints
    region: Ints
    host: Ints
    run: Ints
    clock_ns: Ints
    lag_ns: Ints
    process_ns: Ints
    lost: Bools
    failed: Bools
    trace_ids: bytes
    span_ids: bytes


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of one second, one row each; `tenant` and `region` index the topology.

    `store` is the cache or topic among the tenant's own; `key` the rank of the key by popularity (0 is the
    most popular); `hit` and `batch_hits` tell what a lookup finds; `item_bytes` is the size of the value or
    message. `*_run` is the run of the process on the host (as in `instance_index`), `*_clock_ns` how far the host's
    clock is ahead. Times (other `*_ns`) are spent in the gateway, on the network both ways, in the server, and in the
    database that a missed `get` falls back to. `trace_ids` holds 16 bytes a row, `span_ids` 8 for each of the
    operation's SPANS_PER_OPERATION_MAX spans.
    """

    start_ns: Ints
    tenant: Ints
    region: Ints
    kind: Ints
    store: Ints
    key: Ints
    hit: Bools
    batch_size: Ints
    batch_hits: Ints
    item_bytes: Ints
    outcome: Ints
    gateway_host: Ints
    server_host: Ints
    gateway_run: Ints
    server_run: Ints
    gateway_clock_ns: Ints
    server_clock_ns: Ints
    gateway_ns: Ints
    network_ns: Ints
    server_ns: Ints
    database_ns: Ints
    trace_ids: bytes
    span_ids: bytes
    deliveries: Deliveries


class Workload:
    """Draws the operations of a topology at a mean rate, second by second."""

    def __init__(self, topology: Topology, seed: int, operations_per_second: float) -> None:
        """Raises ValueError unless the rate is above 0 and at most RATE_MAX."""
        if not 0 < operations_per_second <= RATE_MAX:
            raise ValueError(
                f"rate is {operations_per_second}, expected operations per second above 0, at most {RATE_MAX:g}"
            )
        tenants = topology.tenants
        self._seed = seed
        self._rates = operations_per_second * np.array([t.share for t in tenants])
        self._regions_cdf = np.cumsum([t.region_shares for t in tenants], axis=1)
        self._publish_share = np.array([t.publish_share for t in tenants])
        self._burst_factor = np.array([t.burst_factor for t in tenants])
        self._utc_offset = np.array([REGION_UTC_OFFSET_HOURS[t.home_region] for t in tenants])
        self._keys = Keys(topology)
        self._fleet = Fleet(seed)
        self._topics = padded([[t.body_bytes_median for t in x.topics] for x in tenants])
        self._subscriptions = padded([[len(t.subscriptions) for t in x.topics] for x in tenants]).astype(np.int64)
        self._topic_count = np.array([len(t.topics) for t in tenants])
        self._bursts: tuple[int, Floats] = (-1, np.empty(0))

    def intensity(self, second: int) -> Floats:
        """Multiplier of each tenant's rate by its bursts, at least 1 (which is quiet)."""
        frame, offset = divmod(second, _BURST_FRAME_SECONDS)
        if self._bursts[0] != frame:
            self._bursts = (frame, self._draw_bursts(frame))
        start, length, height = self._bursts[1]
        burning = (start <= offset) & (offset < start + length)
        active: Floats = 1.0 + np.where(burning, height, 0.0).sum(axis=0)
        return active

    def _draw_bursts(self, frame: int) -> Floats:
        """Start, length (seconds) and height of the bursts of a frame: shape (3, slots, tenants)."""
        rng = np.random.default_rng([self._seed, _BURST_STREAM, frame])
        shape = (_BURST_SLOTS, len(self._rates))
        start = rng.random(shape) * (_BURST_FRAME_SECONDS - _BURST_SECONDS_MAX)
        length = np.minimum(_BURST_SECONDS_MIN + rng.exponential(_BURST_SECONDS_SCALE, shape), _BURST_SECONDS_MAX)
        height = self._burst_factor * rng.lognormal(0.0, _BURST_SPREAD, shape)
        return np.stack([start, length, np.where(rng.random(shape) < _BURST_PROBABILITY, height, 0.0)])

    def rates(self, second: int) -> Floats:
        """Expected operations of each tenant in this second; over a day the mean is the tenant's own rate."""
        hour = second / 3600.0 + self._utc_offset
        diurnal = 1 + _DIURNAL_AMPLITUDE * np.cos(2 * np.pi * (hour - _DIURNAL_PEAK_HOUR) / 24)
        height_mean = self._burst_factor * np.exp(_BURST_SPREAD**2 / 2)
        bursting_share = _BURST_SLOTS * _BURST_PROBABILITY * _BURST_SECONDS_MEAN / _BURST_FRAME_SECONDS
        rates: Floats = self._rates * diurnal * self.intensity(second) / (1 + bursting_share * height_mean)
        return rates

    def operations(self, second: int) -> Operations:
        """The operations that start in `second` (since the Unix epoch)."""
        rng = np.random.default_rng([self._seed, _SECOND_STREAM, second])
        tenant = np.repeat(np.arange(len(self._rates)), rng.poisson(self.rates(second)))
        n = len(tenant)
        region = (rng.random(n)[:, None] > self._regions_cdf[tenant, :-1]).sum(axis=1)
        kind = self._kinds(rng, tenant)
        publish = kind == Kind.PUBLISH
        store = _skewed(rng, np.where(publish, self._topic_count[tenant], self._keys.cache_count[tenant]))
        cache = np.where(publish, 0, store)
        key = self._keys.draw(rng, tenant, cache)
        topic = np.where(publish, store, 0)
        median = np.where(publish, self._topics[tenant, topic], self._keys.item_bytes_median[tenant, cache])
        batch_size = np.where(kind == Kind.GET_BATCH, rng.integers(2, 33, n), 1)
        item_bytes = np.ceil(median * rng.lognormal(0.0, 0.7, n)).astype(np.int64)
        outcome = _outcomes(rng, self.intensity(second)[tenant])
        gateway_host = rng.integers(0, HOSTS_PER_SERVICE, n)
        # A key lives on one host, so that a hot key makes a hot host.
        server_host = key_host(tenant, cache, key)
        runs = self._fleet.runs(second)
        return Operations(
            start_ns=second * 1_000_000_000 + rng.integers(0, 1_000_000_000, n),
            tenant=tenant,
            region=region,
            kind=kind,
            store=store,
            key=key,
            hit=rng.random(n) < self._keys.hit_probability(tenant, cache, key),
            batch_size=batch_size,
            batch_hits=rng.binomial(batch_size, self._keys.hit_ratio[tenant, cache]),
            item_bytes=item_bytes,
            outcome=outcome,
            gateway_host=gateway_host,
            server_host=server_host,
            gateway_run=runs[region, Service.GATEWAY, gateway_host],
            server_run=runs[region, np.where(publish, Service.TOPICS, Service.CACHE), server_host],
            gateway_clock_ns=np.zeros(n, np.int64),
            server_clock_ns=np.zeros(n, np.int64),
            gateway_ns=_lognormal(rng, 900_000.0, 0.5, n),
            network_ns=_lognormal(rng, 350_000.0, 0.4, n),
            server_ns=_server_ns(rng, kind, batch_size, item_bytes, outcome),
            database_ns=_lognormal(rng, 6_000_000.0, 0.6, n),
            trace_ids=rng.bytes(16 * n),
            span_ids=rng.bytes(8 * SPANS_PER_OPERATION_MAX * n),
            deliveries=self._deliveries(
                rng, np.flatnonzero(publish & (outcome == Outcome.OK)), tenant, region, topic, runs
            ),
        )

    def _kinds(self, rng: np.random.Generator, tenant: Ints) -> Ints:
        cache_kind = np.searchsorted(np.cumsum(_CACHE_KIND_SHARES)[:-1], rng.random(len(tenant)), side="right")
        return np.where(rng.random(len(tenant)) < self._publish_share[tenant], Kind.PUBLISH, cache_kind)

    def _deliveries(
        self, rng: np.random.Generator, published: Ints, tenant: Ints, region: Ints, topic: Ints, runs: Ints
    ) -> Deliveries:
        fan_out = self._subscriptions[tenant[published], topic[published]]
        operation = np.repeat(published, fan_out)
        n = len(operation)
        first = np.repeat(np.cumsum(fan_out) - fan_out, fan_out)
        elsewhere = (rng.random(n)[:, None] > self._regions_cdf[tenant[operation], :-1]).sum(axis=1)
        at = np.where(rng.random(n) < 0.85, region[operation], elsewhere)
        wide_area_ns = np.where(at == region[operation], 0, 60_000_000 + rng.integers(0, 90_000_000, n))
        host = rng.integers(0, HOSTS_PER_SERVICE, n)
        return Deliveries(
            operation=operation,
            subscription=np.arange(n) - first,
            region=at,
            host=host,
            run=runs[at, Service.SUBSCRIBER, host],
            clock_ns=np.zeros(n, np.int64),
            lag_ns=_lognormal(rng, 18_000_000.0, 0.6, n) * _slow_tail(rng, n) + wide_area_ns,
            process_ns=_lognormal(rng, 2_500_000.0, 0.7, n),
            lost=rng.random(n) < 0.003,
            failed=rng.random(n) < 0.004,
            trace_ids=rng.bytes(16 * n),
            span_ids=rng.bytes(8 * n),
        )


def key_host(tenant: Ints, cache: Ints, key: Ints) -> Ints:
    """The host of a region's caches on which a key lives."""
    return (key * 2_654_435_761 + cache * 97 + tenant) % HOSTS_PER_SERVICE


def _skewed(rng: np.random.Generator, count: Ints) -> Ints:
    """An index below `count` each, the first ones more often."""
    return (rng.random(len(count)) ** 1.5 * count).astype(np.int64)


def _lognormal(rng: np.random.Generator, median: float, spread: float, n: int) -> Ints:
    return (median * rng.lognormal(0.0, spread, n)).astype(np.int64)


def _slow_tail(rng: np.random.Generator, n: int) -> Ints:
    """Factor on a time: 1, and for one in 250 between 8 and 48."""
    return np.where(rng.random(n) < 0.004, 8 + (40 * rng.random(n) ** 2).astype(np.int64), 1)


def _outcomes(rng: np.random.Generator, intensity: Floats) -> Ints:
    n = len(intensity)
    over_quota = 0.5 * np.maximum(0.0, 1 - QUOTA_FACTOR / intensity)
    rare = np.searchsorted([0.0005, 0.0015, 0.0017], rng.random(n), side="right")
    faults = np.array([Outcome.UNAVAILABLE, Outcome.TIMEOUT, Outcome.INTERNAL, Outcome.OK])[rare]
    return np.where(rng.random(n) < over_quota, Outcome.THROTTLED, faults)


def late_ns(rng: np.random.Generator, n: int) -> Ints:
    """Times in the server of calls whose clients have given up."""
    return (CLIENT_DEADLINE_NS * (1.1 + 2 * rng.random(n))).astype(np.int64)


def _server_ns(rng: np.random.Generator, kind: Ints, batch_size: Ints, item_bytes: Ints, outcome: Ints) -> Ints:
    n = len(kind)
    work = _SERVER_MEDIAN_NS[kind] + 15_000.0 * (batch_size - 1) + 2.0 * item_bytes
    served = work * rng.lognormal(0.0, 0.45, n) * _slow_tail(rng, n)
    late = late_ns(rng, n)
    refused = 80_000.0 * rng.lognormal(0.0, 0.3, n)
    return np.select([outcome == Outcome.TIMEOUT, outcome == Outcome.THROTTLED], [late, refused], served).astype(
        np.int64
    )
