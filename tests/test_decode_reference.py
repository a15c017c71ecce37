"""The columnar decoder against the plain reference, on every field of generated requests."""

from __future__ import annotations

import datetime
import random
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from reference.decode import decode as reference

from collector.config import LimitsConfig, MappingConfig
from collector.decode.decoder import Decoded, Decoder
from collector.errors import InvalidRequestError
from collector.pipeline import TraceRequest
from collector.spans import RESOURCE_SCHEMA, SPAN_SCHEMA

MAPPING = MappingConfig()
EXOTIC = MappingConfig(
    region=("span:zone", "resource:cloud.region", "region", "cloud.region"),
    tenant=("resource:tenant", "span:tenant", "tenant.id"),
    cache_hit=("resource:hit", "hit", "span:cache.hit"),
    operation=("resource:op", "db.operation", "http.method"),
    http_status=("code", "http.status_code"),
    cache_systems=("Redis", "größe"),
)
LIMITS = LimitsConfig()
NARROW = LimitsConfig(
    attributes_max=3,
    attribute_key_bytes_max=20,
    attribute_value_bytes_max=256,
    name_bytes_max=100,
    events_max=1,
    links_max=1,
)
KEYS = sorted(
    {
        candidate.rpartition(":")[2]
        for mapping in (MAPPING, EXOTIC)
        for column, candidates in mapping
        if column != "cache_systems"
        for candidate in candidates
    }
    | {
        "db.system",
        "db.system.name",
        "rpc.system",
        "rpc.system.name",
        "http.route",
        "http.method",
        "messaging.system",
    }
    | {"http.request.method", "cache.", "cache.zone", "", "k", "ü", "x" * 200, "otel.dropped_events_count"}
    | {"otel.scope.k", "spanlake.kind", "spanlake.time_unix_nano"}
)
WORDS = [
    "",
    "redis",
    "Redis",
    "GRÖSSE",
    "kafka",
    "GET",
    "/a/{b}",
    "true",
    "MISS",
    "hit",
    "0",
    "1",
    "200",
    "007",
    "9" * 19,
]
WORDS += ["9" * 18, "-1", " 1", "٣", "x" * 127, "y" * 128, "ß" * 9000, "maybe", "\x00", "日本", "99", "1000"]

strings = st.sampled_from(WORDS) | st.text(max_size=6)
int64 = st.sampled_from([0, 1, -1, 2, 99, 100, 999, 1000, 2**31, 2**63 - 1, -(2**63)]) | st.integers(-300, 300)
uint64 = st.sampled_from([0, 1, 10**18, 10**18 + 5, 2**63 - 2, 2**63 - 1, 2**63, 2**64 - 1])
uint32 = st.sampled_from([0, 0, 0, 1, 2**32 - 1])
scalars = st.one_of(
    strings.map(lambda v: AnyValue(string_value=v)),
    int64.map(lambda v: AnyValue(int_value=v)),
    st.booleans().map(lambda v: AnyValue(bool_value=v)),
    st.floats().map(lambda v: AnyValue(double_value=v)),
    st.binary(max_size=5).map(lambda v: AnyValue(bytes_value=v)),
    st.just(AnyValue()),
)


def array_of(items: list[AnyValue]) -> AnyValue:
    value = AnyValue()
    value.array_value.SetInParent()
    value.array_value.values.extend(items)
    return value


