"""Fuzzing, for a moment, and mutations of valid requests. `make fuzz FUZZ_SECONDS=600` runs it for longer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from reference.decode import decode as reference

from collector.config import LimitsConfig, MappingConfig
from collector.decode.decoder import Decoder
from collector.errors import InvalidRequestError
from collector.pipeline import TraceRequest

FUZZ = Path(__file__).parent / "fuzz"
TARGETS = ("protobuf", "json", "http", "grpc")
HAS_FUZZER = importlib.util.find_spec("atheris") is not None or bool(os.environ.get("CI"))
decoder = Decoder(MappingConfig())


@pytest.mark.parametrize("target", TARGETS if HAS_FUZZER else [])
def test_a_moment_of_fuzzing_finds_nothing(tmp_path: Path, target: str) -> None:
    options = ["-max_total_time=1", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, str(FUZZ / "run.py"), target, *options, str(tmp_path), str(FUZZ / "corpus" / target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr


# Structure-aware: some spans of a valid request are made odd, the others must come out as if they were alone.


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def delimited(field: int, content: bytes) -> bytes:
    return tag(field, 2) + varint(len(content)) + content


ODD: dict[str, bytes] = {
    "short trace id": delimited(1, b"\1" * 3),
    "zero trace id": delimited(1, bytes(16)),
    "long span id": delimited(2, b"\1" * 9),
    "no span id": delimited(2, b""),
    "odd parent": delimited(4, b"\1\2"),
    "end before start": tag(8, 1) + bytes(8),
    "time beyond all": tag(7, 1) + b"\xff" * 8,
    "unknown kind": tag(6, 0) + varint(99),
    "negative kind": tag(6, 0) + varint(2**64 - 1),
    "unknown field": delimited(77, b"anything") + tag(78, 0) + varint(2**64 - 1),
    "known field, other wire type": tag(5, 0) + varint(7),
    "empty attribute": delimited(9, b""),
    "attribute without a value": delimited(9, delimited(1, b"k")),
    "value before its key": delimited(9, delimited(2, delimited(1, b"v")) + delimited(1, b"k")),
    "attribute with two values": delimited(
        9, delimited(1, b"k") + delimited(2, delimited(1, b"v") + tag(3, 0) + varint(2**64 - 5))
    ),
    "two statuses": delimited(15, delimited(2, b"a") + tag(3, 0) + varint(2)) + delimited(15, delimited(2, b"b")),
    "empty event": delimited(11, b""),
    "empty link": delimited(13, b""),
    "overlong varint": tag(10, 0) + b"\x81\x80\x80\x80\x00",
    "group": tag(90, 3) + tag(91, 0) + varint(1) + tag(90, 4),
}
BROKEN: dict[str, bytes] = {
    "text that is no UTF-8": delimited(5, b"\xff\xfe"),
    "cut short": tag(5, 2) + varint(10_000),
    "field number 0": b"\x00\x00",
    "group without an end": tag(90, 3),
    "endless varint": tag(6, 0) + b"\xff" * 11,
    "length that wraps around 64 bits": tag(5, 2) + varint(2**64 - 1),
    "length that wraps around to the start": tag(5, 2) + varint(2**64 - 10),
}

odd_spans = st.lists(st.lists(st.sampled_from(sorted(ODD)), max_size=3), min_size=1, max_size=6)


def span_bytes(number: int, odd: list[str], shuffle: bool) -> bytes:
    span = Span(trace_id=b"\7" * 16, span_id=number.to_bytes(8, "big"), name=f"span {number}", kind=2)
    span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 10**18 + number
    span.attributes.add(key="number").value.int_value = number
    extra = b"".join(ODD[name] for name in odd)
    valid = span.SerializeToString()
    return extra + valid if shuffle else valid + extra


def request_bytes(spans: list[bytes]) -> bytes:
    return delimited(1, delimited(2, b"".join(delimited(2, span) for span in spans)))


def names_of(payload: bytes) -> list[str]:
    return decoder.decode([TraceRequest(payload, 1)]).spans.column("name").to_pylist()


def compared(batch: pa.RecordBatch) -> list[tuple[object, ...]]:
    columns = ("name", "trace_id", "span_id", "parent_span_id", "kind", "status", "status_message", "attributes")
    return list(zip(*(batch.column(column).to_pylist() for column in columns), strict=True))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(odd=odd_spans, shuffle=st.booleans())
@example(odd=[[name] for name in ODD], shuffle=False)
@example(odd=[[name] for name in ODD], shuffle=True)
def test_neighbours_of_odd_spans_are_stored(odd: list[list[str]], shuffle: bool) -> None:
    spans = [span_bytes(number, names, shuffle) for number, names in enumerate([[], *odd, []], 1)]
    requests = [TraceRequest(request_bytes(spans), 1), TraceRequest(request_bytes([span_bytes(99, [], False)]), 1)]
    expected, _, rejected = reference(requests, MappingConfig(), LimitsConfig())
    found = decoder.decode(requests)
    found.spans.validate(full=True)
    assert [answer.rejected_spans for answer in found.answers] == rejected
    columns = ("name", "trace_id", "span_id", "parent_span_id", "kind", "status", "status_message", "attributes")
    assert compared(found.spans) == [tuple(row[column] for column in columns) for row in expected]
    names = found.spans.column("name").to_pylist()
    assert {"span 1", f"span {len(spans)}", "span 99"} <= set(names)


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_request_is_refused_alone(broken: bytes) -> None:
    payload = request_bytes([span_bytes(1, [], False) + broken])
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(payload)
    with pytest.raises(InvalidRequestError):
        names_of(payload)
    assert names_of(request_bytes([span_bytes(2, [], False)])) == ["span 2"]


def cut(payload: bytes, where: float) -> bytes:
    return payload[: int(len(payload) * where)]


MUTATIONS: dict[str, Callable[[bytes, float], bytes]] = {
    "cut": cut,
    "doubled": lambda payload, _: payload * 2,
    "wrapped": lambda payload, _: delimited(1, payload),
    "deep": lambda payload, _: nested(payload, 200),
    "cut and doubled": lambda payload, where: cut(payload, where) * 2,
}


def nested(payload: bytes, depth: int) -> bytes:
    """Arrays in arrays, deeper than any parser goes, as an attribute."""
    value = delimited(1, b"x")
    for _ in range(depth):
        value = delimited(5, delimited(1, value))
    attribute = delimited(9, delimited(1, b"deep") + delimited(2, value))
    return payload + request_bytes([span_bytes(7, [], False) + attribute])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutation=st.sampled_from(sorted(MUTATIONS)), where=st.floats(0, 1), spans=st.integers(0, 3))
def test_what_python_protobuf_parses_is_taken_and_counted(mutation: str, where: float, spans: int) -> None:
    message = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                scope_spans=[ScopeSpans(spans=[Span.FromString(span_bytes(i + 1, [], False)) for i in range(spans)])]
            )
        ]
    )
    payload = MUTATIONS[mutation](message.SerializeToString(), where)
    try:
        parsed = ExportTraceServiceRequest.FromString(payload)
    except DecodeError:
        parsed = None
    try:
        found = decoder.decode([TraceRequest(payload, 1)])
    except InvalidRequestError:
        assert parsed is None
        return
    if parsed is not None:
        expected = sum(len(scope.spans) for resource in parsed.resource_spans for scope in resource.scope_spans)
        assert found.spans.num_rows + found.answers[0].rejected_spans == expected
