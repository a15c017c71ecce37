"""Tables of traces: spans per CPU-second of each function, and the cost of a fixed increment over more stored spans.

    python -m benchmarks.traces [--stored 200000 1000000 2000000] [--increment 20000] [--json FILE]

CPU time of this process (all threads). Spans: the simulator's cache operations and topics at 10,000 spans/s, repeated
with ids and times of their own; what is stored lies in files of 100,000 spans, as merges leave it, what is added comes
in a commit a second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from analytics import jobs
from analytics.traces import critical_path, deliveries, edges, exemplars, hot_keys, sightings, source, summaries
from analytics.traces.forest import Forest
from analytics.traces.job import TraceJob
from collector.config import AnalyzeConfig, MappingConfig
from collector.decode.decoder import Decoder
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.segments import write_segment
from collector.pipeline import TraceRequest
from collector.spans import LINKS
from sample_data.emit_files import requests

BASE_SPANS = 100_000
SPANS_PER_SECOND = 10_000
OPERATIONS_PER_SECOND = SPANS_PER_SECOND / 4
REPEATS = 3
Result = TypeVar("Result")


def base() -> pa.Table:
    """Simulated spans in the order of their start."""
    decoder = Decoder(MappingConfig())
    payloads = list(requests(1, BASE_SPANS, operations_per_second=OPERATIONS_PER_SECOND))
    groups = [[TraceRequest(p, 1) for p in payloads[i : i + 16]] for i in range(0, len(payloads), 16)]
    table = pa.Table.from_batches([decoder.decode(group).spans for group in groups]).unify_dictionaries()
    return table.take(pc.sort_indices(table["start_time"]))


def repeated(spans: pa.Table, number: int) -> pa.Table:
    """The same traces with other ids, `number` times the base's length later."""
    prefix = f"{number:06x}"
    columns = {name: spans[name] for name in spans.schema.names}
    for name in ("trace_id", "span_id", "parent_span_id"):
        columns[name] = pc.binary_replace_slice(spans[name], 0, 6, prefix)
    columns["links"] = _links(spans["links"].combine_chunks(), prefix)
    shift = pa.scalar(number * BASE_SPANS // SPANS_PER_SECOND * 10**9, pa.duration("ns"))
    columns["start_time"] = pc.add(spans["start_time"], shift)
    return pa.table(columns, schema=spans.schema)


def _links(links: pa.ListArray, prefix: str) -> pa.ListArray:
    flat = links.values
    fields = [flat.field(i) for i in range(flat.type.num_fields)]
    fields[:2] = [pc.binary_replace_slice(ids, 0, 6, prefix) for ids in fields[:2]]
    return pa.ListArray.from_arrays(links.offsets, pa.StructArray.from_arrays(fields, fields=list(LINKS.value_type)))


def store(lake: Lake, spans: pa.Table, spans_per_file: int) -> None:
    """Commit spans, a file at a time."""
    for start in range(0, len(spans), spans_per_file):
        path = write_segment(spans.slice(start, spans_per_file), lake.location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])


def cpu(step: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of a step, and its result."""
    begun = time.process_time()
    result = step()
    return time.process_time() - begun, result


def throughput(spans: pl.DataFrame) -> dict[str, int]:
    """Spans per CPU-second of each function on its own: best of REPEATS."""
    planted = Forest.of(spans)

    def fresh() -> Forest:
        return Forest(planted.spans, planted.parent)

    steps: dict[str, Callable[[], object]] = {
        "forest": lambda: Forest.of(spans),
        "critical path": lambda: critical_path.rows(fresh()),
        "edges": lambda: edges.rows(fresh()),
        "deliveries": lambda: deliveries.rows(fresh()),
        "clock skew": lambda: deliveries.skew_rows(fresh()),
        "summaries": lambda: summaries.rows(fresh()),
        "exemplars": lambda: exemplars.rows(spans),
        "hot keys": lambda: hot_keys.rows(spans, bytes(32)),
        "sightings": lambda: sightings.rows(spans),
    }
    return {name: round(spans.height / min(cpu(step)[0] for _ in range(REPEATS))) for name, step in steps.items()}


def increment(lake: Lake, job: TraceJob, spans: pa.Table, number: int, size: int) -> dict[str, float]:
    """Median CPU and wall seconds of taking in `size` new spans of the same traces' kind, commit included."""
    taken = []
    for repeat in range(REPEATS):
        part = repeated(spans, number + repeat).slice(0, size)
        store(lake, part, SPANS_PER_SECOND)
        begun = time.monotonic()
        seconds, _ = cpu(lambda: job.catch_up(lambda: False))
        taken.append((seconds, time.monotonic() - begun))
    cpu_seconds, wall_seconds = sorted(taken)[REPEATS // 2]
    return {"cpu_seconds": round(cpu_seconds, 3), "wall_seconds": round(wall_seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", type=int, nargs="+", default=[200_000, 1_000_000, 2_000_000])
    parser.add_argument("--increment", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config, spans = AnalyzeConfig(), base()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder) / "data")
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake)
            job, number = TraceJob(lake, config), 0
            for target in sorted(arguments.stored):
                before = number
                while number * BASE_SPANS < target:
                    store(lake, repeated(spans, number), BASE_SPANS)
                    number += 1
                seconds, done = cpu(lambda: job.catch_up(lambda: False))
                if before == 0:
                    with lake.read() as reader:
                        taken, frame = cpu(lambda: source.read(reader, -1, reader.snapshot_id(), config.key_attributes))
                    rates = throughput(frame)
                    results["spans per CPU-second"] = {"read": round(frame.height / taken)} | rates
                results[f"catch-up to {target:,}, spans per CPU-second"] = round(done.spans / seconds)
                key = f"{arguments.increment:,} spans more at {target:,} stored"
                results[key] = increment(lake, job, spans, number, arguments.increment)
                number += REPEATS
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
