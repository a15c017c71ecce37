"""OTLP/JSON requests to serialized protobuf.

The mapping is proto3 JSON with OTLP's exceptions (specification, "JSON Protobuf Encoding"): ids are hex in any case,
enums are integers, names lowerCamelCase only; unknown fields are ignored, null is the same as absent.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any

import orjson
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from collector.decode.anyvalue import CUT, DEPTH_MAX
from collector.decode.json_attributes import plain_attributes
from collector.decode.json_spans import delimited, plain_span
from collector.errors import InvalidRequestError

Object = dict[str, Any]
_Fields = dict[str, tuple[str, Callable[[object], object]]]
"""By name in JSON: the name in protobuf, and what makes the value."""

OBJECTS_MAX = 2_000_000
_SPAN_ATTRIBUTES = b"\x4a"
"""The tag of Span.attributes: field 9, length-delimited."""

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class _Wrong(Exception):
    """Something is not as it should be; `path` grows from the inside out while the error goes up."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.path = list(path)


def to_protobuf(body: bytes) -> bytes:
    """Serialized ExportTraceServiceRequest of an OTLP/JSON body.

    Arrays and maps nested deeper than 32 levels become the text "..." as they do in the protobuf way.
    Raises InvalidRequestError, with the JSON path of what is wrong.
    """
    # An empty object takes 3 bytes here and hundreds as a span.
    if (objects := body.count(b"{") + body.count(b"[")) > OBJECTS_MAX:
        raise InvalidRequestError(
            f"{objects} objects and arrays in one request, expected at most {OBJECTS_MAX}; send smaller batches"
        )
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"not JSON: {error}; send an OTLP/JSON ExportTraceServiceRequest") from error
    try:
        return b"".join(delimited(b"\x0a", _all(_object(parsed), "resourceSpans", _resource_spans)))
    except _Wrong as error:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in reversed(error.path))
        raise InvalidRequestError(f"not OTLP/JSON: ${path}: {error}") from error


def _resource_spans(source: Object) -> bytes:
    target = ResourceSpans(schema_url=_get(source, "schemaUrl", _text, ""))
    _get(source, "resource", lambda value: _with_attributes(target.resource, _object(value)), None)
    scopes = _all(source, "scopeSpans", _scope_spans)
    return b"".join((target.SerializeToString(), *delimited(b"\x12", scopes)))


def _scope_spans(source: Object) -> bytes:
    target = ScopeSpans(schema_url=_get(source, "schemaUrl", _text, ""))
    _get(source, "scope", lambda value: _scope(target.scope, _object(value)), None)
    spans = _all(source, "spans", _any_span)
    return b"".join((target.SerializeToString(), *delimited(b"\x12", spans)))


def _any_span(source: Object) -> bytes:
    plain = plain_span(source)
    if plain is not None:
        return plain
    target = Span()
    _span(target, source)
    serialized: bytes = target.SerializeToString()
    return serialized


def _scope(target: Any, source: Object) -> None:
    target.name = _get(source, "name", _text, "")
    target.version = _get(source, "version", _text, "")
    _with_attributes(target, source)


def _span(target: Any, source: Object) -> None:
    _fill(target, source, _SPAN_FIELDS)
    plain = plain_attributes(source.get("attributes"), _SPAN_ATTRIBUTES)
    if plain is None:
        _with_attributes(target, source)
    else:
        target.MergeFromString(plain)
        target.dropped_attributes_count = _get(source, "droppedAttributesCount", _uint32, 0)
    _each(source, "events", lambda item: _event(target.events.add(), item))
    _each(source, "links", lambda item: _link(target.links.add(), item))
    _get(source, "status", lambda value: _status(target.status, _object(value)), None)


def _status(target: Any, source: Object) -> None:
    target.SetInParent()
    _fill(target, source, _STATUS_FIELDS)


def _event(target: Any, source: Object) -> None:
    _fill(target, source, _EVENT_FIELDS)
    _with_attributes(target, source)


def _link(target: Any, source: Object) -> None:
    _fill(target, source, _LINK_FIELDS)
    _with_attributes(target, source)


def _with_attributes(target: Any, source: Object) -> None:
    target.SetInParent()
    _each(source, "attributes", lambda item: _key_value(target.attributes.add(), item, 1))
    target.dropped_attributes_count = _get(source, "droppedAttributesCount", _uint32, 0)


def _key_value(target: Any, source: Object, depth: int) -> None:
    target.key = _get(source, "key", _text, "")
    value = source.get("value")
    if value is not None:
        try:
            _any_value(target.value, value, depth)
        except _Wrong as error:
            error.path.append("value")
            raise


def _any_value(target: Any, source: object, depth: int) -> None:
    target.SetInParent()
    chosen = [(name, value) for name, value in _object(source).items() if name in _MEMBERS and value is not None]
    if len(chosen) > 1:
        raise _Wrong(f"{' and '.join(name for name, _ in chosen)} are both set, expected one of them")
    for name, value in chosen:
        try:
            _MEMBERS[name](target, value, depth)
        except _Wrong as error:
            error.path.append(name)
            raise


