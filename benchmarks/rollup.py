"""Rollups: spans per CPU-second of a catch-up, and the cost of a fixed increment over more and more stored spans.

    POLARS_MAX_THREADS=1 python -m benchmarks.rollup [--stored 100000 1000000 5000000] [--base-only] [--json FILE]

CPU time of this process (all threads; `spanlake analyze` gives polars one). Spans: 48 tenants of Zipf-like sizes with
home regions, 12 operations, 10,000 spans/s, 12 hosts a region and service, log-normal durations, in segments of
200,000 as the collector writes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from analytics import jobs
from analytics.rollup import insertions, job
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, configured
from collector.config import DIMENSION_SETS, AnalyzeConfig, Config
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA

START_NS = 1_772_366_400 * 10**9
SPANS_PER_SECOND = 10_000
SEGMENT_SPANS = 200_000
REGIONS = ["us-east-1", "us-west-2", "eu-west-1", "ap-southeast-2"]
OPERATIONS = [
    ("gateway", "http", "GET /items", "server", 0.20), ("gateway", "http", "POST /items", "server", 0.08),
    ("gateway", "cache", "get", "client", 0.18), ("gateway", "cache", "set", "client", 0.06),
    ("cache", "cache", "get", "server", 0.18), ("cache", "cache", "set", "server", 0.06),
    ("cache", "cache", "get_batch", "server", 0.04), ("cache", "cache", "delete", "server", 0.02),
    ("gateway", "topic", "publish", "producer", 0.06), ("worker", "topic", "process", "consumer", 0.09),
    ("worker", "database", "SELECT", "client", 0.02), ("worker", "other", "step", "internal", 0.01),
]  # fmt: skip
Result = TypeVar("Result")


def rollup_columns(count: int, seed: int, start_ns: int, seconds: float) -> dict[str, pa.Array]:
    """The columns of spans that rollups read, in order of time."""
    rng = np.random.default_rng(seed)
    tenant = rng.choice(48, count, p=_zipf(48))
    region = np.where(rng.random(count) < 0.85, tenant % 4, rng.integers(0, 4, count))
    operation = rng.choice(12, count, p=[share for *_, share in OPERATIONS])
    is_cache = np.array([component == "cache" for _, component, *_ in OPERATIONS])[operation]
    service = np.array([["gateway", "cache", "worker"].index(name) for name, *_ in OPERATIONS])[operation]
    instance = (region * 3 + service) * 12 + rng.integers(0, 12, count)
    columns: dict[str, pa.Array] = {
        "region": _label(region, REGIONS),
        "tenant": _label(tenant, [f"tenant-{i:02}" for i in range(48)]),
        "status": _label((rng.random(count) < 0.01).astype(int), ["unset", "error"]),
        "start_time": pa.array(start_ns + np.sort(rng.integers(0, int(seconds * 10**9), count)), pa.timestamp("ns")),
        "duration_ns": pa.array(np.exp(rng.normal(14, 0.8, count)).astype(np.int64)),
        "cache_hit": pa.array(rng.random(count) < 0.9, mask=~is_cache),
        "payload_bytes": pa.array(rng.integers(0, 10_000, count), mask=rng.random(count) < 0.3),
        "sample_weight": pa.nulls(count, pa.float64()),
        "host": _label(instance, [f"host-{i}" for i in range(144)]),
        "service_version": _label(instance % 3, [f"1.{i}.0" for i in range(3)]),
        "service_instance_id": _label(instance, [f"instance-{i}" for i in range(144)]),
        "destination": _label(tenant % 30, [f"cache-{i}" for i in range(30)]),
        "error_type": pa.array(["timeout", "refused"]).take(
            pa.array(rng.integers(0, 2, count), mask=rng.random(count) < 0.99)
        ),
    }
    for position, name in enumerate(("service_name", "component", "operation", "kind")):
        columns[name] = _label(operation, [str(row[position]) for row in OPERATIONS])
    return columns


def spans(count: int, seed: int, start_ns: int) -> pa.Table:
    """Spans with SPAN_SCHEMA, in order of time."""
    rng = np.random.default_rng(seed)
    columns = rollup_columns(count, seed, start_ns, count / SPANS_PER_SECOND) | {
        "trace_id": pa.array([f"{i:032x}" for i in rng.integers(0, 2**60, count)]),
        "span_id": pa.array([f"{i:016x}" for i in rng.integers(0, 2**60, count)]),
    }
    return pa.table([_column(field, columns, count) for field in SPAN_SCHEMA], schema=SPAN_SCHEMA)


def _column(field: pa.Field, columns: dict[str, pa.Array], count: int) -> pa.Array:
    if field.name in columns:
        return columns[field.name].cast(field.type)
    if field.nullable:
        return pa.nulls(count, field.type)
    if pa.types.is_nested(field.type) and not pa.types.is_dictionary(field.type):
        return pa.array([[]] * count, field.type)
    if pa.types.is_dictionary(field.type):
        return _label(np.zeros(count, int), ["x"])
    return pa.array(np.zeros(count, np.int64)).cast(field.type)


def _label(codes: npt.NDArray[np.int64], values: list[str]) -> pa.Array:
    different = list(dict.fromkeys(values))
    places = np.array([different.index(value) for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(places[codes]), pa.array(different))


def _zipf(count: int) -> npt.NDArray[np.float64]:
    weights = 1 / np.arange(1, count + 1)
    return np.asarray(weights / weights.sum())


def cpu(work: Callable[[], Result]) -> tuple[float, Result]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def store(lake: Lake, count: int, segments: list[Path], seed: int) -> None:
    """Add `count` spans: copies of segments after the first few, so that a large lake is made quickly."""
    folder = lake.location.files / "main" / "spans"
    for number in range(-(-count // SEGMENT_SPANS)):
        size = min(SEGMENT_SPANS, count - number * SEGMENT_SPANS)
        if size == SEGMENT_SPANS and len(segments) >= 10:
            path = folder / f"segment-{uuid.uuid4().hex}.parquet"
            shutil.copyfile(segments[number % 10], path)
        else:
            table = spans(size, seed + number, START_NS + number * SEGMENT_SPANS * 10**9 // SPANS_PER_SECOND)
            path = write_segment(table, folder)
        if size == SEGMENT_SPANS:
            segments.append(path)
        with lake.write() as transaction:
            transaction.add_files("spans", [path])


def throughput(lake: Lake, config: Config) -> dict[str, float]:
    """Spans per CPU-second of the first bite of what is stored: best of three for the pure parts."""
    with lake.read() as reader:
        bite = job.behind(reader, [BASE], config.analyze.spans_per_run_max)[0].bites[0]
        read_seconds, frame = min(
            (cpu(lambda: insertions.read(reader, bite, BASE.dimensions)) for _ in range(3)), key=lambda x: x[0]
        )
    partial_seconds, minutes = min((cpu(lambda: partials(frame)) for _ in range(3)), key=lambda x: x[0])
    hour_seconds, _ = min((cpu(lambda: merged(minutes, "1h")) for _ in range(3)), key=lambda x: x[0])
    return {
        "spans": bite.spans,
        "rows": minutes.height,
        "read": bite.spans / read_seconds,
        "minutes": bite.spans / partial_seconds,
        "hours": bite.spans / hour_seconds,
        "read and minutes": bite.spans / (read_seconds + partial_seconds),
        "all": bite.spans / (read_seconds + partial_seconds + hour_seconds),
    }


def sets_cost(lake: Lake, config: Config) -> dict[str, float]:
    """Spans per CPU-second of reading the first bite for all sets, and of the rows by minute and hour of each."""
    sets = configured(config.analyze)
    columns = list(dict.fromkeys(name for dimension_set in sets for name in dimension_set.dimensions))
    with lake.read() as reader:
        bite = job.behind(reader, [BASE], config.analyze.spans_per_run_max)[0].bites[0]
        read = partial(insertions.read, reader, bite, columns)
        seconds, frame = min((cpu(read) for _ in range(3)), key=lambda x: x[0])
    found, total = {"read for all sets": bite.spans / seconds}, seconds
    for dimension_set in sets:
        dimensions = dimension_set.dimensions
        taken = min(cpu(partial(_both, frame, dimensions))[0] for _ in range(3))
        found[f"{dimension_set.name}, minutes and hours"] = bite.spans / taken
        total += taken
    return found | {"all sets": bite.spans / total}


def _both(frame: pl.DataFrame, dimensions: tuple[str, ...]) -> pl.DataFrame:
    return merged(partials(frame, dimensions), "1h", dimensions)


def increment(lake: Lake, config: Config, count: int, seed: int) -> float:
    """Median CPU seconds of rolling up `count` new spans, commit included, compaction not."""
    seconds = []
    for number in range(3):
        store(lake, count, [], seed + number)
        taken, _ = cpu(
            lambda: job.catch_up(lake, configured(config.analyze), config.analyze, lambda: False, lambda *_: None)
        )
        seconds.append(taken)
    return sorted(seconds)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--increment", type=int, default=50_000)
    parser.add_argument("--base-only", action="store_true", help="keep no further sets of dimensions")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    none = AnalyzeConfig(dimension_sets={name: [] for name in DIMENSION_SETS})
    config = Config(analyze=none) if arguments.base_only else Config()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder) / "data")
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake, config)
            stored, segments = 0, list[Path]()
            for target in sorted(arguments.stored):
                store(lake, target - stored, segments, seed=stored)
                stored = target
                if target == max(arguments.stored):
                    results["spans per CPU-second"] = throughput(lake, config)
                    results["sets, spans per CPU-second"] = sets_cost(lake, config)
                whole, done = cpu(lambda: jobs.roll_up(lake, config, threading.Event()))
                results[f"catch-up to {target:,}, spans per CPU-second"] = done.spans / whole
                key = f"{arguments.increment:,} spans more at {target:,} stored, CPU seconds"
                results[key] = increment(lake, config, arguments.increment, seed=target)
                stored += 3 * arguments.increment
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
