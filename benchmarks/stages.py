"""Each stage of the collector alone, beside what its library or the machine takes for the same bytes.

    python -m benchmarks.stages [--rounds 10]

One group of REQUESTS requests of 512 spans; CPU milliseconds, the best of several rounds. `ratio` is the stage to its
limit: what is left to win at most.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import xxhash
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.baselines import payloads
from benchmarks.decode import cpu_seconds, write
from benchmarks.machine import describe
from collector.config import MappingConfig
from collector.decode.decoder import Decoded, Decoder
from collector.decode.wire import parse_requests
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.order import by_tenant_and_time
from collector.lake.segments import write_segment
from collector.lake.tables import COLLECTOR_DEFINITIONS
from collector.pipeline import TraceRequest
from collector.receive.encoding import Body, decompressor, sniff
from collector.receive.intake import response
from collector.spool import Entry, Spool, digest_of

REQUESTS = 8
BODY_BYTES_MAX = 64 * 2**20


@dataclass(frozen=True)
class Stage:
    """A stage and its limit, both as work to be timed."""

    name: str
    work: Callable[[], object]
    limit: str
    limit_work: Callable[[], object]


def body(message: bytes) -> bytes:
    """What a server makes of a message: checked, counted, inflated where it is compressed."""
    made = Body(decompressor(sniff(message)), BODY_BYTES_MAX, lambda _size: None)
    made.feed(message)
    return made.finish()


def received(requests: list[bytes], decoded: Decoded) -> Iterator[Stage]:
    """Stages without a disk."""
    decoder, whole = Decoder(MappingConfig()), b"".join(requests)
    group = [TraceRequest(payload, 1) for payload in requests]
    columns = decoded.spans.serialize().to_pybytes()
    yield Stage("receive: body", lambda: [body(r) for r in requests], "memcpy", lambda: bytearray(whole))
    yield Stage(
        "recognise: digest", lambda: [digest_of(r) for r in group], "XXH3-128", lambda: xxhash.xxh3_128_digest(whole)
    )
    yield Stage(
        "decode: wire",
        lambda: parse_requests(requests),
        "python-protobuf (upb) parses, reads nothing",
        lambda: [ExportTraceServiceRequest.FromString(r) for r in requests],
    )
    yield Stage("decode and flatten", lambda: decoder.decode(group), "memcpy of columns", lambda: bytearray(columns))
    yield Stage(
        "answer", lambda: [response(a).SerializeToString() for a in decoded.answers], "memcpy", lambda: bytearray(8)
    )


def stored(requests: list[bytes], decoded: Decoded, folder: Path) -> Iterator[Stage]:
    """Stages that end on disk."""
    spool, table = Spool(folder, 3600.0), pa.Table.from_batches([decoded.spans])
    location = Location(folder / "data")
    location.prepare()
    lake = Lake(location, read_only=False, threads=1)
    lake.ensure(COLLECTOR_DEFINITIONS)
    plain = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    plain.execute("PRAGMA journal_mode = WAL")
    plain.execute("CREATE TABLE marks (position INTEGER)")

    def append() -> None:
        fresh = [TraceRequest(payload + b"\xa2\x06\x08" + os.urandom(8), 1) for payload in requests]
        spool.append([Entry(digest_of(r), r, a) for r, a in zip(fresh, decoded.answers, strict=True)], 1)

    def append_file() -> None:
        with (folder / "file").open("wb") as file:
            file.write(b"".join(requests))
            file.flush()
            os.fsync(file.fileno())

    def commit(paths: Iterator[Path]) -> None:
        with lake.write() as transaction:
            transaction.add_files("spans", [next(paths)])

    segments = location.files / "main" / "spans"
    small = table.slice(0, 100)
    paths = iter([write_segment(small, segments) for _ in range(64)])
    yield Stage("spool", append, "write and fsync of a file", append_file)
    yield Stage(
        "write: sort, Parquet, fsync",
        lambda: write_segment(by_tenant_and_time(table), segments),
        "pyarrow writes Parquet to memory",
        lambda: write(decoded.spans),
    )
    yield Stage(
        "commit: DuckLake",
        lambda: commit(paths),
        "SQLite commits a row",
        lambda: plain.execute("INSERT INTO marks VALUES (1)"),
    )
    plain.close()
    lake.close()
    spool.close()


def main() -> None:
    """Print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, choices=range(1, 61), metavar="1-60")
    rounds = parser.parse_args().rounds
    requests = payloads()[:REQUESTS]
    decoded = Decoder(MappingConfig()).decode([TraceRequest(payload, 1) for payload in requests])
    print(f"{decoded.spans.num_rows} spans, {sum(map(len, requests))} bytes")
    print(f"{'stage':28}{'CPU ms':>10}{'us/span':>10}   {'limit':44}{'CPU ms':>10}{'ratio':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for stages in (received(requests, decoded), stored(requests, decoded, Path(folder))):
            for stage in stages:
                took, least = cpu_seconds(stage.work, rounds), cpu_seconds(stage.limit_work, rounds)
                per_span = took / decoded.spans.num_rows * 1e6
                print(
                    f"{stage.name:28}{took * 1e3:10.3f}{per_span:10.3f}   {stage.limit:44}{least * 1e3:10.3f}"
                    f"{took / max(least, 1e-6):9.1f}"
                )
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