def _set(field: str, convert: Callable[[object], object]) -> Callable[[Any, object, int], None]:
    return lambda target, value, depth: setattr(target, field, convert(value))


def _array(target: Any, value: object, depth: int) -> None:
    if depth > DEPTH_MAX:
        target.string_value = CUT
        return
    target.array_value.SetInParent()
    items = target.array_value.values
    _each(_object(value), "values", lambda item: _any_value(items.add(), item, depth + 1))


def _map(target: Any, value: object, depth: int) -> None:
    if depth > DEPTH_MAX:
        target.string_value = CUT
        return
    target.kvlist_value.SetInParent()
    items = target.kvlist_value.values
    _each(_object(value), "values", lambda item: _key_value(items.add(), item, depth + 1))


def _get(source: Object, key: str, convert: Callable[[object], Any], default: Any) -> Any:
    value = source.get(key)
    if value is None:
        return default
    try:
        return convert(value)
    except _Wrong as error:
        error.path.append(key)
        raise


def _fill(target: Any, source: Object, fields: _Fields) -> None:
    """Set those of the fields that the source has."""
    for key, value in source.items():
        if key in fields and value is not None:
            name, convert = fields[key]
            try:
                setattr(target, name, convert(value))
            except _Wrong as error:
                error.path.append(key)
                raise


def _all(source: Object, key: str, make: Callable[[Object], bytes]) -> list[bytes]:
    made: list[bytes] = []
    _each(source, key, lambda item: made.append(make(item)))
    return made


def _each(source: Object, key: str, take: Callable[[Object], None]) -> None:
    items = source.get(key)
    if items is None:
        return
    if not isinstance(items, list):
        raise _Wrong(f"{_shown(items)}, expected an array", key)
    for i, item in enumerate(items):
        try:
            take(_object(item))
        except _Wrong as error:
            error.path += [i, key]
            raise


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 60 else written[:57] + "..."


def _object(value: object) -> Object:
    if isinstance(value, dict):
        return value
    raise _Wrong(f"{_shown(value)}, expected an object")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise _Wrong(f"{_shown(value)}, expected a string")


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _Wrong(f"{_shown(value)}, expected true or false")


def _id(value: object) -> bytes:
    if isinstance(value, str) and _HEX.fullmatch(value):
        return bytes.fromhex(value)
    raise _Wrong(f"{_shown(value)}, expected hex digits (OTLP/JSON writes ids as hex, not base64)")


def _base64(value: object) -> bytes:
    text = _text(value).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise _Wrong(f"{_shown(value)}, expected base64") from error


def _integer(low: int, high: int) -> Callable[[object], int]:
    def convert(value: object) -> int:
        number = value
        if (isinstance(value, str) and _INTEGER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
            number = int(value)
        if isinstance(number, int) and not isinstance(number, bool) and low <= number <= high:
            return number
        raise _Wrong(f"{_shown(value)}, expected an integer from {low} to {high}")

    return convert


_uint32, _uint64 = _integer(0, (1 << 32) - 1), _integer(0, (1 << 64) - 1)
_int64 = _integer(-(1 << 63), (1 << 63) - 1)


def _enum(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and -(1 << 31) <= value < 1 << 31:
        return value
    raise _Wrong(f"{_shown(value)}, expected a 32-bit integer (OTLP/JSON writes enums as numbers, not names)")


def _double(value: object) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _Wrong(f"{_shown(value)}, expected a number, NaN, Infinity or -Infinity")


_SPAN_FIELDS: _Fields = {
    "traceId": ("trace_id", _id),
    "spanId": ("span_id", _id),
    "traceState": ("trace_state", _text),
    "parentSpanId": ("parent_span_id", _id),
    "flags": ("flags", _uint32),
    "name": ("name", _text),
    "kind": ("kind", _enum),
    "startTimeUnixNano": ("start_time_unix_nano", _uint64),
    "endTimeUnixNano": ("end_time_unix_nano", _uint64),
    "droppedEventsCount": ("dropped_events_count", _uint32),
    "droppedLinksCount": ("dropped_links_count", _uint32),
}
_STATUS_FIELDS: _Fields = {"message": ("message", _text), "code": ("code", _enum)}
_EVENT_FIELDS: _Fields = {"timeUnixNano": ("time_unix_nano", _uint64), "name": ("name", _text)}
_LINK_FIELDS: _Fields = {
    "traceId": ("trace_id", _id),
    "spanId": ("span_id", _id),
    "traceState": ("trace_state", _text),
    "flags": ("flags", _uint32),
}
_MEMBERS: dict[str, Callable[[Any, object, int], None]] = {
    "stringValue": _set("string_value", _text),
    "boolValue": _set("bool_value", _bool),
    "intValue": _set("int_value", _int64),
    "doubleValue": _set("double_value", _double),
    "bytesValue": _set("bytes_value", _base64),
    "arrayValue": _array,
    "kvlistValue": _map,
}
