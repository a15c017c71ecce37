"""Decode: rules that deserve a name, and bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.config import LimitsConfig, MappingConfig
from collector.decode import origins, wire
from collector.decode.anyvalue import Budget
from collector.decode.decoder import Decoded, Decoder
from collector.errors import InvalidRequestError
from collector.pipeline import TraceRequest
from collector.spans import RESOURCE_SCHEMA, SPAN_SCHEMA

START = 1_700_000_000_000_000_000


def value_of(plain: Any) -> AnyValue:
    if isinstance(plain, AnyValue):
        return plain
    field = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value", bytes: "bytes_value"}
    return AnyValue(**{field[type(plain)]: plain})


def pairs(attributes: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value_of(value)) for key, value in attributes.items()]


def span_of(attributes: dict[str, Any] | None = None, **fields: Any) -> Span:
    usual = {
        "trace_id": b"\x01" * 16,
        "span_id": b"\x02" * 8,
        "name": "name",
        "start_time_unix_nano": START,
        "end_time_unix_nano": START + 5,
    }
    return Span(**(usual | fields), attributes=pairs(attributes or {}))


def message_of(*spans: Span, resource: dict[str, Any] | None = None) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    group.resource.attributes.extend(pairs(resource or {}))
    group.scope_spans.add().spans.extend(spans)
    return message


def decode(message: ExportTraceServiceRequest | bytes, tenant: str | None = None, **mapping: Any) -> Decoded:
    payload = message if isinstance(message, bytes) else message.SerializeToString()
    return Decoder(MappingConfig(**mapping)).decode([TraceRequest(payload, 77, tenant)])


def row(attributes: dict[str, Any], resource: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    (found,) = decode(message_of(span_of(attributes, **fields), resource=resource)).spans.to_pylist()
    return found | {"attributes": dict(found["attributes"])}


@pytest.mark.parametrize("payloads", [[], [b""], [b"", b""]])
def test_nothing_decodes_to_nothing(payloads: list[bytes]) -> None:
    found = Decoder(MappingConfig()).decode([TraceRequest(payload, 1) for payload in payloads])
    assert found.spans.num_rows == found.resources.num_rows == 0
    assert found.spans.schema.equals(SPAN_SCHEMA)
    assert found.resources.schema.equals(RESOURCE_SCHEMA)
    assert [answer.rejected_spans for answer in found.answers] == [0] * len(payloads)


def test_a_group_decodes_as_its_requests_one_by_one() -> None:
    messages = [message_of(span_of({"a": i, "tenant": f"t{i}"}), resource={"service.name": f"s{i}"}) for i in range(3)]
    requests = [TraceRequest(m.SerializeToString(), i, None) for i, m in enumerate(messages)]
    decoder = Decoder(MappingConfig())
    together = decoder.decode(requests)
    apart = [decoder.decode([request]) for request in requests]
    assert together.spans.to_pylist() == [span for found in apart for span in found.spans.to_pylist()]
    assert together.resources.to_pylist() == [item for found in apart for item in found.resources.to_pylist()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "text"), ("", ""), (True, "true"), (False, "false"), (0, "0"), (-1, "-1"), (2**63 - 1, str(2**63 - 1)),
        (-(2**63), str(-(2**63))), (1.0, "1.0"), (0.1, "0.1"), (1e300, "1e+300"), (1e-7, "1e-7"), (-0.0, "-0.0"),
        (5e-324, "5e-324"), (float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity"),
        (b"\x00\xff", "AP8="), (AnyValue(), ""), ("x" * 127, "x" * 127), ("x" * 128, "x" * 128),
        ("x" * 16383, "x" * 16383), ("x" * 16384, "x" * 16384), ("x" * 2**21, "x" * 2**21),
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_text_forms(value: Any, text: str) -> None:
    decoder = Decoder(MappingConfig(), LimitsConfig(attribute_value_bytes_max=2**22))
    message = message_of(span_of({"k": value, "after": 1}))
    (found,) = decoder.decode([TraceRequest(message.SerializeToString(), 77)]).spans.to_pylist()
    assert dict(found["attributes"]) == {"k": text, "after": "1"}


def test_nested_values_are_compact_json() -> None:
    value = AnyValue()
    inner = value.kvlist_value.values.add(key="list").value.array_value.values
    inner.extend([value_of(1), value_of("ü"), value_of(b"\x00"), value_of(float("nan")), AnyValue(), value_of(1.5)])
    assert row({"k": value})["attributes"] == {"k": '{"list":[1,"ü","AA==","NaN",null,1.5]}'}


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(found + bytes([number]))


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def nested_array(levels: int) -> bytes:
    """AnyValue of an array in an array, so many levels deep; python-protobuf itself parses no more than about 50."""
    value = b""
    for _ in range(levels):
        value = field(5, field(1, value))
    return value


@pytest.mark.parametrize(("levels", "shown"), [(3, "[[[null]]]"), (32, "[" * 32 + "null" + "]" * 32)])
def test_nesting_is_kept_to_32_levels(levels: int, shown: str) -> None:
    assert row({"k": AnyValue.FromString(nested_array(levels))})["attributes"] == {"k": shown}


@pytest.mark.parametrize("levels", [33, 60, 5000])
def test_deeper_nesting_is_cut_and_costs_only_itself(levels: int) -> None:
    plain = span_of({"before": 1}).SerializeToString()
    deep = plain + field(9, field(1, b"deep") + field(2, nested_array(levels)))
    payload = field(1, field(2, field(2, deep) + field(2, plain)))
    first, second = decode(payload).spans.to_pylist()
    assert dict(first["attributes"]) == {"before": "1", "deep": "[" * 32 + '"..."' + "]" * 32}
    assert dict(second["attributes"]) == {"before": "1"}


def test_deep_nesting_in_a_resource_is_cut() -> None:
    resource = field(1, field(1, b"deep") + field(2, nested_array(5000)))
    payload = field(1, field(1, resource) + field(2, field(2, span_of().SerializeToString())))
    assert decode(payload).resources.to_pylist()[0]["attributes"] == [("deep", "[" * 32 + '"..."' + "]" * 32)]


def test_the_last_of_a_repeated_key_wins() -> None:
    span = span_of({"a": 1, "b": 2})
    span.attributes.extend(pairs({"a": 3}))
    found = decode(message_of(span)).spans.to_pylist()[0]
    assert found["attributes"] == [("b", "2"), ("a", "3")]


UNUSUAL = {
    "value before key": field(2, field(1, b"v")) + field(1, b"k"),
    "value in two parts": field(1, b"k") + field(2, b"") + field(2, field(1, b"v")),
    "unknown field": field(1, b"k") + field(2, field(1, b"v")) + field(9, b"?"),
    "long form of a length": field(1, b"k") + field(2, b"\x0a\x81\x00v"),
    "two members of the oneof": field(1, b"k") + field(2, b"\x18\x07" + field(1, b"v")),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_encodings_are_understood(name: str) -> None:
    span = span_of({"first": 1}).SerializeToString() + field(9, UNUSUAL[name])
    found = decode(field(1, field(2, field(2, span)))).spans.to_pylist()[0]
    assert found["attributes"] == [("first", "1"), ("k", "v")]


def test_invalid_spans_are_rejected_one_by_one() -> None:
    good = span_of(name="good")
    bad = [
        span_of(trace_id=b"\x01" * 15), span_of(trace_id=b"\x01" * 15), span_of(trace_id=b""),
        span_of(span_id=bytes(8)), span_of(start_time_unix_nano=2**63 - 1),
    ]  # fmt: skip
    found = decode(message_of(*bad, good))
    assert found.spans.column("name").to_pylist() == ["good"]
    assert found.answers[0].rejected_spans == 5
    message = found.answers[0].message
    assert message.startswith("5 spans rejected: 2 with trace_id of 15 bytes (expected 16, not all zero), ")
    for part in ("1 with trace_id of 0 bytes", "1 with span_id all zero", "1 with start_time_unix_nano after"):
        assert part in message


def test_rejections_are_told_to_the_request_they_belong_to_and_stay_short() -> None:
    broken = message_of(*(span_of(trace_id=b"\x01" * size) for size in range(15)))
    requests = [TraceRequest(m.SerializeToString(), 1) for m in (message_of(span_of()), broken)]
    answers = Decoder(MappingConfig()).decode(requests).answers
    assert [answer.rejected_spans for answer in answers] == [0, 15]
    assert answers[0].message == ""
    assert answers[1].message.endswith("11 for other reasons")


NOT_TEXT = "X\x00Y"  # replaced, byte for byte, by what is not UTF-8


def invalid_text(change: Callable[[Any], Any]) -> bytes:
    message = message_of(span_of({"a": 1}), resource={"b": 1})
    change(message.resource_spans[0])
    return message.SerializeToString().replace(NOT_TEXT.encode(), b"X\xffY")


STRINGS: dict[str, Callable[[Any], Any]] = {
    "name": lambda r: setattr(r.scope_spans[0].spans[0], "name", NOT_TEXT),
    "trace_state": lambda r: setattr(r.scope_spans[0].spans[0], "trace_state", NOT_TEXT),
    "status": lambda r: setattr(r.scope_spans[0].spans[0].status, "message", NOT_TEXT),
    "key": lambda r: r.scope_spans[0].spans[0].attributes.extend(pairs({NOT_TEXT: 1})),
    "value": lambda r: r.scope_spans[0].spans[0].attributes.extend(pairs({"k": NOT_TEXT})),
    "overridden value": lambda r: r.scope_spans[0].spans[0].attributes.extend(pairs({"k": NOT_TEXT}) + pairs({"k": 1})),
    "promoted value": lambda r: r.scope_spans[0].spans[0].attributes.extend(pairs({"tenant": NOT_TEXT})),
    "event": lambda r: r.scope_spans[0].spans[0].events.add(name=NOT_TEXT),
    "event key": lambda r: r.scope_spans[0].spans[0].events.add(attributes=pairs({NOT_TEXT: 1})),
    "link state": lambda r: r.scope_spans[0].spans[0].links.add(trace_state=NOT_TEXT),
    "scope": lambda r: setattr(r.scope_spans[0].scope, "version", NOT_TEXT),
    "scope attribute": lambda r: r.scope_spans[0].scope.attributes.extend(pairs({"k": NOT_TEXT})),
    "schema url": lambda r: setattr(r.scope_spans[0], "schema_url", NOT_TEXT),
    "resource": lambda r: r.resource.attributes.extend(pairs({"k": NOT_TEXT})),
    "resource url": lambda r: setattr(r, "schema_url", NOT_TEXT),
}


@pytest.mark.parametrize("where", STRINGS)
def test_text_that_is_not_utf8_makes_a_request_invalid(where: str) -> None:
    payload = invalid_text(STRINGS[where])
    assert b"X\xffY" in payload
    with pytest.raises(InvalidRequestError, match="not an ExportTraceServiceRequest"):
        decode(payload)


@pytest.mark.parametrize("name", ["resource_spans", "scope_spans", "spans"])
def test_swarms_of_empty_messages_are_refused(name: str) -> None:
    swarm = {
        "resource_spans": field(1, b"") * 1_000_001,
        "scope_spans": field(1, field(2, b"") * 1_000_001),
        "spans": field(1, field(2, field(2, b"") * 1_000_001)),
    }[name]
    with pytest.raises(InvalidRequestError, match=f"{name}: 1000001 in one request, expected at most 1000000"):
        decode(swarm)


@pytest.mark.parametrize("name", ["resource", "scope", "array", "map"])
def test_swarms_that_python_walks_are_refused(name: str) -> None:
    swarm = field(1, b"") * 400_001
    ids = span_of().SerializeToString()
    payload = {
        "resource": field(1, field(1, swarm) + field(2, field(2, ids))),
        "scope": field(1, field(2, field(1, field(3, b"") * 400_001) + field(2, ids))),
        "array": field(1, field(2, field(2, ids + field(9, field(1, b"k") + field(2, field(5, swarm)))))),
        "map": field(1, field(2, field(2, ids + field(9, field(1, b"k") + field(2, field(6, swarm)))))),
    }[name]
    with pytest.raises(InvalidRequestError, match="more than 400000 elements in one request; send smaller batches"):
        decode(payload)


@pytest.mark.parametrize(("name", "number"), [("attributes", 9), ("events", 11), ("links", 13)])
def test_swarms_inside_spans_are_refused(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ITEMS_MAX", 10)
    full = field(1, field(2, field(2, span_of().SerializeToString() + field(number, b"") * 10)))
    assert decode(full).spans.num_rows == 1
    over = field(1, field(2, field(2, field(number, b"") * 11)))
    with pytest.raises(InvalidRequestError, match=f"{name}: 11 in one request, expected at most 10"):
        decode(over)


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x0a\x05abc", b"\x0a\x02\x12\x7f"])
def test_other_bytes_are_invalid(payload: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        decode(payload)


@pytest.mark.parametrize(
    ("attributes", "kind", "component"),
    [
        ({}, 1, "other"), ({"http.method": "GET"}, 2, "http"), ({"http.method": "GET", "rpc.system": "grpc"}, 2, "rpc"),
        ({"rpc.system": "x", "db.system": "mysql"}, 3, "database"), ({"db.system": "redis"}, 3, "cache"),
        ({"db.system": "REDIS"}, 3, "cache"), ({"db.system": "redis", "db.system.name": "mysql"}, 3, "database"),
        ({"cache.anything": 1}, 1, "cache"), ({"cache_hit": "maybe"}, 1, "cache"),
        ({"db.system": "redis", "messaging.system": "redis"}, 3, "topic"), ({}, 4, "topic"), ({}, 5, "topic"),
    ],
)  # fmt: skip
def test_component(attributes: dict[str, Any], kind: int, component: str) -> None:
    assert row(attributes, kind=kind)["component"] == component


@pytest.mark.parametrize(
    ("attributes", "operation", "moved"),
    [
        ({}, "name", set()), ({"db.operation": "get"}, "get", {"db.operation"}),
        ({"db.operation.name": "GET", "db.operation": "get"}, "GET", {"db.operation.name"}),
        ({"http.request.method": "GET", "http.route": "/a/{b}"}, "GET /a/{b}", set()),
        ({"http.request.method": "GET"}, "name", set()),
        ({"http.method": "PUT", "http.route": "/", "db.system": "x"}, "name", set()),
    ],
)  # fmt: skip
def test_operation(attributes: dict[str, Any], operation: str, moved: set[str]) -> None:
    found = row(attributes)
    assert found["operation"] == operation
    assert set(found["attributes"]) == set(attributes) - moved


def test_what_fills_a_column_moves_and_the_rest_stays() -> None:
    found = row(
        {"cloud.region": "a", "region": "b", "cache.hit": "maybe", "cache_hit": "MISS", "http.status_code": "200"}
    )
    assert (found["region"], found["cache_hit"], found["http_status"]) == ("a", False, 200)
    assert found["attributes"] == {"region": "b", "cache.hit": "maybe"}


@pytest.mark.parametrize("value", [b"\x10\x02", b"\x10\x80\x01", b"\x10\x00\x10\x01", b"\x18\x07\x10\x01"])
def test_unusual_encodings_of_true(value: bytes) -> None:
    span = span_of().SerializeToString() + field(9, field(1, b"cache.hit") + field(2, value))
    assert decode(field(1, field(2, field(2, span)))).spans.column("cache_hit").to_pylist() == [True]


@pytest.mark.parametrize(
    ("key", "value", "column", "filled"),
    [
        ("http.status_code", 100, "http_status", 100), ("http.status_code", 99, "http_status", None),
        ("http.status_code", "999", "http_status", 999), ("http.status_code", 1000, "http_status", None),
        ("http.status_code", "x", "http_status", None), ("http.status_code", 200.0, "http_status", None),
        ("payload.bytes", 0, "payload_bytes", 0), ("payload.bytes", -1, "payload_bytes", None),
        ("payload.bytes", "9" * 18, "payload_bytes", 10**18 - 1), ("payload.bytes", "9" * 19, "payload_bytes", None),
        ("payload.bytes", True, "payload_bytes", None), ("cache.hit", 1, "cache_hit", True),
        ("cache.hit", 2, "cache_hit", None), ("cache.hit", "HIT", "cache_hit", True),
        ("tenant", "", "tenant", "default"),
        ("tenant", 7, "tenant", "7"), ("tenant", True, "tenant", "true"), ("tenant", 0.5, "tenant", "default"),
    ],
)  # fmt: skip
def test_conversions(key: str, value: Any, column: str, filled: Any) -> None:
    found = row({key: value})
    assert found[column] == filled
    assert (key in found["attributes"]) == (filled in (None, "default"))


def test_a_candidate_is_sought_on_the_span_then_on_the_resource() -> None:
    resource = {"cloud.region": "resource", "region": "later"}
    assert row({"region": "span"}, resource)["region"] == "resource"
    assert row({"cloud.region": "span"}, resource)["region"] == "span"
    assert row({}, {})["region"] is None


def test_tenant_of_the_header_wins_and_attributes_stay() -> None:
    message = message_of(span_of({"tenant.id": "attribute"}))
    assert decode(message).spans.column("tenant").to_pylist() == ["attribute"]
    (found,) = decode(message, tenant="header").spans.to_pylist()
    assert (found["tenant"], found["attributes"]) == ("header", [("tenant.id", "attribute")])
    assert decode(message_of(span_of())).spans.column("tenant").to_pylist() == ["default"]


def test_nothing_sent_is_lost() -> None:
    span = span_of(
        {"a": 1}, dropped_attributes_count=1, dropped_events_count=2, dropped_links_count=3, kind=9,
        parent_span_id=b"\x05\x06", end_time_unix_nano=START - 1,
    )  # fmt: skip
    span.status.code = 7
    message = message_of(span)
    scope_spans = message.resource_spans[0].scope_spans[0]
    scope_spans.schema_url = "url"
    scope_spans.scope.attributes.extend(pairs({"s": "t"}))
    (found,) = decode(message).spans.to_pylist()
    assert dict(found["attributes"]) == {
        "a": "1", "otel.dropped_attributes_count": "1", "otel.dropped_events_count": "2",
        "otel.dropped_links_count": "3", "otel.scope.s": "t", "otel.scope.schema_url": "url", "spanlake.kind": "9",
        "spanlake.status_code": "7", "spanlake.end_time_unix_nano": str(START - 1), "spanlake.parent_span_id": "0506",
    }  # fmt: skip
    assert (found["kind"], found["status"], found["duration_ns"]) == ("unspecified", "unset", 0)
    assert found["parent_span_id"] is None


@pytest.mark.parametrize(
    ("trace_state", "weight"),
    [("", None), ("ot=th:0", 1.0), ("ot=th:8", 2.0), ("a=b,ot=rv:12;th:c", 4.0),
     ("ot=th:fd70a4", 2**24 / (2**24 - 0xFD70A4)),
     ("ot=th:ffffffffffffff", 2.0**56), ("ot=th:g", None), ("ot=th:123456789abcdef", None), ("xot=th:8", None)],
)  # fmt: skip
def test_sample_weight(trace_state: str, weight: float | None) -> None:
    assert row({}, trace_state=trace_state)["sample_weight"] == weight


def test_resource_ids_follow_content_and_schema_url() -> None:
    def resource_id(resource: dict[str, Any], url: str = "") -> str:
        message = message_of(span_of(), resource=resource)
        message.resource_spans[0].schema_url = url
        found = decode(message)
        assert found.spans.column("resource_id").to_pylist() == found.resources.column("resource_id").to_pylist()
        return str(found.spans.column("resource_id")[0])

    ids = [resource_id({"a": 1}), resource_id({"a": 2}), resource_id({"a": 1}, "u"), resource_id({"a": 1}, "v")]
    assert len(set(ids)) == 4
    assert ids[0] == resource_id({"a": 1})
    assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in ids)


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "ENTRIES_MAX", 3)
    made: list[bytes] = []

    def make(raw: bytes, *_: object) -> bytes:
        made.append(raw)
        return raw

    cache = origins.Origins[bytes](make)
    for raw in (b"a", b"b", b"c", b"a", b"d", b"a", b"b"):
        cache._get(raw, "", Budget())
    assert made == [b"a", b"b", b"c", b"d", b"b"]
    monkeypatch.setattr(origins, "BYTES_MAX", 4)
    cache._get(b"12345678", "", Budget())
    assert not cache._items
