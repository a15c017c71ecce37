"""The decode stage, span by span over python-protobuf objects: the rules once more, without a shared line of logic."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from collector.config import LimitsConfig, MappingConfig
from collector.errors import InvalidRequestError
from collector.pipeline import TraceRequest

KINDS = {0: "unspecified", 1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}
TEXT_COLUMNS = [
    "service_name", "service_namespace", "service_version", "service_instance_id", "environment", "region", "zone",
    "host", "tenant", "operation", "destination", "error_type",
]  # fmt: skip
TOPIC = [
    "messaging.system", "messaging.destination.name", "messaging.operation.name", "messaging.operation.type",
    "messaging.operation", "messaging.destination",
]  # fmt: skip
TIME_MAX = 2**63 - 2


def json_form(value: Any, level: int) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which in ("array_value", "kvlist_value") and level > 32:
        return "..."
    if which == "array_value":
        return [json_form(item, level + 1) for item in value.array_value.values]
    if which == "kvlist_value":
        last = {pair.key: pair.value for pair in value.kvlist_value.values}
        return {key: json_form(item, level + 1) for key, item in last.items()}
    if which == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    odd = which == "double_value" and not math.isfinite(value.double_value)
    return double_text(value.double_value) if odd else getattr(value, which)


def double_text(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return orjson.dumps(number).decode()


def text_form(value: Any) -> str:
    which = value.WhichOneof("value")
    if which is None:
        return ""
    if which in ("cut", "string_value"):
        return value.text if which == "cut" else value.string_value
    if which == "bool_value":
        return "true" if value.bool_value else "false"
    if which == "int_value":
        return str(value.int_value)
    if which == "double_value":
        return double_text(value.double_value)
    form = json_form(value, 1)
    return form if which == "bytes_value" else orjson.dumps(form).decode()


class Kept:
    """What the limits leave of a message, and what they take from it."""

    def __init__(self, pairs: Any, limits: LimitsConfig) -> None:
        sent: dict[str, Any] = {}
        for pair in pairs:
            sent.pop(pair.key, None)
            sent[pair.key] = pair.value
        short = [item for item in sent.items() if len(item[0].encode()) <= limits.attribute_key_bytes_max]
        self.limits = limits
        self.attributes = dict(short[: limits.attributes_max])
        self.dropped = len(sent) - len(self.attributes)
        self.cut: dict[str, int] = {}
        for key, value in self.attributes.items():
            text = text_form(value)
            if len(text.encode()) > limits.attribute_value_bytes_max:
                self.attributes[key] = self.shorter(key, value)

    def shorter(self, key: str, value: Any) -> Any:
        """A value of the same kind, which no conversion tells from the text that is left."""
        text = self.text(key, text_form(value), self.limits.attribute_value_bytes_max)
        return AnyValue(string_value=text) if value.WhichOneof("value") == "string_value" else Cut(text)

    def text(self, name: str, text: str, most: int) -> str:
        size = len(text.encode())
        if size <= most:
            return text
        self.cut[name] = size
        while len(text.encode()) > most:
            text = text[: -max(1, (len(text.encode()) - most) // 4)]
        return text

    def texts(self) -> list[tuple[str, str]]:
        return [(key, text_form(value)) for key, value in self.attributes.items()]

    def mark(self) -> list[tuple[str, str]]:
        return [("spanlake.truncated", orjson.dumps(self.cut).decode())] if self.cut else []


class Cut:
    """What is left of a nested value or of bytes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def WhichOneof(self, _: str) -> str:
        return "cut"


def as_text(value: Any) -> str | None:
    usable = value.WhichOneof("value") in ("string_value", "int_value", "bool_value")
    return (text_form(value) or None) if usable else None


def as_hit(value: Any) -> bool | None:
    return {"true": True, "hit": True, "1": True, "false": False, "miss": False, "0": False}.get(
        (as_text(value) or "").lower()
    )


def as_integer(value: Any, low: int, high: int) -> int | None:
    if value.WhichOneof("value") == "int_value":
        number = value.int_value
    elif value.WhichOneof("value") == "string_value" and re.fullmatch(r"[0-9]{1,18}", value.string_value):
        number = int(value.string_value)
    else:
        return None
    return number if low <= number <= high else None


def as_tenant(value: Any) -> str | None:
    text = as_text(value)
    if text is None or len(text) > 150 or not (text[0].isalnum() or text[0] == "_"):
        return None
    return text if text.isascii() and all(c.isalnum() or c in "_.:@/+=*'!~-" for c in text) else None


CONVERT: dict[str, Any] = {
    **dict.fromkeys(TEXT_COLUMNS, as_text),
    "tenant": as_tenant,
    "cache_hit": as_hit,
    "payload_bytes": lambda value: as_integer(value, 0, 2**63 - 1),
    "http_status": lambda value: as_integer(value, 100, 999),
}


