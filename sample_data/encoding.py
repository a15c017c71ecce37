"""Spans as OTLP: protobuf and JSON, without an SDK. A request holds the spans of one process."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from sample_data.span import SCOPE_NAME, SCOPE_VERSION, Attributes, AttributeValue, Span
from sample_data.topology import Instance

SPAN_FLAGS = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
REMOTE_PARENT_FLAGS = SPAN_FLAGS | trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_STATUS_ERROR = trace_pb2.Status.STATUS_CODE_ERROR


# The fields that every span has, as protobuf lays them out: trace_id (1), span_id (2), start (7), end (8) and
# flags (16), each after its tag. Setting them one by one on a message takes three times as long as the whole span.
_ALWAYS = struct.Struct("<2s16s2s8scQcQ2sI")
_PARENT_TAG = b"\x22\x08"
_RESOURCE_SPANS_TAG = b"\x0a"
_SCOPE_SPANS_TAG = b"\x12"
_SPANS_TAG = b"\x12"


def protobuf_request(instance: Instance, spans: Sequence[Span]) -> bytes:
    """A serialized ExportTraceServiceRequest of spans of this process."""
    scope_spans = [_scope_field(), *(_delimited(_SPANS_TAG, _protobuf_span(span)) for span in spans)]
    resource_spans = _resource_field(instance.attributes) + _delimited(_SCOPE_SPANS_TAG, b"".join(scope_spans))
    return _delimited(_RESOURCE_SPANS_TAG, resource_spans)


def _delimited(tag: bytes, message: bytes) -> bytes:
    """A field that holds a message: tag, length as a varint, message."""
    length = len(message)
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + bytes(varint) + message


def _protobuf_span(span: Span) -> bytes:
    flags = REMOTE_PARENT_FLAGS if span.parent_is_remote else SPAN_FLAGS
    fields = [
        _ALWAYS.pack(
            b"\x0a\x10", span.trace_id, b"\x12\x08", span.span_id,
            b"\x39", span.start_ns, b"\x41", span.end_ns, b"\x85\x01", flags,
        ),
        _name_and_kind(span.name, span.kind),
        *map(_attribute_field, span.attributes),
    ]  # fmt: skip
    if span.parent_span_id:
        fields.append(_PARENT_TAG + span.parent_span_id)
    if span.error or span.links or span.exception:
        fields.append(_rare_fields(span))
    return b"".join(fields)


def _rare_fields(span: Span) -> bytes:
    """Status, links and events, which few spans have."""
    message = trace_pb2.Span()
    if span.error:
        message.status.code = _STATUS_ERROR
        message.status.message = span.status_message
    for trace_id, span_id in span.links:
        message.links.add(trace_id=trace_id, span_id=span_id, flags=REMOTE_PARENT_FLAGS)
    if span.exception:
        event = message.events.add(name="exception", time_unix_nano=span.end_ns)
        event.attributes.extend(map(_key_value, exception_attributes(span.exception)))
    return _serialized(message)


def _serialized(message: Message) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


@lru_cache(maxsize=2**12)
def _name_and_kind(name: str, kind: int) -> bytes:
    return _serialized(trace_pb2.Span(name=name, kind=kind))  # type: ignore[arg-type]  # `kind` is a number of the enum


@lru_cache(maxsize=1)
def _scope_field() -> bytes:
    scope = InstrumentationScope(name=SCOPE_NAME, version=SCOPE_VERSION)
    return _serialized(trace_pb2.ScopeSpans(scope=scope))


@lru_cache(maxsize=2**10)
def _resource_field(attributes: Attributes) -> bytes:
    resource = Resource(attributes=map(_key_value, attributes))
    return _serialized(trace_pb2.ResourceSpans(resource=resource))


def exception_attributes(exception: tuple[str, str]) -> Attributes:
    """Attributes of an `exception` event."""
    return ("exception.type", exception[0]), ("exception.message", exception[1])


def _key_value(attribute: tuple[str, AttributeValue]) -> KeyValue:
    key, value = attribute
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))


@lru_cache(maxsize=2**16)
def _attribute_field(attribute: tuple[str, AttributeValue]) -> bytes:
    return _serialized(trace_pb2.Span(attributes=[_key_value(attribute)]))


def json_request(instance: Instance, spans: Sequence[Span]) -> bytes:
    """The same as `protobuf_request`, in OTLP's JSON: ids in hex, 64-bit integers as strings."""
    scope_spans = {
        "scope": {"name": SCOPE_NAME, "version": SCOPE_VERSION},
        "spans": [_json_span(s) for s in spans],
    }
    resource = {"attributes": _json_attributes(instance.attributes)}
    return orjson.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope_spans]}]})


def _json_span(span: Span) -> dict[str, Any]:
    message: dict[str, Any] = {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "flags": REMOTE_PARENT_FLAGS if span.parent_is_remote else SPAN_FLAGS,
        "name": span.name,
        "kind": int(span.kind),
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _json_attributes(span.attributes),
    }
    if span.parent_span_id:
        message["parentSpanId"] = span.parent_span_id.hex()
    if span.error:
        message["status"] = {"code": int(_STATUS_ERROR), "message": span.status_message}
    if span.links:
        message["links"] = [_json_link(*link) for link in span.links]
    if span.exception:
        attributes = _json_attributes(exception_attributes(span.exception))
        event = {"name": "exception", "timeUnixNano": str(span.end_ns), "attributes": attributes}
        message["events"] = [event]
    return message


def _json_link(trace_id: bytes, span_id: bytes) -> dict[str, Any]:
    return {"traceId": trace_id.hex(), "spanId": span_id.hex(), "flags": REMOTE_PARENT_FLAGS}


def _json_attributes(attributes: Attributes) -> list[dict[str, Any]]:
    return list(map(_json_attribute, attributes))


@lru_cache(maxsize=2**16)
def _json_attribute(attribute: tuple[str, AttributeValue]) -> dict[str, Any]:
    key, value = attribute
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"stringValue": value}}
