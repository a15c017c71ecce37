"""OTLP/JSON: round trips against protobuf's own JSON, and refusals that say where."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from collector.config import MappingConfig
from collector.decode import otlp_json as conversion
from collector.decode.decoder import Decoder
from collector.decode.otlp_json import to_protobuf
from collector.errors import InvalidRequestError
from collector.pipeline import TraceRequest

texts = st.text(max_size=5)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
leaves = st.one_of(
    texts.map(lambda v: AnyValue(string_value=v)),
    st.booleans().map(lambda v: AnyValue(bool_value=v)),
    st.integers(-(2**63), 2**63 - 1).map(lambda v: AnyValue(int_value=v)),
    st.floats(allow_nan=False).map(lambda v: AnyValue(double_value=v)),
    st.binary(max_size=5).map(lambda v: AnyValue(bytes_value=v)),
    st.just(AnyValue()),
)


def array_of(items: list[AnyValue]) -> AnyValue:
    value = AnyValue()
    value.array_value.SetInParent()
    value.array_value.values.extend(items)
    return value


def map_of(items: list[KeyValue]) -> AnyValue:
    value = AnyValue()
    value.kvlist_value.SetInParent()
    value.kvlist_value.values.extend(items)
    return value


values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(array_of)
        | st.lists(st.builds(KeyValue, key=texts, value=inner), max_size=3).map(map_of)
    ),
    max_leaves=4,
)
attributes = st.lists(st.builds(KeyValue, key=texts, value=values) | st.builds(KeyValue, key=texts), max_size=3)
events = st.builds(
    Span.Event, time_unix_nano=uint64, name=texts, attributes=attributes, dropped_attributes_count=uint32
)
links = st.builds(
    Span.Link, trace_id=st.binary(max_size=16), span_id=st.binary(max_size=8), trace_state=texts,
    attributes=attributes, dropped_attributes_count=uint32, flags=uint32,
)  # fmt: skip
spans = st.builds(
    Span, trace_id=st.binary(max_size=17), span_id=st.binary(max_size=9), parent_span_id=st.binary(max_size=8),
    trace_state=texts, flags=uint32, name=texts, kind=st.integers(0, 5), start_time_unix_nano=uint64,
    end_time_unix_nano=uint64, attributes=attributes, dropped_attributes_count=uint32,
    events=st.lists(events, max_size=2), dropped_events_count=uint32, links=st.lists(links, max_size=2),
    dropped_links_count=uint32, status=st.none() | st.builds(Status, message=texts, code=st.integers(0, 2)),
)  # fmt: skip
scopes = st.builds(
    InstrumentationScope, name=texts, version=texts, attributes=attributes, dropped_attributes_count=uint32
)
scope_spans = st.builds(ScopeSpans, scope=st.none() | scopes, schema_url=texts, spans=st.lists(spans, max_size=2))
resources = st.builds(Resource, attributes=attributes, dropped_attributes_count=uint32)
resource_spans = st.builds(
    ResourceSpans, resource=st.none() | resources, schema_url=texts, scope_spans=st.lists(scope_spans, max_size=2)
)
messages = st.builds(ExportTraceServiceRequest, resource_spans=st.lists(resource_spans, max_size=2))


def otlp_json(message: ExportTraceServiceRequest, upper: bool = False) -> Any:
    """Protobuf's own JSON, changed where OTLP differs: ids are hex."""

    def fix(node: Any) -> Any:
        if isinstance(node, list):
            return [fix(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {key: hexed(value) if key in IDS else fix(value) for key, value in node.items()}

    def hexed(value: str) -> str:
        text = base64.b64decode(value).hex()
        return text.upper() if upper else text

    return fix(json_format.MessageToDict(message, use_integers_for_enums=True))


IDS = ("traceId", "spanId", "parentSpanId")


@settings(max_examples=100, deadline=None)
@given(messages, st.booleans())
def test_round_trip(message: ExportTraceServiceRequest, upper: bool) -> None:
    assert ExportTraceServiceRequest.FromString(to_protobuf(json.dumps(otlp_json(message, upper)).encode())) == message


NAMES = ["resourceSpans", "resource", "scopeSpans", "spans", "attributes", "key", "value", "arrayValue", "values"]
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*NAMES, "traceId", "kind", "events"]), inner),
    max_leaves=12,
)