def fill(column: str, mapping: MappingConfig, span: dict[str, Any], resource: dict[str, Any]) -> tuple[Any, str | None]:
    """The column's value, and the key of the span's attribute that gave it."""
    for candidate in getattr(mapping, column):
        prefix, _, rest = candidate.partition(":")
        explicit = prefix in ("span", "resource") and rest
        key = rest if explicit else candidate
        for where, attributes in (("span", span), ("resource", resource)):
            if (not explicit or prefix == where) and key in attributes:
                value = CONVERT[column](attributes[key])
                if value is not None:
                    return value, key if where == "span" else None
    return None, None


def component_of(attributes: dict[str, Any], kind: int, mapping: MappingConfig) -> str:
    if kind in (4, 5) or any(key in attributes for key in TOPIC):
        return "topic"
    system = attributes.get("db.system.name", attributes.get("db.system"))
    if system is not None and text_form(system).lower() in [name.lower() for name in mapping.cache_systems]:
        return "cache"
    hits = [name.removeprefix("span:") for name in mapping.cache_hit if not name.startswith("resource:")]
    if any(key.startswith("cache.") or key in hits for key in attributes):
        return "cache"
    if system is not None:
        return "database"
    if "rpc.system.name" in attributes or "rpc.system" in attributes:
        return "rpc"
    return "http" if "http.request.method" in attributes or "http.method" in attributes else "other"


def weight_of(trace_state: str) -> float | None:
    for member in trace_state.split(","):
        key, _, value = member.strip(" \t").partition("=")
        if key != "ot":
            continue
        for part in value.split(";"):
            if re.fullmatch(r"th:[0-9a-f]{1,14}", part):
                return 2**56 / (2**56 - int(part[3:].ljust(14, "0"), 16))
    return None


def parent_of(raw: bytes) -> str | None:
    return raw.hex() if len(raw) == 8 and any(raw) else None


def acceptable(span: Any) -> bool:
    return (
        len(span.trace_id) == 16
        and any(span.trace_id)
        and len(span.span_id) == 8
        and any(span.span_id)
        and max(span.start_time_unix_nano, span.end_time_unix_nano) <= TIME_MAX
    )


def plus(sent: int, dropped: int) -> int:
    return min(sent + dropped, 2**32 - 1)


def extras_of(span: Any, kept: Kept, scope: Any, scope_kept: Kept, scope_url: str) -> list[tuple[str, str]]:
    limits = kept.limits
    counts = {
        "otel.dropped_attributes_count": plus(span.dropped_attributes_count, kept.dropped),
        "otel.dropped_events_count": plus(span.dropped_events_count, max(0, len(span.events) - limits.events_max)),
        "otel.dropped_links_count": plus(span.dropped_links_count, max(0, len(span.links) - limits.links_max)),
    }
    extras = [(name, str(count)) for name, count in counts.items() if count]
    scope_texts = dict(scope_kept.texts()) | dict(scope_kept.mark())
    extras += [(f"otel.scope.{key}", value) for key, value in scope_texts.items()]
    if dropped := plus(scope.dropped_attributes_count, scope_kept.dropped):
        extras.append(("otel.scope.dropped_attributes_count", str(dropped)))
    if scope_url:
        extras.append(("otel.scope.schema_url", scope_url))
    if span.kind not in KINDS:
        extras.append(("spanlake.kind", str(span.kind)))
    if span.status.code not in STATUSES:
        extras.append(("spanlake.status_code", str(span.status.code)))
    if span.end_time_unix_nano < span.start_time_unix_nano:
        extras.append(("spanlake.end_time_unix_nano", str(span.end_time_unix_nano)))
    if any(span.parent_span_id) and len(span.parent_span_id) != 8:
        extras.append(("spanlake.parent_span_id", span.parent_span_id.hex()))
    return extras + kept.mark()


def event_of(event: Any, limits: LimitsConfig) -> dict[str, Any]:
    kept = Kept(event.attributes, limits)
    name = kept.text("@name", event.name, limits.name_bytes_max)
    late = event.time_unix_nano > TIME_MAX
    extras = kept.mark()
    if late:
        extras.append(("spanlake.time_unix_nano", str(event.time_unix_nano)))
    return {
        "time": None if late else event.time_unix_nano,
        "name": name,
        "attributes": last_of_each(kept.texts() + extras),
        "dropped_attributes_count": plus(event.dropped_attributes_count, kept.dropped),
    }


def link_of(link: Any, limits: LimitsConfig) -> dict[str, Any]:
    kept = Kept(link.attributes, limits)
    trace_state = kept.text("@trace_state", link.trace_state, limits.attribute_value_bytes_max)
    return {
        "trace_id": link.trace_id.hex(),
        "span_id": link.span_id.hex(),
        "trace_state": trace_state or None,
        "attributes": last_of_each(kept.texts() + kept.mark()),
        "dropped_attributes_count": plus(link.dropped_attributes_count, kept.dropped),
        "flags": link.flags,
    }


