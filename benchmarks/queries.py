"""Queries of stored spans: milliseconds each, and bytes a span, at growing sizes.

    python -m benchmarks.queries [--spans 1000000 5000000] [--large 100000000] [--unsorted] [--json FILE]
    python -m benchmarks.queries --large 100000000 --keep FOLDER
    python -m benchmarks.queries --ask FOLDER

The lakes are those of `stored`. Each figure is the median and the worst of RUNS runs on one open lake, as the dashboard
has it, of which the first reads the files' footers; the worst of CPU tells what of the worst is the machine. `first` is
the first and only question of FIRST_RUNS new processes, as `spanlake sql` asks it: opening and answering, without the
interpreter's start and its imports. Peak memory is that of a process that asks all questions and does nothing else. A
folder that was kept can be asked again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from analytics.insight.explaining import explain
from analytics.window import Window
from benchmarks.machine import describe
from benchmarks.stored import fill, fill_large
from collector.config import QueryConfig
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.sandbox import open_sandbox

RUNS = 20
FIRST_RUNS = 5
EXPLAIN_RUNS = 3
EXPLAINED = timedelta(minutes=84)
"""Five million spans of these lakes."""
THREADS = 2

ROLLUPS = """
SELECT tenant, region, sum(count), sum(errors), latency_quantile_ns(list(latency_buckets), 0.95)
FROM rollup_1m WHERE window_start >= '{recent}' GROUP BY ALL
"""
ROLLUPS_SUMMED = """
WITH cells AS (
    SELECT tenant, region, unnest(map_entries(latency_buckets)) AS cell FROM rollup_1m WHERE window_start >= '{recent}'
),
sums AS (SELECT tenant, region, cell.key AS bucket, sum(cell.value)::BIGINT AS spans FROM cells GROUP BY ALL)
SELECT tenant, region, sum(spans), latency_quantile_ns([map_from_entries(list((bucket, spans)))], 0.95)
FROM sums GROUP BY ALL
"""
A_TRACE = """
SELECT trace_id, start_time::TIMESTAMP FROM spans
WHERE start_time >= $1::TIMESTAMP AND start_time < $1::TIMESTAMP + INTERVAL 10 SECONDS ORDER BY hash(span_id) LIMIT 1
"""
A_TENANT = "SELECT tenant FROM spans WHERE start_time >= ? GROUP BY tenant ORDER BY count(*) DESC LIMIT 1 OFFSET 8"
SLOWEST = (
    "SELECT * FROM spans WHERE tenant = '{tenant}' AND start_time >= '{recent}' ORDER BY duration_ns DESC LIMIT 100"
)
ATTRIBUTE = "SELECT count(*) FROM spans WHERE start_time >= '{hour}' AND attributes['db.system.name'] = 'redis'"


def questions(lake: Lake) -> dict[str, list[str]]:
    """Statements by what they ask of a lake, its newest spans being those of now."""
    with lake.read() as reader:
        oldest, newest = reader.row("SELECT min(start_time)::TIMESTAMP, max(start_time)::TIMESTAMP FROM spans")
        traces = [reader.row(A_TRACE, [oldest + (newest - oldest) * (n + 0.5) / RUNS]) for n in range(RUNS)]
        recent, hour = newest - timedelta(minutes=15), newest - timedelta(hours=1)
        (tenant,) = reader.row(A_TENANT, [recent])
    return {
        "a trace by id": [f"FROM trace('{trace}')" for trace, _ in traces],
        "a trace by id and about its time": [
            f"FROM trace('{trace}', around := '{moment}', within := '5 minutes')" for trace, moment in traces
        ],
        "every tenant's last 15 minutes, from rollups": [ROLLUPS.format(recent=recent)] * RUNS,
        "the same, buckets summed before the quantile": [ROLLUPS_SUMMED.format(recent=recent)] * RUNS,
        "a tenant's 100 slowest spans of 15 minutes": [SLOWEST.format(tenant=tenant, recent=recent)] * RUNS,
        "spans with an attribute, last hour": [ATTRIBUTE.format(hour=hour)] * RUNS,
    }


def measured(lake: Lake, statements: Sequence[str]) -> dict[str, float]:
    """Milliseconds of these statements, by the clock and of CPU."""
    taken, used = [], []
    for sql in statements:
        with lake.read() as reader:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            rows = reader.rows(sql)
            taken.append((time.perf_counter() - begun) * 1000)
            used.append((time.process_time() - begun_cpu) * 1000)
        assert rows, sql
    return {
        "median ms": round(statistics.median(taken)),
        "worst ms": round(max(taken)),
        "median CPU ms": round(statistics.median(used)),
        "worst CPU ms": round(max(used)),
    }


def answered(location: Location, sql: str) -> tuple[float, float, float]:
    """Milliseconds that opening the lake for one statement takes and that the statement takes; both of CPU."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with open_sandbox(location, QueryConfig()) as sandbox:
        opened = time.perf_counter()
        with sandbox.run(sql) as result:
            assert sum(batch.num_rows for batch in result.batches), sql
        done, done_cpu = time.perf_counter(), time.process_time()
    return (opened - begun) * 1000, (done - opened) * 1000, (done_cpu - begun_cpu) * 1000


