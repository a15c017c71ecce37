"""What other programs take for a part of the work, measured in the same run: how fast this machine is just now."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from benchmarks.decode import cpu_seconds, walk, write
from benchmarks.report import Row
from benchmarks.traffic import request
from collector.config import MappingConfig
from collector.decode.decoder import Decoder
from collector.pipeline import TraceRequest

PROTOBUF = "python-protobuf reads the spans"
DUCKDB = "DuckDB inserts the spans, native table"
PARQUET = "pyarrow writes the spans, zstd, as it likes"
UNIT = "spans/CPU-s"
SPANS, REQUESTS = 512, 32


def payloads(seed: int = 1) -> list[bytes]:
    """REQUESTS requests of SPANS spans."""
    rng = random.Random(seed)
    return [request(rng, SPANS, time.time_ns()).SerializeToString() for _ in range(REQUESTS)]


def decoded(requests: Sequence[bytes]) -> pa.RecordBatch:
    """Their spans as the collector stores them."""
    return Decoder(MappingConfig()).decode([TraceRequest(payload, 1) for payload in requests]).spans


def insert(spans: pa.RecordBatch, folder: Path) -> None:
    """Insert into a new DuckDB database file, one thread, and checkpoint it."""
    path = folder / f"{time.time_ns()}.duckdb"
    with duckdb.connect(path, config={"threads": "1"}) as connection:
        connection.register("rows", spans)
        connection.execute("CREATE TABLE spans AS FROM rows")
        connection.execute("CHECKPOINT")


def measure(rounds: int) -> list[Row]:
    """The baselines, best of several rounds."""
    requests = payloads()
    spans = decoded(requests)
    with tempfile.TemporaryDirectory() as folder:
        taken = {
            PROTOBUF: REQUESTS * cpu_seconds(lambda: walk(requests[0]), rounds),
            DUCKDB: cpu_seconds(lambda: insert(spans, Path(folder)), rounds),
            PARQUET: cpu_seconds(lambda: write(spans), rounds),
        }
    return [Row(name, len(spans) / seconds, UNIT, "more") for name, seconds in taken.items()]
