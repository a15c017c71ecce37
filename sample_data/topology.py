"""What the simulated platform consists of: regions, hosts, services, tenants, their caches and topics.

Built once from a seed and never changed; traffic over it is drawn in `sample_data.model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "ap-southeast-2")
REGION_UTC_OFFSET_HOURS = (-5.0, -8.0, 0.0, 10.0)
REGION_POPULARITY = (0.45, 0.2, 0.25, 0.1)
ZONES_PER_REGION = 3
HOSTS_PER_SERVICE = 3
TENANT_SIZE_EXPONENT = 1.1
KEYS_PER_CACHE = 20_000
KEY_EXPONENTS = (0.8, 0.95, 1.1)

_WORDS = (
    "amber",
    "birch",
    "cobalt",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "indigo",
    "juniper",
    "kestrel",
    "lumen",
    "meadow",
    "nimbus",
    "onyx",
    "pebble",
    "quartz",
    "raven",
    "sable",
    "tundra",
    "umber",
    "violet",
    "willow",
    "zephyr",
)
_TRADES = ("bank", "media", "games", "retail", "travel", "health", "ads", "maps")
_CACHES = ("sessions", "profiles", "catalog", "prices", "features", "tokens", "feeds", "quotas")
_TOPICS = ("orders", "chat", "presence", "alerts", "scores", "audit")
_SUBSCRIBERS = (
    "billing",
    "search-index",
    "mobile-push",
    "analytics",
    "webhooks",
    "fraud",
    "email",
    "archive",
)


class Service(IntEnum):
    """The services of the platform, in the order of their resources within a region."""

    GATEWAY = 0
    CACHE = 1
    TOPICS = 2
    SUBSCRIBER = 3


SERVICE_NAMES = ("api-gateway", "cache", "topics", "subscriber")
SERVICE_VERSIONS = ((4, 12), (2, 31), (1, 9), (3, 0))
PROCESSES = len(REGIONS) * len(SERVICE_NAMES) * HOSTS_PER_SERVICE
STARTS_PER_RELEASE = 32
STARTS_OF_DAILY = 16
"""Of the runs of a release those that are its own; each of the others is a fix of it, with a version of its own."""
_RELEASES_PER_MINOR = 10


class Joining(IntEnum):
    """How a subscriber's span refers to the producer's: the two ways that the conventions allow, or both."""

    LINK = 0
    PARENT = 1
    LINK_AND_PARENT = 2


@dataclass(frozen=True, slots=True)
class Cache:
    """A named cache. `retention_requests` is how many requests an unused key survives."""

    name: str
    key_class: int
    retention_requests: float
    item_bytes_median: float


@dataclass(frozen=True, slots=True)
class Subscription:
    """A consumer group of a topic."""

    group: str
    joining: Joining


@dataclass(frozen=True, slots=True)
class Topic:
    """A named topic and who is subscribed to it."""

    name: str
    subscriptions: tuple[Subscription, ...]
    body_bytes_median: float


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer: `share` of the platform's operations, split over regions by `region_shares`.

    `publish_share` of its operations publish to topics, the rest go to caches. A burst multiplies its traffic
    by about `burst_factor`.
    """

    name: str
    share: float
    region_shares: tuple[float, ...]
    publish_share: float
    burst_factor: float
    caches: tuple[Cache, ...]
    topics: tuple[Topic, ...]

    @property
    def home_region(self) -> int:
        """Index of the region with most of its traffic."""
        return self.region_shares.index(max(self.region_shares))


@dataclass(frozen=True, slots=True)
class Instance:
    """One running process of a service: an OpenTelemetry resource."""

    service: Service
    region: int
    attributes: tuple[tuple[str, str], ...]

    @property
    def host(self) -> str:
        """Its `host.name`."""
        return dict(self.attributes)["host.name"]


class Instances:
    """The processes that ever run, by `instance_index`; iterating gives the first ones, PROCESSES of run 0."""

    def __init__(self) -> None:
        self._known: dict[int, Instance] = {}

    def __getitem__(self, index: int) -> Instance:
        found = self._known.get(index)
        if found is None:
            run, process = divmod(index, PROCESSES)
            place, host = divmod(process, HOSTS_PER_SERVICE)
            region, service = divmod(place, len(SERVICE_NAMES))
            found = self._known[index] = _instance(Service(service), region, host, run)
        return found

    def __iter__(self) -> Iterator[Instance]:
        return (self[index] for index in range(PROCESSES))


@dataclass(frozen=True, slots=True)
class Topology:
    """The platform: its tenants, largest first, and its processes."""

    tenants: tuple[Tenant, ...]
    instances: Instances


def instance_index(service: int, region: int, host: int, run: int = 0) -> int:
    """Index in `Topology.instances` of a process: host number `host` of a service in a region.

    `run` counts what ran there one after the other: STARTS_PER_RELEASE for each release of the service.
    """
    return run * PROCESSES + (region * len(SERVICE_NAMES) + service) * HOSTS_PER_SERVICE + host


