"""Spans as OTLP: protobuf and JSON, without an SDK. A request holds the spans of one process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from sample_data.span import SCOPE_NAME, SCOPE_VERSION, Attributes, AttributeValue, Span
from sample_data.topology import Instance

SPAN_FLAGS = trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
REMOTE_PARENT_FLAGS = SPAN_FLAGS | trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_STATUS_ERROR = trace_pb2.Status.STATUS_CODE_ERROR


def protobuf_request(instance: Instance, spans: Sequence[Span]) -> bytes:
    """A serialized ExportTraceServiceRequest of spans of this process."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(map(_key_value, instance.attributes))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = SCOPE_NAME
    scope_spans.scope.version = SCOPE_VERSION
    for span in spans:
        _fill(scope_spans.spans.add(), span)
    payload: bytes = request.SerializeToString()
    return payload


def _fill(message: trace_pb2.Span, span: Span) -> None:
    # Most attributes recur: merging their serialized form takes a third of the time of adding them.
    message.MergeFromString(b"".join(map(_attribute_field, span.attributes)))
    message.trace_id = span.trace_id
    message.span_id = span.span_id
    message.parent_span_id = span.parent_span_id
    message.flags = REMOTE_PARENT_FLAGS if span.parent_is_remote else SPAN_FLAGS
    message.name = span.name
    message.kind = span.kind  # type: ignore[assignment]
    message.start_time_unix_nano = span.start_ns
    message.end_time_unix_nano = span.end_ns
    if span.error:
        message.status.code = _STATUS_ERROR
        message.status.message = span.status_message
    for trace_id, span_id in span.links:
        message.links.add(trace_id=trace_id, span_id=span_id, flags=REMOTE_PARENT_FLAGS)
    if span.exception:
        event = message.events.add(name="exception", time_unix_nano=span.end_ns)
        event.attributes.extend(map(_key_value, exception_attributes(span.exception)))


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
    field: bytes = trace_pb2.Span(attributes=[_key_value(attribute)]).SerializeToString()
    return field


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
