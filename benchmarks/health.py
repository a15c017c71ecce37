"""Health queries over a day: `python -m benchmarks.health [--spans 10000000] [--json FILE]`.

Rollups of so many spans in the 24 h that are asked for and half as many in the 24 h before, of 48 tenants, 4 regions
and 12 operations, made by the rollup's own functions and compacted. Shows CPU and wall seconds, best of five.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa

from analytics import jobs
from analytics.health import INGRESS, Scope, choices, freshness, health_rows, health_series
from analytics.rollup import compact
from analytics.rollup.job import HOURS, MINUTES, write_rows
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE
from analytics.window import Window
from benchmarks.rollup import START_NS, rollup_columns
from collector.lake.lake import Lake
from collector.lake.location import Location

DAY_SECONDS = 86_400
CHUNKS = 24


def fill(lake: Lake, spans: int, start_ns: int) -> None:
    """A day of rollups, in CHUNKS runs."""
    for chunk in range(CHUNKS):
        columns = rollup_columns(
            spans // CHUNKS, chunk, start_ns + chunk * DAY_SECONDS * 10**9 // CHUNKS, DAY_SECONDS / CHUNKS
        )
        minutes = partials(pl.DataFrame(pa.table(columns)))
        paths = {
            MINUTES: write_rows(lake, MINUTES, minutes),
            HOURS: write_rows(lake, HOURS, merged(minutes, "1h")),
        }
        with lake.write() as transaction:
            for table, path in paths.items():
                transaction.add_files(table, [path])
    compact.compact_all(lake, [BASE], lambda: False)


def best(work: Callable[[], object]) -> dict[str, float]:
    """The least CPU and wall seconds of five."""
    cpu, wall = [], []
    for _ in range(5):
        cpu_begun, wall_begun = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - cpu_begun)
        wall.append(time.perf_counter() - wall_begun)
    return {"cpu_seconds": round(min(cpu), 4), "wall_seconds": round(min(wall), 4)}


def measure(lake: Lake) -> dict[str, object]:
    end = datetime.fromtimestamp(START_NS // 10**9, UTC) + timedelta(days=1)
    day, hour = Window.last(1440, end), Window.last(60, end)
    odd_day = Window.last(1440, end - timedelta(minutes=17))
    ingress = Scope(kinds=(INGRESS,))
    with lake.read() as reader:
        rows = {t: reader.row(f"SELECT count(*), sum(count)::BIGINT FROM {t}") for t in (MINUTES, HOURS)}
        files = {table: len(compact.live_files(reader, table)) for table in (MINUTES, HOURS)}
        queries: dict[str, Callable[[], object]] = {
            "24 h, rows by region": lambda: health_rows(reader, day, Scope()),
            "24 h, series by region": lambda: health_series(reader, day, Scope(), "region"),
            "24 h off the hour, rows by region": lambda: health_rows(reader, odd_day, Scope()),
            "24 h, rows by tenant, ingress": lambda: health_rows(reader, day, ingress, ("tenant",)),
            "1 h, rows by region": lambda: health_rows(reader, hour, Scope()),
            "1 h, rows by tenant and operation": lambda: health_rows(reader, hour, ingress, ("tenant", "operation")),
            "1 h, series by region": lambda: health_series(reader, hour, Scope(), "region"),
            "24 h, choices": lambda: choices(reader, day),
            "freshness": lambda: freshness(reader),
        }
        return {
            "rows and spans": rows,
            "files": files,
            **{name: best(work) for name, work in queries.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder) / "data")
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake)
            fill(lake, arguments.spans, START_NS)
            fill(lake, arguments.spans // 2, START_NS - DAY_SECONDS * 10**9)
            results = measure(lake)
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
