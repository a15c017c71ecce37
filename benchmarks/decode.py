"""How many spans a second of CPU time the decode stage takes apart.

    python -m benchmarks.decode [--json FILE]

512 spans a request, 10 attributes each (4 strings, 3 ints, 2 bools, 1 double), groups of 8 requests. The walk over
python-protobuf objects runs in the same process, as the measure of the machine; so does a Parquet write of the
result (zstd, level 1), which the next stage does. The best of several rounds counts.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import MappingConfig
from collector.decode.decoder import Decoder
from collector.decode.otlp_json import to_protobuf
from collector.decode.wire import parse_requests
from collector.pipeline import TraceRequest

SPANS, GROUP = 512, 8
START_NS = 1_700_000_000_000_000_000


def plain_request(seed: random.Random, spans: int) -> ExportTraceServiceRequest:
    """Attributes of which none fills a column."""
    return _request(seed, spans, lambda name: f"attr.{name}")


def cache_request(seed: random.Random, spans: int) -> ExportTraceServiceRequest:
    """The same amount of attributes; six of them fill columns."""
    known = {
        "str0": "db.operation.name", "str1": "tenant.id", "str2": "db.system.name", "str3": "cache.name",
        "int0": "cache.item.size", "bool0": "cache.hit",
    }  # fmt: skip
    return _request(seed, spans, lambda name: known.get(name, f"attr.{name}"))


def _request(seed: random.Random, spans: int, key: Callable[[str], str]) -> ExportTraceServiceRequest:
    message = ExportTraceServiceRequest()
    for service in range(2):
        group = message.resource_spans.add()
        for name in ("service.name", "cloud.region", "host.name"):
            group.resource.attributes.add(key=name).value.string_value = f"{name}-{service}"
        scope_spans = group.scope_spans.add()
        scope_spans.scope.name = "benchmark"
        for i in range(max(1, spans // 2) if spans > 1 else 1 - service):
            start_ns = START_NS + seed.randrange(10**12)
            span = scope_spans.spans.add(
                trace_id=seed.randbytes(16), span_id=seed.randbytes(8), parent_span_id=seed.randbytes(8), kind=3,
                name=f"operation-{i % 7}", start_time_unix_nano=start_ns, end_time_unix_nano=start_ns + i,
            )  # fmt: skip
            for k in range(4):
                span.attributes.add(key=key(f"str{k}")).value.string_value = f"value-{seed.randrange(100)}"
            for k in range(3):
                span.attributes.add(key=key(f"int{k}")).value.int_value = seed.randrange(10_000)
            for k in range(2):
                span.attributes.add(key=key(f"bool{k}")).value.bool_value = bool(k)
            span.attributes.add(key=key("dbl")).value.double_value = seed.random()
    return message


def walk(payload: bytes) -> list[Any]:
    """What reading every field of every span with python-protobuf costs; a floor, it builds no columns."""
    rows = []
    message = ExportTraceServiceRequest.FromString(payload)
    for group in message.resource_spans:
        for scope_spans in group.scope_spans:
            for span in scope_spans.spans:
                attributes = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                rows.append((ids, span.name, span.kind, times, attributes, span.status.code))
    return rows


def otlp_json(message: ExportTraceServiceRequest) -> bytes:
    document = json_format.MessageToDict(message, use_integers_for_enums=True)
    text = orjson.dumps(document)
    parsed = orjson.loads(text)
    for group, source in zip(parsed["resourceSpans"], message.resource_spans, strict=True):
        for scope_spans, inner in zip(group["scopeSpans"], source.scope_spans, strict=True):
            for span, ids in zip(scope_spans["spans"], inner.spans, strict=True):
                span |= {"traceId": ids.trace_id.hex(), "spanId": ids.span_id.hex()}
                span["parentSpanId"] = ids.parent_span_id.hex()
    return orjson.dumps(parsed)


def write(batch: pa.RecordBatch) -> int:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_batches([batch]), sink, compression="zstd", compression_level=1)
    return sink.tell()


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """The least CPU time that one run of the work took."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def measure(rounds: int) -> list[dict[str, Any]]:
    seed = random.Random(1)
    messages = [plain_request(seed, SPANS) for _ in range(GROUP)]
    plain = [TraceRequest(message.SerializeToString(), START_NS) for message in messages]
    cache = [TraceRequest(cache_request(seed, SPANS).SerializeToString(), START_NS) for _ in range(GROUP)]
    single = [TraceRequest(cache_request(seed, 1).SerializeToString(), START_NS)]
    body = otlp_json(messages[0])
    decoder = Decoder(MappingConfig())
    payloads = [request.payload for request in plain]
    decoded = decoder.decode(plain).spans
    work: list[tuple[str, int, Callable[[], object]]] = [
        ("python-protobuf walk, no columns", SPANS, lambda: walk(payloads[0])),
        ("wire", SPANS * GROUP, lambda: parse_requests(payloads)),
        ("decode, no attribute fills a column", SPANS * GROUP, lambda: decoder.decode(plain)),
        ("decode, six attributes fill columns", SPANS * GROUP, lambda: decoder.decode(cache)),
        ("decode, one request a group", SPANS, lambda: decoder.decode(plain[:1])),
        ("decode, one span", 1, lambda: decoder.decode(single)),
        ("Parquet write", SPANS * GROUP, lambda: write(decoded)),
        ("decode and Parquet write", SPANS * GROUP, lambda: write(decoder.decode(plain).spans)),
        ("JSON to protobuf", SPANS, lambda: to_protobuf(body)),
    ]
    found: list[dict[str, Any]] = []
    for name, spans, run in work:
        seconds = cpu_seconds(run, rounds)
        found.append({"what": name, "spans_per_cpu_second": spans / seconds, "cpu_us_per_call": seconds * 1e6})
    by_name: dict[Any, Any] = {row["what"]: row["spans_per_cpu_second"] for row in found}
    flatten = 1 / (1 / by_name["decode, no attribute fills a column"] - 1 / by_name["wire"])
    found.insert(2, {"what": "flatten (decode less wire)", "spans_per_cpu_second": flatten, "cpu_us_per_call": None})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--rounds", type=int, default=30, help="runs of which the best counts")
    options = parser.parse_args()
    found = measure(options.rounds)
    walked = found[0]["spans_per_cpu_second"]
    print(f"{'':38}{'spans / CPU s':>14}{'x walk':>8}{'us / call':>11}")
    for row in found:
        rate, per_call = row["spans_per_cpu_second"], row["cpu_us_per_call"]
        shown = "" if per_call is None else f"{per_call:,.0f}"
        print(f"{row['what']:38}{rate:14,.0f}{rate / walked:8.1f}{shown:>11}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