def map_of(items: list[tuple[str, AnyValue]]) -> AnyValue:
    value = AnyValue()
    value.kvlist_value.SetInParent()
    value.kvlist_value.values.extend(KeyValue(key=key, value=item) for key, item in items)
    return value


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(array_of)
        | st.lists(st.tuples(st.sampled_from(["a", "b", ""]), inner), max_size=3).map(map_of)
    ),
    max_leaves=4,
)
keys = st.sampled_from(KEYS)
attribute_lists = st.lists(
    st.builds(KeyValue, key=keys, value=scalars | scalars | values) | st.builds(KeyValue, key=keys),
    max_size=6,
)
trace_ids = st.sampled_from([b"\x01" * 16, bytes(range(16)), b"\x01" * 16, b"", bytes(16), b"\x02" * 15, b"\x02" * 8])
span_ids = st.sampled_from([b"\x01" * 8, bytes(range(8)), b"\xff" * 8, b"\x0a" * 8, b"", bytes(8), b"\x02" * 16])
trace_states = st.sampled_from(
    ["", "", "ot=th:8", "ot=th:0", "a=b, ot=rv:1;th:fd7", "ot=th:FF", "ot=xth:8", "xot=th:8", "ot=th:8;rv:3", "ot"]
) | st.sampled_from(
    ["ot=th:123456789abcdef", "ot=th:ffffffffffffff,b=c", "ot=p:1,ot=th:c ", "ot=th:;th:4", "th:8", "ot=th:8,\tot=th:1"]
)
enums = st.sampled_from([0, 1, 2, 3, 4, 5, 1, 2, 3, 6, -1, 2**31 - 1])
events = st.builds(
    Span.Event,
    time_unix_nano=uint64,
    name=strings,
    attributes=attribute_lists,
    dropped_attributes_count=uint32,
)
links = st.builds(
    Span.Link, trace_id=trace_ids, span_id=span_ids, trace_state=trace_states, attributes=attribute_lists,
    dropped_attributes_count=uint32, flags=uint32,
)  # fmt: skip
spans = st.builds(
    Span, trace_id=trace_ids, span_id=span_ids, trace_state=trace_states, parent_span_id=span_ids | st.just(b""),
    flags=uint32, name=strings, kind=enums, start_time_unix_nano=uint64, end_time_unix_nano=uint64,
    attributes=attribute_lists, dropped_attributes_count=uint32, events=st.lists(events, max_size=2),
    dropped_events_count=uint32, links=st.lists(links, max_size=2), dropped_links_count=uint32,
    status=st.none() | st.builds(Status, message=strings, code=enums),
)  # fmt: skip
scopes = st.builds(
    InstrumentationScope,
    name=strings,
    version=strings,
    attributes=attribute_lists,
    dropped_attributes_count=uint32,
)
urls = st.sampled_from(["", "", "https://opentelemetry.io/schemas/1.44.0"])
scope_spans = st.builds(ScopeSpans, scope=st.none() | scopes, schema_url=urls, spans=st.lists(spans, max_size=4))
resources = st.builds(Resource, attributes=attribute_lists, dropped_attributes_count=uint32)
resource_spans = st.builds(
    ResourceSpans,
    resource=st.none() | resources,
    schema_url=urls,
    scope_spans=st.lists(scope_spans, max_size=2),
)
messages = st.builds(ExportTraceServiceRequest, resource_spans=st.lists(resource_spans, max_size=2))
requests = st.builds(
    TraceRequest,
    payload=messages.map(lambda message: message.SerializeToString()),
    received_at_ns=st.sampled_from([1, 10**18]),
    tenant=st.sampled_from([None, None, "", "acme", "redis"]),
)


def plain(value: Any, arrow_type: pa.DataType) -> Any:
    """As the reference writes it: times as integers, absent as None."""
    if value is None:
        return None
    if pa.types.is_timestamp(arrow_type):
        return value.value if hasattr(value, "value") else int(value.timestamp()) * 10**9
    if pa.types.is_map(arrow_type):
        return [tuple(pair) for pair in value]
    if pa.types.is_list(arrow_type):
        return [plain(item, arrow_type.value_type) for item in value]
    if pa.types.is_struct(arrow_type):
        return {field.name: plain(value[field.name], field.type) for field in arrow_type}
    return value


def rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    return [{f.name: plain(row[f.name], f.type) for f in batch.schema} for row in batch.to_pylist()]


def assert_agrees(
    group: list[TraceRequest], mapping: MappingConfig, decoder: Decoder, limits: LimitsConfig = LIMITS
) -> None:
    expected_spans, expected_resources, expected_rejected = reference(group, mapping, limits)
    found = decoder.decode(group)
    found.spans.validate(full=True)
    found.resources.validate(full=True)
    assert found.spans.schema.equals(SPAN_SCHEMA)
    assert found.resources.schema.equals(RESOURCE_SCHEMA)
    assert [answer.rejected_spans for answer in found.answers] == expected_rejected
    found_spans = rows(found.spans)
    assert len(found_spans) == len(expected_spans)
    for row, expected in zip(found_spans, expected_spans, strict=True):
        assert row.keys() == expected.keys()
        for column, value in expected.items():
            assert row[column] == value, column
    found_resources = {row["resource_id"]: row for row in rows(found.resources)}
    assert found_resources == expected_resources
    assert len(found_resources) == found.resources.num_rows
    assert_well_formed(found)


def assert_well_formed(found: Decoded) -> None:
    """No NULL where none is allowed, no text twice in a dictionary."""
    for batch in (found.spans, found.resources):
        for field in batch.schema:
            if pa.types.is_dictionary(field.type):
                texts = batch.column(field.name).dictionary.to_pylist()
                assert len(set(texts)) == len(texts), field.name
            assert field.nullable or batch.column(field.name).null_count == 0, field.name


