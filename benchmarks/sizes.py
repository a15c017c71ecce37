"""Bytes a span of several kinds of traffic: `python -m benchmarks.sizes` (needs redis-server and nats-server).

Captured traffic is what real SDKs send: the applications of `sample_data.capture` run for longer. Simulated traffic is
that of `sample_data`, and that of `benchmarks.ingest` has a random trace id for each span. Each is decoded and written
as one sorted segment, as a merge writes it; captured attributes that tell of this machine stay.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from benchmarks.baselines import payloads
from collector.config import MappingConfig
from collector.decode.decoder import Decoder
from collector.lake.order import by_tenant_and_time
from collector.lake.segments import write_segment
from collector.pipeline import TraceRequest
from sample_data.capture import capture_nats, capture_redis
from sample_data.emit_files import requests

TRAFFIC: dict[str, Callable[[], list[bytes]]] = {
    "captured: redis": lambda: capture_redis(rounds=1000),
    "captured: redis, stable conventions": lambda: capture_redis("database", rounds=1000),
    "captured: nats": lambda: capture_nats(messages=4000),
    "simulated": lambda: list(requests(1, 98_304)),
    "benchmarks.ingest": payloads,
}


def measure(sent: list[bytes]) -> dict[str, float]:
    """Spans, and bytes of each as OTLP/protobuf and stored."""
    decoded = Decoder(MappingConfig()).decode([TraceRequest(payload, 0) for payload in sent])
    spans = pa.Table.from_batches([decoded.spans]).unify_dictionaries().combine_chunks()
    with tempfile.TemporaryDirectory() as folder:
        size = write_segment(by_tenant_and_time(spans), Path(folder)).stat().st_size
    return {
        "spans": spans.num_rows,
        "bytes a span, protobuf": round(sum(map(len, sent)) / spans.num_rows, 1),
        "bytes a span, stored": round(size / spans.num_rows, 1),
    }


def main() -> None:
    print(json.dumps({name: measure(send()) for name, send in TRAFFIC.items()}, indent=2))


if __name__ == "__main__":
    main()