def resource_id(resource: bytes, schema_url: str) -> str:
    key = hashlib.blake2b(schema_url.encode()).digest() if schema_url else b""
    return hashlib.blake2b(resource, digest_size=16, key=key).hexdigest()


def columns_of(
    span: Any,
    name: str,
    attributes: dict[str, Any],
    resource: dict[str, Any],
    mapping: MappingConfig,
    tenant: str | None,
) -> dict[str, Any]:
    """Columns that attributes fill, `component`, and what is left in `attributes` (as pairs)."""
    row: dict[str, Any] = {"component": component_of(attributes, span.kind, mapping)}
    moved = set()
    for column in CONVERT:
        if column == "tenant" and tenant:
            row[column] = tenant
            continue
        row[column], key = fill(column, mapping, attributes, resource)
        moved.add(key)
    row["service_name"] = row["service_name"] or "unknown_service"
    row["tenant"] = row["tenant"] or "default"
    if row["operation"] is None:
        row["operation"] = name
        method, route = (
            next((text for key in keys if key in attributes and (text := as_text(attributes[key]))), None)
            for keys in (("http.request.method", "http.method"), ("http.route",))
        )
        if row["component"] == "http" and method and route:
            row["operation"] = f"{method} {route}"
    row["attributes"] = [(key, text_form(value)) for key, value in attributes.items() if key not in moved]
    return row


def row_of(
    span: Any,
    scope_spans: Any,
    tenant: str | None,
    resource: dict[str, Any],
    mapping: MappingConfig,
    limits: LimitsConfig,
) -> Any:
    scope = scope_spans.scope
    scope_kept = Kept(scope.attributes, limits)
    scope_name = scope_kept.text("@name", scope.name, limits.name_bytes_max)
    scope_version = scope_kept.text("@version", scope.version, limits.name_bytes_max)
    long = Kept([], limits)
    name = long.text("@name", span.name, limits.name_bytes_max)
    message = long.text("@status_message", span.status.message, limits.attribute_value_bytes_max)
    trace_state = long.text("@trace_state", span.trace_state, limits.attribute_value_bytes_max)
    kept = Kept(span.attributes, limits)
    kept.cut = long.cut | kept.cut
    row = columns_of(span, name, kept.attributes, resource, mapping, tenant)
    extras = extras_of(span, kept, scope, scope_kept, scope_spans.schema_url)
    added = {key for key, _ in extras}
    row["attributes"] = [pair for pair in row["attributes"] if pair[0] not in added]
    row["attributes"] += last_of_each(extras)
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    return row | {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": parent_of(span.parent_span_id),
        "trace_state": trace_state or None,
        "flags": span.flags,
        "name": name,
        "kind": KINDS.get(span.kind, "unspecified"),
        "start_time": start,
        "duration_ns": max(end - start, 0),
        "status": STATUSES.get(span.status.code, "unset"),
        "status_message": message or None,
        "sample_weight": weight_of(span.trace_state),
        "scope_name": scope_name or None,
        "scope_version": scope_version or None,
        "events": [event_of(event, limits) for event in span.events[: limits.events_max]],
        "links": [link_of(link, limits) for link in span.links[: limits.links_max]],
    }


def last_of_each(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Only the last pair of each key, in the order of those."""
    found: dict[str, str] = {}
    for key, value in pairs:
        found.pop(key, None)
        found[key] = value
    return list(found.items())


def decode(
    requests: list[TraceRequest], mapping: MappingConfig, limits: LimitsConfig
) -> tuple[list[Any], dict[str, Any], list[int]]:
    """Rows of spans, rows of resources by id, and the count of rejected spans by request."""
    rows, resources, rejected = [], {}, []
    for request in requests:
        message = ExportTraceServiceRequest()
        try:
            message.ParseFromString(request.payload)
        except DecodeError as error:
            raise InvalidRequestError(str(error)) from error
        rejected.append(0)
        for group in message.resource_spans:
            key = resource_id(group.resource.SerializeToString(), group.schema_url)
            kept = Kept(group.resource.attributes, limits)
            for scope_spans in group.scope_spans:
                for span in scope_spans.spans:
                    if not acceptable(span):
                        rejected[-1] += 1
                        continue
                    resources.setdefault(
                        key,
                        {
                            "resource_id": key,
                            "schema_url": group.schema_url or None,
                            "attributes": list((dict(kept.texts()) | dict(kept.mark())).items()),
                            "dropped_attributes_count": plus(group.resource.dropped_attributes_count, kept.dropped),
                            "first_seen_at": request.received_at_ns,
                        },
                    )
                    row = row_of(span, scope_spans, request.tenant, kept.attributes, mapping, limits)
                    rows.append(row | {"resource_id": key, "received_at": request.received_at_ns})
    return rows, resources, rejected