@pytest.mark.parametrize(
    ("mapping", "limits"),
    [(MAPPING, LIMITS), (EXOTIC, LIMITS), (MAPPING, NARROW)],
    ids=["default", "exotic", "narrow"],
)
def test_agrees_with_the_reference(mapping: MappingConfig, limits: LimitsConfig) -> None:
    decoder = Decoder(mapping, limits)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests, min_size=1, max_size=3))
    def check(group: list[TraceRequest]) -> None:
        assert_agrees(group, mapping, decoder, limits)

    check()


@pytest.mark.parametrize("limits", [LIMITS, NARROW], ids=["default", "narrow"])
def test_random_bulk_agrees_with_the_reference(limits: LimitsConfig) -> None:
    """Many spans a group, so that every column holds mixtures."""
    seed = random.Random(20240607)
    decoder = Decoder(MAPPING, limits)
    for _ in range(4):
        group = [
            TraceRequest(bulk(seed).SerializeToString(), seed.randrange(10**9), seed.choice([None, "acme", None]))
            for _ in range(3)
        ]
        assert_agrees(group, MAPPING, decoder, limits)


def bulk(seed: random.Random) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    for _ in range(2):
        group = message.resource_spans.add()
        group.resource.attributes.extend(some_attributes(seed, 4))
        for _ in range(2):
            inner = group.scope_spans.add()
            inner.scope.name = seed.choice(["", "a", "b"])
            for _ in range(seed.randrange(60)):
                span = inner.spans.add(
                    trace_id=seed.randbytes(16), span_id=seed.randbytes(seed.choice([8] * 20 + [7])),
                    name=seed.choice(["GET", "op", "ß"]), kind=seed.randrange(6),
                    start_time_unix_nano=seed.randrange(10**18), end_time_unix_nano=10**18,
                )  # fmt: skip
                span.attributes.extend(some_attributes(seed, 9))
                span.events.extend(
                    Span.Event(name="e", attributes=some_attributes(seed, 2)) for _ in range(seed.choice([0, 0, 2]))
                )
    return message


def some_attributes(seed: random.Random, count: int) -> list[KeyValue]:
    def value() -> AnyValue:
        return seed.choice(
            [
                AnyValue(string_value=seed.choice(WORDS)),
                AnyValue(int_value=seed.randrange(-(10 ** seed.randrange(1, 18)), 10 ** seed.randrange(1, 18))),
                AnyValue(bool_value=seed.random() < 0.5),
                AnyValue(double_value=seed.uniform(-1, 1) * 10.0 ** seed.randrange(-300, 300)),
                AnyValue(string_value="".join(seed.choices("abcdefghij", k=seed.randrange(300)))),
            ]
        )

    return [KeyValue(key=seed.choice(KEYS), value=value()) for _ in range(seed.randrange(count))]


def mutated(payload: bytes, seed: random.Random) -> bytes:
    changed = bytearray(payload)
    for _ in range(seed.choice([1, 1, 2, 5])):
        position = seed.randrange(len(changed))
        match seed.randrange(4):
            case 0:
                changed[position] = seed.randrange(256)
            case 1:
                changed[position] ^= 1 << seed.randrange(8)
            case 2:
                del changed[position : position + seed.randrange(1, 4)]
            case _:
                changed[position:position] = seed.randbytes(seed.randrange(1, 4))
        changed = changed or bytearray(b"\x0a")
    return bytes(changed)


def test_mutated_bytes_are_refused_or_decoded() -> None:
    """What python-protobuf parses the decoder parses too, to as many spans; else it may only refuse."""
    seed = random.Random(7)
    decoder = Decoder(MAPPING)
    originals = [bulk_small(seed).SerializeToString() for _ in range(20)]
    parsed = 0
    for i in range(2000):
        payload = mutated(originals[i % len(originals)], seed)
        message = ExportTraceServiceRequest()
        try:
            message.ParseFromString(payload)
        except DecodeError:
            expected = None
        else:
            expected = sum(len(s.spans) for r in message.resource_spans for s in r.scope_spans)
        try:
            found = decoder.decode([TraceRequest(payload, 1)])
        except InvalidRequestError:
            assert expected is None, payload.hex()
            continue
        if expected is not None:
            parsed += 1
            assert found.spans.num_rows + found.answers[0].rejected_spans == expected, payload.hex()
    assert parsed > 200


def bulk_small(seed: random.Random) -> ExportTraceServiceRequest:
    message = bulk(seed)
    for group in message.resource_spans:
        for inner in group.scope_spans:
            del inner.spans[2:]
    return message


def test_datetime_is_not_rounded() -> None:
    """Guards the comparison itself: nanoseconds must survive `plain`."""
    stamp = pa.array([10**18 + 7], pa.timestamp("ns"))[0].as_py()
    assert not isinstance(stamp, datetime.datetime) or plain(stamp, pa.timestamp("ns")) == 10**18 + 7