def first(location: Location, statements: Sequence[str]) -> dict[str, float]:
    """Milliseconds of the first question of a process; each of these statements has one of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        opening, answering, cpu = zip(*fresh.map(answered, [location] * len(statements), statements), strict=True)
    return {
        "first: opening ms": round(statistics.median(opening)),
        "first: median ms": round(statistics.median(answering)),
        "first: worst ms": round(max(answering)),
        "first: median CPU ms, both": round(statistics.median(cpu)),
    }


def asked(location: Location) -> dict[str, Any]:
    """What `queries` finds, in a process of its own, and the memory of that."""
    command = [sys.executable, "-m", "benchmarks.queries", "--ask", str(location.root)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def peak_mib() -> int:
    """The most memory that this process has had, in MiB; getrusage() would count the parent's from before the start."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM:"))


def explained(location: Location) -> dict[str, float]:
    """Seconds of explaining the slowest in a hundred spans of the last EXPLAINED, and the memory of it all."""
    with Lake(location, read_only=True, threads=THREADS) as lake, lake.read() as reader:
        (newest,) = reader.row("SELECT max(start_time)::TIMESTAMP FROM spans")
        until = newest.replace(second=0, microsecond=0, tzinfo=UTC) + timedelta(minutes=1)
        window = Window(until - EXPLAINED, until)
        spans, slow_ns = reader.row(
            "SELECT count(*), approx_quantile(duration_ns, 0.99)::BIGINT FROM spans WHERE start_time >= ?",
            [window.start.replace(tzinfo=None)],
        )
    taken, used = [], []
    with open_sandbox(location, QueryConfig()) as sandbox:
        for _ in range(EXPLAIN_RUNS):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            assert explain(sandbox, window, f"duration_ns > {slow_ns}").height
            taken.append(time.perf_counter() - begun)
            used.append(time.process_time() - begun_cpu)
    times = {"median s": statistics.median(taken), "worst s": max(taken), "median CPU s": statistics.median(used)}
    return {"spans": spans, "peak memory, MiB": peak_mib()} | {name: round(value, 1) for name, value in times.items()}


def queries(location: Location) -> dict[str, dict[str, float]]:
    """What each question to a lake takes; `questions` are the keys."""
    with Lake(location, read_only=True, threads=THREADS, memory_bytes_max=2**30) as lake:
        asked = questions(lake)
        warm = {question: measured(lake, statements) for question, statements in asked.items()}
    return {question: warm[question] | first(location, asked[question][:FIRST_RUNS]) for question in asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spans", type=int, nargs="+")
    parser.add_argument("--large", type=int, help="a further size, most of it copies of one file")
    parser.add_argument("--keep", type=Path, help="a new folder for the lake of --large, which stays")
    parser.add_argument("--ask", type=Path, help="ask a lake that was kept, and nothing else")
    parser.add_argument("--unsorted", action="store_true", help="store in the order of arrival")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.ask:
        location = Location(arguments.ask)
        found = queries(location) | {"peak memory, MiB": peak_mib()}
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            show(found | {"the slowest spans explained": fresh.submit(explained, location).result()})
        return
    results: dict[str, object] = {"machine": describe()}
    for spans in arguments.spans or ([] if arguments.large else [1_000_000, 5_000_000]):
        with tempfile.TemporaryDirectory() as folder:
            location = made(Path(folder) / "data")
            sizes = fill(location, spans, is_sorted=not arguments.unsorted)
            results[f"{spans:,}"] = show(sizes | asked(location))
    if arguments.large:
        with tempfile.TemporaryDirectory() as folder:
            location = made(arguments.keep or Path(folder) / "data")
            sizes = fill_large(location, arguments.large)
            results[f"{arguments.large:,}"] = show(sizes | asked(location))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


def made(folder: Path) -> Location:
    """A data folder that is there."""
    location = Location(folder)
    location.prepare()
    return location


def show(found: dict[str, Any]) -> dict[str, Any]:
    """Print what was found, and give it back."""
    print(json.dumps(found, indent=2), flush=True)
    return found


if __name__ == "__main__":
    main()
