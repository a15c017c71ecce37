"""Spans as serialized requests and as OTLP files, without an SDK: for imports, backfills and benchmarks.

Files are those of the OpenTelemetry Collector's file exporter: `.pb` holds messages that follow a big-endian
32-bit length each, `.jsonl` one JSON request a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sample_data.encoding import json_request, protobuf_request
from sample_data.span import Span
from sample_data.stream import Batches, Stream
from sample_data.truth import Truth

START_SECOND = 1_790_000_000
OPERATIONS_PER_SECOND = 170.0
TENANTS = 48
SPANS_PER_REQUEST = 512
_LENGTH_BYTES = 4


def requests(
    seed: int,
    spans: int,
    spans_per_request: int = SPANS_PER_REQUEST,
    *,
    operations_per_second: float = OPERATIONS_PER_SECOND,
    tenants: int = TENANTS,
    start_second: int = START_SECOND,
) -> Iterator[bytes]:
    """Serialized ExportTraceServiceRequests of exactly `spans` spans, each of one process.

    A request holds `spans_per_request` spans, the last one of each process what is left. The traces that the
    last spans belong to are incomplete. Same arguments, same bytes.
    """
    stream = Stream(seed=seed, operations_per_second=operations_per_second, tenants=tenants, start_second=start_second)
    for batch in batches(stream, spans_per_request, spans=spans):
        yield protobuf_request(stream.topology.instances[batch[0].instance], batch)


def batches(
    stream: Stream, spans_per_request: int, *, spans: int | None = None, seconds: int | None = None
) -> Iterator[list[Span]]:
    """Spans of one process each, of so many `spans` or of the operations of so many `seconds`.

    Raises ValueError unless exactly one of the two is given and it is not negative.
    """
    if (spans is None) == (seconds is None) or (spans or seconds or 0) < 0:
        raise ValueError(f"spans is {spans} and seconds is {seconds}, expected one of them, at least 0")
    by_process = Batches(spans_per_request)
    stretch = _seconds(stream, seconds) if spans is None else _exactly(stream, spans)
    for ended in stretch:
        yield from by_process.add(ended)
    yield from by_process.rest()


def _exactly(stream: Stream, spans: int) -> Iterator[list[Span]]:
    left = spans
    while left > 0:
        ended = stream.advance()[:left]
        left -= len(ended)
        yield ended


def _seconds(stream: Stream, seconds: int | None) -> Iterator[list[Span]]:
    for _ in range(seconds or 0):
        yield stream.advance()
    yield stream.rest()


def write_file(
    path: Path,
    stream: Stream,
    *,
    spans: int | None = None,
    seconds: int | None = None,
    spans_per_request: int = SPANS_PER_REQUEST,
) -> Truth:
    """Write so many spans, or seconds of traffic, to a new file and say what it holds; `.pb` or `.jsonl`.

    Raises ValueError for another suffix and OSError where the file cannot be written; an existing file is replaced.
    """
    if path.suffix not in {".pb", ".jsonl"}:
        raise ValueError(f"output is {path}, expected a file name that ends in .pb (protobuf) or .jsonl (JSON lines)")
    truth = Truth(incidents=stream.truths)
    with path.open("wb") as file:
        for batch in batches(stream, spans_per_request, spans=spans, seconds=seconds):
            instance = stream.topology.instances[batch[0].instance]
            truth.add(stream.topology, batch)
            if path.suffix == ".pb":
                file.write(framed(protobuf_request(instance, batch)))
            else:
                file.write(json_request(instance, batch) + b"\n")
    return truth


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message


def read_framed(path: Path) -> Iterator[bytes]:
    """The messages of a `.pb` file. Raises ValueError where it is cut off."""
    content = path.read_bytes()
    at = 0
    while at < len(content):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(content[at:start], "big")
        if at > len(content):
            raise ValueError(f"{path} ends at byte {len(content)} within a message that ends at byte {at}")
        yield content[start:at]