def instance_indices(service: int | Ints, region: Ints, host: Ints, run: Ints) -> Ints:
    """`instance_index` of each."""
    return run * PROCESSES + (region * len(SERVICE_NAMES) + service) * HOSTS_PER_SERVICE + host


def build_topology(seed: int, tenants: int) -> Topology:
    """Make a platform of `tenants` tenants; the same seed and number give the same platform.

    Tenant sizes follow Zipf's law with exponent TENANT_SIZE_EXPONENT, largest first.
    Raises ValueError unless `tenants` is at least 1 and `seed` at least 0.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected an integer of at least 0")
    if tenants < 1:
        raise ValueError(f"tenants is {tenants}, expected at least 1: give the number of tenants to simulate")
    rng = np.random.default_rng([seed, 0])
    shares = np.arange(1, tenants + 1) ** -TENANT_SIZE_EXPONENT
    shares /= shares.sum()
    names = [_tenant_name(i) for i in range(tenants)]
    return Topology(
        tenants=tuple(_tenant(rng, *pair) for pair in zip(names, shares.tolist(), strict=True)),
        instances=Instances(),
    )


def _tenant_name(number: int) -> str:
    # Words and trades are stepped together, so that the first tenants differ in both.
    combinations = len(_WORDS) * len(_TRADES)
    word = _WORDS[number % len(_WORDS)]
    trade = _TRADES[(number + number // len(_WORDS)) % len(_TRADES)]
    again = number // combinations
    return f"{word}-{trade}" + (f"-{again + 1}" if again else "")


def _tenant(rng: np.random.Generator, name: str, share: float) -> Tenant:
    return Tenant(
        name=name,
        share=share,
        region_shares=_region_shares(rng),
        publish_share=float(rng.choice([0.0, 0.1, 0.15, 0.5], p=[0.15, 0.4, 0.35, 0.1])),
        burst_factor=float(np.clip(rng.lognormal(np.log(8.0), 0.4), 4.0, 25.0)),
        caches=tuple(_cache(rng, n) for n in rng.choice(_CACHES, size=rng.integers(1, 5), replace=False)),
        topics=tuple(_topic(rng, n) for n in rng.choice(_TOPICS, size=rng.integers(1, 4), replace=False)),
    )


def _region_shares(rng: np.random.Generator) -> tuple[float, ...]:
    homes = int(rng.integers(1, 4))
    shares = np.zeros(len(REGIONS))
    chosen = rng.choice(len(REGIONS), size=homes, replace=False, p=REGION_POPULARITY)
    shares[chosen] = np.array([0.7, 0.2, 0.1])[:homes]
    return tuple((shares / shares.sum()).tolist())


def _cache(rng: np.random.Generator, name: str) -> Cache:
    return Cache(
        name=str(name),
        key_class=int(rng.integers(len(KEY_EXPONENTS))),
        retention_requests=float(rng.lognormal(np.log(20_000), 0.8)),
        item_bytes_median=float(rng.choice([180.0, 900.0, 4_000.0, 20_000.0])),
    )


def _topic(rng: np.random.Generator, name: str) -> Topic:
    groups = rng.choice(_SUBSCRIBERS, size=rng.integers(1, 7), replace=False)
    return Topic(
        name=str(name),
        subscriptions=tuple(Subscription(str(g), Joining(int(rng.integers(len(Joining))))) for g in groups),
        body_bytes_median=float(rng.choice([120.0, 600.0, 3_000.0])),
    )


def version(service: int, run: int) -> str:
    """`service.version` of a run of a service: three numbers of its release, a fourth where it is a fix of it."""
    major, minor = SERVICE_VERSIONS[service]
    release, start = divmod(run, STARTS_PER_RELEASE)
    fix = start - STARTS_OF_DAILY + 1
    daily = f"{major}.{minor + release // _RELEASES_PER_MINOR}.{release % _RELEASES_PER_MINOR}"
    return f"{daily}.{fix}" if fix > 0 else daily


def _instance(service: Service, region: int, host: int, run: int) -> Instance:
    name = SERVICE_NAMES[service]
    zone = REGIONS[region] + "abc"[host % ZONES_PER_REGION]
    host_name = f"{name}-{zone}-{host + 1:02d}"
    return Instance(
        service=service,
        region=region,
        attributes=(
            ("service.name", name),
            ("service.namespace", "platform"),
            ("service.version", version(service, run)),
            ("service.instance.id", f"{host_name}-{run + 1}"),
            ("deployment.environment.name", "production"),
            ("cloud.provider", "aws"),
            ("cloud.region", REGIONS[region]),
            ("cloud.availability_zone", zone),
            ("host.name", host_name),
        ),
    )