_CONTENTS = st.one_of(
    st.text(max_size=300),
    st.text("0123456789-+.e٣", max_size=21),
    st.integers(-(2**64), 2**64),
    st.booleans(),
    st.floats(),
    st.none(),
    st.just("x" * 9000),
)
_ITEMS = st.one_of(
    st.fixed_dictionaries({
        "key": st.text(max_size=8) | st.integers(),
        "value": st.dictionaries(
            st.sampled_from(["stringValue", "intValue", "boolValue", "doubleValue", "other"]), _CONTENTS, max_size=2
        ) | st.just([]),
    }),
    st.just({"key": "k" * 300, "value": {"stringValue": "v"}}),
    st.just({"key": "k"}),
    st.none(),
)  # fmt: skip


def _converted(span: dict[str, Any]) -> ExportTraceServiceRequest | str:
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    try:
        payload = to_protobuf(json.dumps(document, allow_nan=False).encode())
    except ValueError:
        return "not JSON"
    except InvalidRequestError as error:
        return str(error)
    message: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(payload)
    return message


def _converted_by_messages(span: dict[str, Any]) -> ExportTraceServiceRequest | str:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plain_attributes", "plain_span"):
            patch.setattr(conversion, name, lambda *_: None)
        return _converted(span)


@given(st.lists(_ITEMS, max_size=4))
def test_plain_attributes_are_converted_as_any(items: list[Any]) -> None:
    span = {"attributes": items, "droppedAttributesCount": 3}
    assert _converted(span) == _converted_by_messages(span)


_IDS = st.one_of(
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.binary(min_size=8, max_size=8).map(lambda raw: raw.hex().upper()),
    st.text("0a ", min_size=16, max_size=16),
    _CONTENTS,
)
_NUMBERS = st.integers(0, 2**64).map(str) | st.integers(0, 200) | _CONTENTS
_STATUSES = st.dictionaries(st.sampled_from(["code", "message", "other"]), _NUMBERS)
_FIELDS = {
    **dict.fromkeys(("traceId", "spanId", "parentSpanId"), _IDS),
    **dict.fromkeys(("startTimeUnixNano", "endTimeUnixNano", "kind", "flags", "droppedAttributesCount"), _NUMBERS),
    **dict.fromkeys(("droppedEventsCount", "droppedLinksCount"), _NUMBERS),
    **dict.fromkeys(("name", "traceState", "unknown"), _CONTENTS),
    **dict.fromkeys(("events", "links"), st.just([]) | _CONTENTS),
    "attributes": st.lists(_ITEMS, max_size=1) | _CONTENTS,
    "status": _STATUSES | _CONTENTS,
}


@given(
    st.lists(st.sampled_from(sorted(_FIELDS)), max_size=3, unique=True).flatmap(
        lambda keys: st.fixed_dictionaries({key: _FIELDS[key] for key in keys})
    )
)
@settings(max_examples=300, deadline=None)
def test_plain_spans_are_converted_as_any(span: dict[str, Any]) -> None:
    assert _converted(span) == _converted_by_messages(span)


@settings(max_examples=200, deadline=None)
@given(
    documents, st.sampled_from(["$", "attributes", "traceId", "flags", "startTimeUnixNano", "status", "doubleValue"])
)
def test_any_json_is_converted_or_refused(document: Any, place: str) -> None:
    """Nothing but InvalidRequestError is ever raised."""
    if place == "doubleValue":
        document = [{"value": {name: document}} for name in ("doubleValue", "intValue", "bytesValue", "kvlistValue")]
        place = "attributes"
    body = json.dumps(document).encode() if place == "$" else in_span(**{place: document})
    with contextlib.suppress(InvalidRequestError):
        to_protobuf(body)


def in_span(**fields: Any) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{}, fields]}]}]}).encode()


def span_of(body: bytes) -> Any:
    return ExportTraceServiceRequest.FromString(to_protobuf(body)).resource_spans[0].scope_spans[0].spans[1]


