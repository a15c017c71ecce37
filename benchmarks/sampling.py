"""Sampling at rest: what is kept of simulated spans, how well it estimates them, and what it costs.

    python -m benchmarks.sampling [--spans 500000] [--share 0.1] [--slow-quantile 0.999] [--memory-mib 128]

Spans as in `benchmarks.queries`, received nine days ago. `error` is the relative error of sums of weights by service,
operation and hour where there were 1000 spans and more.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.machine import describe
from benchmarks.stored import later, pattern, repeated
from collector.config import SamplingConfig
from collector.lake import maintain, sampling
from collector.lake.lake import Lake, Reader
from collector.lake.location import Location
from collector.lake.merging import open_for_upkeep
from collector.lake.order import by_tenant_and_time
from collector.lake.segments import write_segment
from collector.lake.tables import COLLECTOR_DEFINITIONS

DAYS_AGO = 9
SPANS_MIN = 1000


def fill(location: Location, spans: int) -> None:
    """A lake of merged files of old spans."""
    segments, length_ns = pattern(0)
    start_ns = time.time_ns() - DAYS_AGO * 86_400 * 10**9
    with Lake(location, read_only=False) as lake:
        lake.ensure(COLLECTOR_DEFINITIONS)
        maintain.configure(lake)
        for table in repeated(segments, length_ns, spans):
            ordered = by_tenant_and_time(later(table, start_ns).combine_chunks())
            path = write_segment(ordered, location.files / "main" / "spans")
            with lake.write() as transaction:
                transaction.add_files("spans", [path])
        while maintain.merge_once(lake, "spans"):
            continue


def counts(reader: Reader, table: str) -> pl.DataFrame:
    """Spans by service, operation and hour, as their weights sum up."""
    return reader.frame(
        "SELECT service_name, operation, date_trunc('hour', start_time::TIMESTAMP) AS hour, "
        f"sum(COALESCE(sample_weight, 1)) AS spans FROM {table} GROUP BY ALL"
    )


def measure(location: Location, config: SamplingConfig, memory_bytes_max: int) -> dict[str, Any]:
    """Sample all; figures."""
    with open_for_upkeep(location, memory_bytes_max) as lake:
        with lake.read() as reader:
            true = counts(reader, "spans")
        cpu, wall = time.process_time(), time.perf_counter()
        done = sampling.apply(lake, config)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        with lake.read() as reader:
            kept = counts(reader, "sampled_spans")
    both = true.filter(pl.col("spans") >= SPANS_MIN).join(
        kept, on=["service_name", "operation", "hour"], how="left", suffix="_kept"
    )
    error = (both["spans_kept"].fill_null(0) / both["spans"] - 1).abs()
    return {
        **asdict(done),
        "spans_per_cpu_second": done.spans / cpu,
        "seconds": wall,
        "places": both.height,
        "error_median": error.median(),
        "error_max": error.max(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=500_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--slow-quantile", type=float, default=0.999)
    parser.add_argument("--memory-mib", type=int, default=128)
    arguments = parser.parse_args()
    config = SamplingConfig(after_days=7, share=arguments.share, slow_quantile=arguments.slow_quantile)
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder))
        location.prepare()
        fill(location, arguments.spans)
        print(json.dumps({"machine": describe(), **measure(location, config, arguments.memory_mib * 2**20)}, indent=2))


if __name__ == "__main__":
    main()
