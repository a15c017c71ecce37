"""Limits on what spans carry: what is cut is whole characters, marked and counted; what is dropped is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.collect import open_ingest
from collector.config import Config, LimitsConfig, MappingConfig, StorageConfig
from collector.decode.decoder import Decoded, Decoder
from collector.decode.guards import TEXT_GROWTH_MAX, cut
from collector.decode.values import decode_values
from collector.decode.wire import split_key_values
from collector.errors import InvalidRequestError
from collector.lake.location import locate
from collector.pipeline import TraceRequest

LIMITS = LimitsConfig(
    attributes_max=4,
    attribute_key_bytes_max=10,
    attribute_value_bytes_max=256,
    name_bytes_max=20,
    events_max=2,
    links_max=1,
)


def pairs(attributes: dict[str, str | bytes]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(bytes_value=v) if isinstance(v, bytes) else AnyValue(string_value=v))
        for key, v in attributes.items()
    ]


def request_of(*spans: Span, resource: dict[str, Any] | None = None) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    group.resource.attributes.extend(pairs(resource or {}))
    group.scope_spans.add().spans.extend(spans)
    return message


def span_of(attributes: dict[str, Any] | None = None, **fields: Any) -> Span:
    usual = {"trace_id": b"\1" * 16, "span_id": b"\2" * 8, "name": "op"}
    return Span(**(usual | fields), attributes=pairs(attributes or {}))


def decode(message: ExportTraceServiceRequest, limits: LimitsConfig = LIMITS) -> Decoded:
    return Decoder(MappingConfig(), limits).decode([TraceRequest(message.SerializeToString(), 1)])


def row(message: ExportTraceServiceRequest) -> tuple[dict[str, Any], dict[str, int]]:
    found = decode(message)
    (span,) = found.spans.to_pylist()
    return span | {"attributes": dict(span["attributes"])}, dict(found.cuts)


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(0, 60))
def test_a_cut_keeps_as_many_whole_characters_as_fit(text: str, most: int) -> None:
    short = cut(text, most)
    assert text.startswith(short)
    assert len(short.encode()) <= most
    if short != text:
        assert len(text[: len(short) + 1].encode()) > most


def test_long_texts_are_cut_marked_and_counted() -> None:
    span = span_of(
        {"k": "ß" * 200, "b": b"\0" * 300, "short": "x" * 256}, name="n" * 21, trace_state="t" * 257
    )
    span.status.message = "m" * 300
    found, cuts = row(request_of(span))
    assert found["attributes"]["k"] == "ß" * 128
    assert found["attributes"]["b"] == "A" * 256
    assert found["attributes"]["short"] == "x" * 256
    assert (found["name"], found["operation"]) == ("n" * 20, "n" * 20)
    assert (found["status_message"], found["trace_state"]) == ("m" * 256, "t" * 256)
    assert orjson.loads(found["attributes"]["spanlake.truncated"]) == {
        "k": 400, "b": 400, "@name": 21, "@status_message": 300, "@trace_state": 257
    }  # fmt: skip
    assert cuts == {"values": 2, "name": 1, "status_message": 1, "trace_state": 1}


def test_the_largest_growth_of_a_text_is_known() -> None:
    """What is as small as this must never be over the limit: it is not looked at."""
    value = AnyValue()
    value.array_value.values.add(string_value="\0" * 10_000)
    serialized = KeyValue(key="k", value=value).SerializeToString()
    split = split_key_values(pa.array([serialized], pa.binary()))
    values = decode_values(split)
    size = int(split.end[0] - split.start[0])
    (text,) = values.texts(np.array([0])).to_pylist()
    assert 5.9 * size < len(text.encode()) <= TEXT_GROWTH_MAX * size


@pytest.mark.parametrize("size", [1, 40, 41, 42, 43, 44, 100])
def test_a_value_that_grows_is_cut_exactly_at_the_limit(size: int) -> None:
    value = AnyValue()
    value.array_value.values.add(string_value="\0" * size)
    span = span_of()
    span.attributes.add(key="k", value=value)
    found, cuts = row(request_of(span))
    grown = 6 * size + 4
    assert len(found["attributes"]["k"]) == min(grown, 256)
    assert ("spanlake.truncated" in found["attributes"]) == (grown > 256) == bool(cuts)


def test_the_first_attributes_are_kept_and_the_others_counted() -> None:
    attributes = {f"k{i}": "x" for i in range(6)} | {"key.too.long": "x", "tenant": "acme"}
    found, cuts = row(request_of(span_of(attributes, dropped_attributes_count=2)))
    assert list(found["attributes"]) == ["k0", "k1", "k2", "k3", "otel.dropped_attributes_count"]
    assert found["attributes"]["otel.dropped_attributes_count"] == "6"
    assert found["tenant"] == "default"
    assert cuts == {"attributes": 4}


def test_a_count_of_what_was_dropped_does_not_overflow() -> None:
    found, _ = row(request_of(span_of({f"k{i}": "x" for i in range(9)}, dropped_attributes_count=2**32 - 2)))
    assert found["attributes"]["otel.dropped_attributes_count"] == str(2**32 - 1)


def test_the_first_events_and_links_are_kept() -> None:
    span = span_of(dropped_links_count=1)
    for i in range(5):
        span.events.add(name=f"e{i}")
        span.links.add(span_id=bytes([i + 1] * 8))
    other = span_of()
    other.events.add(name="only")
    found = decode(request_of(span, other, span_of()))
    rows = found.spans.to_pylist()
    assert [[event["name"] for event in r["events"]] for r in rows] == [["e0", "e1"], ["only"], []]
    assert [[link["span_id"] for link in r["links"]] for r in rows] == [["01" * 8], [], []]
    assert dict(rows[0]["attributes"]) == {"otel.dropped_events_count": "3", "otel.dropped_links_count": "5"}
    assert rows[1]["attributes"] == []
    assert dict(found.cuts) == {"events": 3, "links": 4}


def test_events_are_marked_themselves() -> None:
    span = span_of()
    span.events.add(name="n" * 30, attributes=pairs({f"k{i}": "v" * 300 for i in range(5)}))
    found, cuts = row(request_of(span))
    (event,) = found["events"]
    assert event["name"] == "n" * 20
    assert event["dropped_attributes_count"] == 1
    sizes = orjson.loads(dict(event["attributes"])["spanlake.truncated"])
    assert sizes == {"@name": 30, "k0": 300, "k1": 300, "k2": 300, "k3": 300}
    assert cuts == {"attributes": 1, "values": 4, "name": 1}
    assert found["attributes"] == {}


def test_resources_and_scopes_are_bounded() -> None:
    message = request_of(
        span_of(), resource={"service.name": "s", "a": "x" * 300, **{f"k{i}": "" for i in range(4)}}
    )
    scope = message.resource_spans[0].scope_spans[0].scope
    scope.name = "scope" * 10
    found = decode(message)
    (resource,) = found.resources.to_pylist()
    attributes = dict(resource["attributes"])
    assert list(attributes) == ["a", "k0", "k1", "k2", "spanlake.truncated"]
    assert orjson.loads(attributes["spanlake.truncated"]) == {"a": 300}
    assert resource["dropped_attributes_count"] == 2
    (span,) = found.spans.to_pylist()
    assert span["scope_name"] == "scope" * 4
    assert dict(span["attributes"])["otel.scope.spanlake.truncated"] == '{"@name":50}'
    assert dict(found.cuts) == {"resource": 1, "scope": 1}


def test_what_is_dropped_must_be_valid_too() -> None:
    raw = request_of(span_of({f"k{i}": "x" for i in range(5)} | {"k9": "bad"})).SerializeToString()
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        Decoder(MappingConfig(), LIMITS).decode([TraceRequest(raw.replace(b"bad", b"\xff\xff\xff"), 1)])
    raw = request_of(span_of({"k": "x" * 300 + "bad"})).SerializeToString()
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        Decoder(MappingConfig(), LIMITS).decode([TraceRequest(raw.replace(b"bad", b"\xff\xff\xff"), 1)])


def test_an_attribute_that_can_be_no_tenants_name_names_none() -> None:
    span = span_of({"tenant.id": "a b", "tenant": "acme"})
    found, _ = row(request_of(span))
    assert (found["tenant"], found["attributes"]) == ("acme", {"tenant.id": "a b"})
    found, _ = row(request_of(span_of({"tenant": "(other)"})))
    assert (found["tenant"], found["attributes"]) == ("default", {"tenant": "(other)"})
    found, _ = row(request_of(span_of(), resource={"tenant": "x" * 151}))
    assert found["tenant"] == "default"


def test_without_anything_long_nothing_is_marked() -> None:
    found = decode(request_of(span_of({"k": "v"})), LimitsConfig())
    assert dict(found.cuts) == {}
    assert found.spans.to_pylist()[0]["attributes"] == [("k", "v")]


def test_ingest_counts_what_was_cut(tmp_path: Path) -> None:
    config = Config(storage=StorageConfig(data=str(tmp_path)), limits=LIMITS)

    async def scenario() -> dict[str, int]:
        with open_ingest(config, locate(config.storage)) as (ingest, _):
            ingest.start()
            request = TraceRequest(request_of(span_of(name="n" * 40)).SerializeToString(), 1)
            await ingest.accept(request)
            await ingest.accept(request)
            return dict(ingest.cuts)

    assert asyncio.run(scenario()) == {"name": 1}