def test_numbers_may_be_strings_or_numbers() -> None:
    for written in ("1700000000000000007", 1700000000000000007):
        assert span_of(in_span(startTimeUnixNano=written)).start_time_unix_nano == 1700000000000000007
    for written in ("7", 7, 7.0):
        value = span_of(in_span(attributes=[{"key": "k", "value": {"intValue": written}}])).attributes[0].value
        assert value.int_value == 7
    for written in ("NaN", "Infinity", "-Infinity", "1e3", 5):
        value = span_of(in_span(attributes=[{"key": "k", "value": {"doubleValue": written}}])).attributes[0].value
        assert str(value.double_value) == str(float(written))


def test_unknown_fields_and_nulls_are_ignored() -> None:
    span = span_of(in_span(name="n", span_id="ff", someday={"x": 1}, kind=None, attributes=None, status={"new": 1}))
    assert (span.name, span.span_id, span.kind) == ("n", b"", 0)


WRONG = {
    "not hex": ({"traceId": "q83vASNFZ4mrze8BI0VniQ=="}, ".traceId: "),
    "odd hex": ({"spanId": "abc"}, ".spanId: "),
    "spaces in hex": ({"spanId": "ab cd ef "}, ".spanId: "),
    "enum by name": ({"kind": "SPAN_KIND_SERVER"}, ".kind: "),
    "negative time": ({"startTimeUnixNano": -1}, ".startTimeUnixNano: "),
    "time too large": ({"endTimeUnixNano": str(2**64)}, ".endTimeUnixNano: "),
    "number as name": ({"name": 7}, ".name: "),
    "object for array": ({"attributes": {}}, ".attributes: "),
    "null in array": ({"events": [{}, None]}, ".events[1]: "),
    "deep object as name": ({"name": json.loads("[" * 300 + "]" * 300)}, ".name: an array, expected a string"),
    "bool as int": ({"attributes": [{"key": "k", "value": {"intValue": True}}]}, ".attributes[0].value.intValue: "),
    "not base64": ({"attributes": [{"key": "k", "value": {"bytesValue": "?"}}]}, ".attributes[0].value.bytesValue: "),
    "two values": (
        {"attributes": [{"key": "k", "value": {"intValue": 1, "boolValue": True}}]},
        ".attributes[0].value: intValue and boolValue are both set",
    ),
    "inside a list": (
        {"links": [{"attributes": [{"value": {"arrayValue": {"values": [{"stringValue": 1}]}}}]}]},
        ".links[0].attributes[0].value.arrayValue.values[0].stringValue: 1, expected a string",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_refusals_give_the_path(name: str) -> None:
    fields, path = WRONG[name]
    with pytest.raises(InvalidRequestError) as refused:
        to_protobuf(in_span(**fields))
    assert f"$.resourceSpans[0].scopeSpans[0].spans[1]{path}" in str(refused.value)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1", b"\xff", b'{"resourceSpans": [1]}', b'{"resourceSpans":"\\ud800"}']
)
def test_other_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        to_protobuf(body)


def nested(levels: int) -> bytes:
    return b'{"arrayValue":{"values":[' * levels + b"{}" + b"]}}" * levels


@pytest.mark.parametrize(("levels", "shown"), [(32, "null"), (33, '"..."'), (200, '"..."')])
def test_deep_nesting_is_cut_as_in_protobuf(levels: int, shown: str) -> None:
    ids = b'"traceId":"' + b"01" * 16 + b'","spanId":"' + b"01" * 8 + b'"'
    span = b"{" + ids + b',"attributes":[{"key":"k","value":' + nested(levels) + b"}]}"
    payload = to_protobuf(b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + span + b"]}]}]}")
    (found,) = Decoder(MappingConfig()).decode([TraceRequest(payload, 1)]).spans.to_pylist()
    assert found["attributes"] == [("k", "[" * 32 + shown + "]" * 32)]


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"resourceSpans":[{"resource":{"attributes":[{"value":' + nested(5000)],
)
def test_bottomless_nesting_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        to_protobuf(body)
