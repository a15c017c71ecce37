"""What may be decoded later: only what certainly decodes, whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, LimitsConfig, MappingConfig, StorageConfig
from collector.decode import decoder as decoding
from collector.decode.decoder import Decoded, Decoder
from collector.decode.screening import SPANS_MAX, Screened
from collector.decode.wire import WireSpans, joined
from collector.errors import InvalidRequestError
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.spool import Spool

LIMITS = LimitsConfig()
SIMPLE = [
    KeyValue(key="cache.hit", value=AnyValue(bool_value=True)),
    KeyValue(key="größe", value=AnyValue(string_value="日本" * 60)),
    KeyValue(key="payload", value=AnyValue(int_value=-(2**63))),
    KeyValue(key="share", value=AnyValue(double_value=float("nan"))),
    KeyValue(key="empty", value=AnyValue(string_value="")),
]


def span(**fields: Any) -> Span:
    usual = {"trace_id": b"\1" * 16, "span_id": b"\2" * 8, "name": "GET", "attributes": SIMPLE}
    return Span(**usual | fields)


def payload(*spans: Span) -> bytes:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "s"
    group.scope_spans.add().spans.extend(spans)
    return message.SerializeToString()


def taken(*payloads: bytes) -> Screened | Decoded:
    return Decoder(MappingConfig()).screen_or_decode([TraceRequest(each, 1) for each in payloads])


def test_usual_requests_wait() -> None:
    found = taken(payload(span(), span(status=Status(code=2, message="gone"))), payload(span(name="ß")), b"")
    assert isinstance(found, Screened)
    assert [answer.spans for answer in found.answers] == [2, 1, 0]
    assert found.num_spans == 3


@pytest.mark.parametrize(
    "odd",
    [
        span(span_id=b"\2" * 7),
        span(trace_id=b"\0" * 16),
        span(end_time_unix_nano=2**63),
        span(events=[Span.Event(name="e")]),
        span(links=[Span.Link(trace_id=b"\1" * 16, span_id=b"\1" * 8)]),
        span(name="n" * (LIMITS.name_bytes_max + 1)),
        span(status=Status(message="m" * (LIMITS.attribute_value_bytes_max + 1))),
        span(attributes=[KeyValue(key="k", value=AnyValue(bytes_value=b"b"))]),
        span(attributes=[KeyValue(key="k", value=AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)])))]),
        span(attributes=[KeyValue(key="k")]),
        span(attributes=[KeyValue(key="k" * (LIMITS.attribute_key_bytes_max + 1))]),
        span(attributes=[KeyValue(key="k", value=AnyValue(string_value="v" * LIMITS.attribute_value_bytes_max))]),
        span(attributes=[KeyValue(key=f"k{i}", value=SIMPLE[0].value) for i in range(LIMITS.attributes_max + 1)]),
    ],
)  # fmt: skip
def test_one_unusual_span_is_decoded_at_once(odd: Span) -> None:
    found = taken(payload(span(), odd))
    assert isinstance(found, Decoded)
    assert found.spans.num_rows + found.answers[0].rejected_spans == 2


def test_what_waits_counts_in_memory_once_with_its_resources() -> None:
    """Payloads are kept, and all that they were parsed into: resources, and spans once."""
    sent = ExportTraceServiceRequest()
    for number in range(20):
        group = sent.resource_spans.add()
        group.resource.attributes.add(key="text").value.string_value = f"{number}" * 1000
        group.scope_spans.add().spans.append(span(status=Status(message="m" * 1000)))
    content = sent.SerializeToString()
    found = taken(content)
    assert isinstance(found, Screened)
    assert found.nbytes >= 2 * len(content)
    assert 2 * len(content) <= joined([found.wire, found.wire]).nbytes <= 2.5 * len(content)


def test_a_large_group_is_decoded_at_once() -> None:
    assert isinstance(taken(payload(*[span()] * SPANS_MAX)), Screened)
    assert isinstance(taken(payload(*[span()] * SPANS_MAX), payload(span())), Decoded)


@pytest.mark.parametrize("text", [b"GET", b"gone", "größe".encode(), "日本".encode()])
def test_what_is_not_utf8_is_refused(text: bytes) -> None:
    sent = payload(span(status=Status(code=2, message="gone")))
    assert text in sent
    with pytest.raises(InvalidRequestError, match="UTF-8"):
        taken(sent.replace(text, b"\xff" + text[1:]))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_waits_decodes_whole(data: st.DataObject) -> None:
    """Bytes of a valid request are changed, as many as may be."""
    changed = bytearray(payload(span(), span(events=[Span.Event(name="e")]) if data.draw(st.booleans()) else span()))
    for _ in range(data.draw(st.integers(0, 3))):
        position = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["set", "delete", "insert"])):
            case "set":
                changed[position] = data.draw(st.integers(0, 255))
            case "delete":
                del changed[position]
            case _:
                changed.insert(position, data.draw(st.integers(0, 255)))
    requests = [TraceRequest(bytes(changed), 1)]
    try:
        found = Decoder(MappingConfig()).screen_or_decode(requests)
    except InvalidRequestError:
        with pytest.raises(InvalidRequestError):
            Decoder(MappingConfig()).decode(requests)
        return
    decoded = Decoder(MappingConfig()).decode(requests)
    decoded.spans.validate(full=True)
    assert found.answers == decoded.answers
    assert found.cuts == decoded.cuts
    assert found.num_spans == decoded.num_spans


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=3), min_size=1, max_size=5))
def test_groups_that_waited_decode_as_all_their_requests(groups: list[list[list[int]]]) -> None:
    """A group is a list of requests, a request a list of scopes by name, each of a span and a resource of its own."""
    decoder = Decoder(MappingConfig())
    waiting, everything = [], []
    for number, group in enumerate(groups):
        requests = [TraceRequest(many(names), number + 1, f"tenant-{number}") for names in group]
        found = decoder.screen_or_decode(requests)
        assert isinstance(found, Screened)
        waiting.append(found)
        everything += requests
    together, anew = decoder.decode_screened(waiting), Decoder(MappingConfig()).decode(everything)
    assert together.spans.equals(anew.spans)
    assert together.resources.equals(anew.resources)
    assert together.answers == anew.answers


def many(names: list[int]) -> bytes:
    message = ExportTraceServiceRequest()
    for name in names:
        group = message.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = f"service-{name}"
        scope = group.scope_spans.add()
        scope.scope.name = f"scope-{name}"
        scope.spans.append(span(name=f"span {name}", attributes=SIMPLE[:name]))
    return message.SerializeToString()


def test_what_waited_and_does_not_decode_after_all_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(requests: list[TraceRequest], wire: WireSpans, _: object) -> Screened:
        return Screened(tuple(requests), wire, tuple(Accepted(spans=1) for _ in requests))

    monkeypatch.setattr(decoding, "screened", everything)
    config = Config(
        storage=StorageConfig(data=str(tmp_path)),
        collector=CollectorConfig(seal_interval_seconds=0.05),
    )
    nested = KeyValue(key="k", value=AnyValue(bytes_value=b"twelve bytes"))
    bad = payload(span(attributes=[nested])).replace(b"twelve bytes", b"\xff" * 12).replace(b"\x3a\x0c", b"\x0a\x0c")
    with pytest.raises(InvalidRequestError):
        Decoder(MappingConfig()).decode([TraceRequest(bad, 1)])

    async def send() -> None:
        with open_ingest(config, locate(config.storage)) as (ingest, sealer):
            ingest.start()
            requests = [TraceRequest(each, time.time_ns()) for each in (payload(span(name="a")), bad, payload(span()))]
            await asyncio.gather(*(ingest.accept(request) for request in requests))
            async with asyncio.timeout(30):
                while sealer.unsealed_requests:
                    await asyncio.sleep(0.01)

    asyncio.run(send())
    with Lake(locate(config.storage), read_only=True) as lake, lake.read() as reader:
        assert reader.rows("SELECT name FROM spans ORDER BY name") == [("GET",), ("a",)]
    assert [seq for seq, _ in Spool(locate(config.storage).spool, 3600).quarantined()] == [2]
