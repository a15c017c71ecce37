"""What an attribute means: which column it fills, and what kind of component a span speaks of.

`component`, the first that holds:
- `topic`: the span has any of `messaging.system`, `messaging.destination.name`, `messaging.operation.name`,
  `messaging.operation.type`, `messaging.operation`, `messaging.destination`; or is of kind producer or consumer
- `cache`: `db.system.name` (or else `db.system`) is one of `mapping.cache_systems`, whatever its case; or the span
  has any attribute that begins with `cache.`, or one of `mapping.cache_hit`
- `database`: it has `db.system.name` or `db.system`
- `rpc`: it has `rpc.system.name` or `rpc.system`
- `http`: it has `http.request.method` or `http.method`
- `other`

A candidate fills its column where its value converts: text from a non-empty string, an int or a bool; an integer from
an int or up to 18 decimal digits, in the column's range; a hit from a bool, 0 or 1, or `true`, `false`, `hit`, `miss`,
`1`, `0` in any case; a tenant from text that can be the name of one (`collector/tenants/names.py`). The next candidate
is tried where it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from collector.config import MappingConfig
from collector.decode.anyvalue import Kind, Value
from collector.tenants.names import DEFAULT_TENANT, is_name

TEXT_COLUMNS = (
    "service_name", "service_namespace", "service_version", "service_instance_id", "environment", "region", "zone",
    "host", "tenant", "operation", "destination", "error_type",
)  # fmt: skip
INTEGER_RANGES = {"payload_bytes": (0, (1 << 63) - 1), "http_status": (100, 999)}
COLUMNS = (*TEXT_COLUMNS, "cache_hit", *INTEGER_RANGES)
DEFAULTS = {"service_name": "unknown_service", "tenant": DEFAULT_TENANT}

COMPONENTS = ("cache", "topic", "database", "rpc", "http", "other")
TOPIC_KEYS = (
    "messaging.system", "messaging.destination.name", "messaging.operation.name", "messaging.operation.type",
    "messaging.operation", "messaging.destination",
)  # fmt: skip
DATABASE_KEYS = ("db.system.name", "db.system")
RPC_KEYS = ("rpc.system.name", "rpc.system")
HTTP_METHOD_KEYS = ("http.request.method", "http.method")
HTTP_ROUTE_KEYS = ("http.route",)
CACHE_PREFIX = "cache."
KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")

HITS = {"true": True, "hit": True, "1": True, "false": False, "miss": False, "0": False}
DIGITS_MAX = 18

ColumnValue = str | int | bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """An attribute that may fill a column, where it may stand, and its rank (0 is tried first)."""

    key: str
    rank: int
    on_span: bool
    on_resource: bool


class Mapping:
    """MappingConfig, compiled: candidates by column, and every key that matters on a span."""

    def __init__(self, config: MappingConfig) -> None:
        self.candidates = {column: _candidates(getattr(config, column)) for column in COLUMNS}
        self.cache_systems = tuple(system.lower() for system in config.cache_systems)
        self.cache_keys = tuple(candidate.key for candidate in self.candidates["cache_hit"] if candidate.on_span)
        on_span = [c.key for candidates in self.candidates.values() for c in candidates if c.on_span]
        rules = [*TOPIC_KEYS, *DATABASE_KEYS, *RPC_KEYS, *HTTP_METHOD_KEYS, *HTTP_ROUTE_KEYS]
        self.span_keys = tuple(dict.fromkeys([*on_span, *rules]))
        self.span_key_array = pa.array(self.span_keys, pa.string())
        self.cache_system_array = pa.array(self.cache_systems, pa.string())

    def resource_columns(self, attributes: dict[str, Value]) -> dict[str, tuple[int, ColumnValue]]:
        """What a resource gives to columns: (rank of the candidate, value), only where there is a value."""
        found: dict[str, tuple[int, ColumnValue]] = {}
        for column, candidates in self.candidates.items():
            convert = converter(column)
            for candidate in candidates:
                value = attributes.get(candidate.key) if candidate.on_resource else None
                converted = None if value is None else convert(value)
                if converted is not None:
                    found[column] = (candidate.rank, converted)
                    break
        return found


def _candidates(names: tuple[str, ...]) -> tuple[Candidate, ...]:
    found = []
    for rank, name in enumerate(names):
        where, _, key = name.partition(":")
        if where in ("span", "resource") and key:
            found.append(Candidate(key, rank, where == "span", where == "resource"))
        else:
            found.append(Candidate(name, rank, on_span=True, on_resource=True))
    return tuple(found)


def converter(column: str) -> Callable[[Value], ColumnValue | None]:
    """The conversion of single values for a column; it gives None where a value does not convert."""
    if column in INTEGER_RANGES:
        return lambda value: _integer(value, *INTEGER_RANGES[column])
    if column == "tenant":
        return _tenant
    return _hit if column == "cache_hit" else _text


def _text(value: Value) -> str | None:
    return value.text if value.kind in (Kind.STRING, Kind.INT, Kind.BOOL) else None


def _tenant(value: Value) -> str | None:
    text = _text(value)
    return text if text is not None and is_name(text) else None


def _hit(value: Value) -> bool | None:
    return HITS.get(value.text.lower()) if value.kind in (Kind.STRING, Kind.INT, Kind.BOOL) else None


def _integer(value: Value, low: int, high: int) -> int | None:
    number = value.integer
    if value.kind is Kind.STRING:
        if not (value.text.isascii() and value.text.isdigit() and len(value.text) <= DIGITS_MAX):
            return None
        number = int(value.text)
    elif value.kind is not Kind.INT:
        return None
    return number if low <= number <= high else None
