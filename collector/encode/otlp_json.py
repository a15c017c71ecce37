"""Requests in OTLP's JSON: ids as hex digits, enums as numbers, 64-bit integers as texts.

The form is https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

_Message = dict[str, Any]


def to_json(payload: bytes) -> bytes:
    """A serialized request, as `ProtobufEncoder` makes it, as one line of JSON without the line's end."""
    request = ExportTraceServiceRequest.FromString(payload)
    return orjson.dumps({"resourceSpans": [_resource_spans(part) for part in request.resource_spans]})


def _set(**values: Any) -> _Message:
    """The fields that are not at their defaults."""
    return {name: value for name, value in values.items() if value}


def _resource_spans(part: ResourceSpans) -> _Message:
    resource = _set(
        attributes=_pairs(part.resource.attributes), droppedAttributesCount=part.resource.dropped_attributes_count
    )
    scopes = [_scope_spans(scope) for scope in part.scope_spans]
    return {"resource": resource, "scopeSpans": scopes} | _set(schemaUrl=part.schema_url)


def _scope_spans(part: ScopeSpans) -> _Message:
    scope = _set(name=part.scope.name, version=part.scope.version)
    return {"scope": scope, "spans": [_span(span) for span in part.spans]}


def _span(span: Span) -> _Message:
    return {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": str(span.start_time_unix_nano),
        "endTimeUnixNano": str(span.end_time_unix_nano),
    } | _set(
        traceState=span.trace_state,
        parentSpanId=span.parent_span_id.hex(),
        flags=span.flags,
        attributes=_pairs(span.attributes),
        events=[_event(event) for event in span.events],
        links=[_link(link) for link in span.links],
        status=_set(message=span.status.message, code=span.status.code) if span.HasField("status") else None,
    )


def _event(event: Span.Event) -> _Message:
    return {"timeUnixNano": str(event.time_unix_nano), "name": event.name} | _set(
        attributes=_pairs(event.attributes), droppedAttributesCount=event.dropped_attributes_count
    )


def _link(link: Span.Link) -> _Message:
    return {"traceId": link.trace_id.hex(), "spanId": link.span_id.hex()} | _set(
        traceState=link.trace_state,
        attributes=_pairs(link.attributes),
        droppedAttributesCount=link.dropped_attributes_count,
        flags=link.flags,
    )


def _pairs(attributes: Iterable[KeyValue]) -> list[_Message]:
    return [{"key": pair.key, "value": _value(pair.value)} for pair in attributes]


def _value(value: AnyValue) -> _Message:
    """An AnyValue; the encoder makes these kinds only."""
    kind = value.WhichOneof("value")
    if kind == "int_value":
        return {"intValue": str(value.int_value)}
    if kind == "bool_value":
        return {"boolValue": value.bool_value}
    return {"stringValue": value.string_value}
