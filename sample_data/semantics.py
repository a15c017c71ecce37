"""How the platform's work is named and attributed: OpenTelemetry's semantic conventions, 1.44.

What no convention covers has names of its own: `tenant.id`, `cache.name`, `cache.hit`, `cache.item.size`,
`cache.key.hash`, `cache.batch.hit_count` and `topics.subscription.count`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from sample_data.model import Kind, Outcome
from sample_data.span import Attributes
from sample_data.topology import REGIONS, Ints, Subscription, Tenant

IntOrInts = TypeVar("IntOrInts", int, Ints)

_METHODS = ("GET", "PUT", "DELETE", "POST", "POST")
_USER_AGENTS = ("platform-sdk-java/3.4.1", "platform-sdk-python/2.9.0", "platform-sdk-go/1.20.3")
_OPERATIONS = ("get", "set", "delete", "get_batch", "publish")
_RPC_METHODS = (
    "cache.v1.Cache/Get",
    "cache.v1.Cache/Set",
    "cache.v1.Cache/Delete",
    "cache.v1.Cache/GetBatch",
    "topics.v1.Topics/Publish",
)


class Failure(NamedTuple):
    """How an outcome shows: statuses, `error.type` of the calling client and of the server.

    An `error.type` is empty where the span's status is not an error.
    """

    http_status: int
    rpc_status: str
    client_error: str
    server_error: str
    message: str


# By the conventions 4xx and RESOURCE_EXHAUSTED are the caller's errors: a server span's status stays unset.
FAILURES: Mapping[int, Failure] = {
    Outcome.OK: Failure(200, "OK", "", "", ""),
    Outcome.THROTTLED: Failure(429, "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "", "tenant over its quota"),
    Outcome.UNAVAILABLE: Failure(503, "UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE", "connection refused"),
    Outcome.TIMEOUT: Failure(504, "DEADLINE_EXCEEDED", "timeout", "DEADLINE_EXCEEDED", "deadline exceeded"),
    Outcome.INTERNAL: Failure(500, "INTERNAL", "INTERNAL", "INTERNAL", "internal error"),
}


@dataclass(frozen=True, slots=True)
class Template:
    """Names and attributes that all operations of one kind on one cache or topic in one region share.

    `client` is the span that calls the service (for topics the producer's), `server` the span of the service.
    """

    gateway_name: str
    gateway: Attributes
    client_name: str
    client: Attributes
    server_name: str
    server: Attributes


def template(tenant: Tenant, kind: int, store: int, region: int) -> Template:
    """Names and attributes for `kind` on cache or topic number `store` of a tenant in a region."""
    publish = kind == Kind.PUBLISH
    target = tenant.topics[store].name if publish else tenant.caches[store].name
    tenant_id = ("tenant.id", tenant.name)
    route = _route(kind)
    rpc: Attributes = (("rpc.system.name", "grpc"), ("rpc.method", _RPC_METHODS[kind]), tenant_id)
    store_attributes = _messaging(target) if publish else _caching(target, kind)
    operation = _OPERATIONS[kind]
    return Template(
        gateway_name=f"{_METHODS[kind]} {route}",
        gateway=(
            ("http.request.method", _METHODS[kind]),
            ("http.route", route),
            ("url.scheme", "https"),
            ("url.path", route.replace("{cache}", target).replace("{topic}", target).replace("{key}", "*")),
            ("server.address", f"api.{REGIONS[region]}.platform.example"),
            ("server.port", 443),
            ("network.protocol.version", "2"),
            ("user_agent.original", _USER_AGENTS[len(tenant.name) % len(_USER_AGENTS)]),
            tenant_id,
        ),
        client_name=f"{operation} {target}",
        client=(*_calling(operation, publish), *store_attributes, *_server(region, publish), tenant_id),
        server_name=_RPC_METHODS[kind],
        server=(*rpc, *store_attributes, *_server(region, publish)),
    )


def _route(kind: int) -> str:
    if kind == Kind.PUBLISH:
        return "/v1/topics/{topic}"
    return "/v1/caches/{cache}/batch" if kind == Kind.GET_BATCH else "/v1/caches/{cache}/{key}"


def _caching(cache: str, kind: int) -> Attributes:
    return ("cache.name", cache), ("db.collection.name", cache), ("db.operation.name", _OPERATIONS[kind])


def _messaging(topic: str) -> Attributes:
    return ("messaging.system", "topics"), ("messaging.destination.name", topic)


def _calling(operation: str, publish: bool) -> Attributes:
    if publish:
        return ("messaging.operation.name", operation), ("messaging.operation.type", "send")
    return (("db.system.name", "redis"),)


def _server(region: int, publish: bool) -> Attributes:
    name = "topics" if publish else "cache"
    return ("server.address", f"{name}.{REGIONS[region]}.platform.internal"), ("server.port", 8443)


def fan_out_attributes(tenant: Tenant, topic: int) -> Attributes:
    """Of the internal span in which the topics service hands a message to its subscribers."""
    it = tenant.topics[topic]
    count = len(it.subscriptions)
    return (*_messaging(it.name), ("topics.subscription.count", count), ("tenant.id", tenant.name))


def consumer_attributes(tenant: Tenant, topic: str, subscription: Subscription, region: int) -> Attributes:
    """Of the span in which a subscriber processes a message."""
    return (
        *_messaging(topic),
        ("messaging.operation.name", "process"),
        ("messaging.operation.type", "process"),
        ("messaging.consumer.group.name", subscription.group),
        *_server(region, publish=True),
        ("tenant.id", tenant.name),
    )


def database_attributes(tenant: Tenant, region: int) -> Attributes:
    """Of the gateway's query after a missed `get`."""
    return (
        ("db.system.name", "postgresql"),
        ("db.namespace", "platform"),
        ("db.collection.name", "items"),
        ("db.operation.name", "SELECT"),
        ("db.query.text", "SELECT value FROM items WHERE tenant = $1 AND cache = $2 AND key = $3"),
        ("server.address", f"db.{REGIONS[region]}.platform.internal"),
        ("server.port", 5432),
        ("tenant.id", tenant.name),
    )


@lru_cache(maxsize=2**16)
def key_hash(tenant: int, cache: int, key: int) -> str:
    """`cache.key.hash`: `key_number` as 8 hex digits."""
    return f"{key_number(tenant, cache, key):08x}"


def key_number(tenant: IntOrInts, cache: IntOrInts, key: IntOrInts) -> IntOrInts:
    """A number below 2**32, different for every key of a cache (an odd factor is a bijection)."""
    return ((key + 1) * 0x9E3779B1 + tenant * 0x85EBCA6B + cache * 0xC2B2AE35) % 2**32
