"""All that is promised about speed, as one table and as JSON: `make bench`, `make bench BENCH=full JSON=a.json`.

    python -m benchmarks.suite [--full] [--sizes 1e6 1e7] [--only ingest] [--json FILE]

Ingest by the shape of requests, acknowledgements, commits, memory, idle, start, merges, rollups, queries. What has to
do with the speed of the machine is shown in proportion to a baseline of the same run (baselines.py). Quick takes five
to ten minutes; full repeats all but what is stored three times and tells the spread. --sizes says for how many stored
spans merges, rollups and queries are measured, a million by default; ten million take about ten times as long.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analytics import jobs
from benchmarks import baselines, ingest, process, queries, rollup, stored
from benchmarks.baselines import DUCKDB, PARQUET, PROTOBUF, UNIT
from benchmarks.machine import describe
from benchmarks.report import Row, as_json, median_row, table, with_ratios
from benchmarks.senders import Load
from collector.config import Config
from collector.lake.lake import Lake
from collector.lake.location import Location

SHAPES = {
    "gRPC, 512 spans": Load(),
    "gRPC, 512 spans, a tenth with events, links, nested values": Load(rich_share=0.1),
    "gRPC, 100 spans": Load(spans_per_request=100),
    "gRPC, 1 span, 200 clients": Load(spans_per_request=1, senders=200),
    "HTTP/protobuf, 512 spans": Load("http"),
    "HTTP/JSON, 512 spans": Load("json"),
}
CALM = Load(rate=25_000)
SMALL = Load(spans_per_request=100, rate=10_000)


@dataclass(frozen=True)
class Plan:
    """How much is measured: seconds of each load, of idling; runs of what is short; numbers of stored spans."""

    seconds: float = 6.0
    idle_seconds: float = 10.0
    runs: int = 1
    rounds: int = 5
    sizes: tuple[int, ...] = (1_000_000,)
    shapes: tuple[str, ...] = tuple(SHAPES)


QUICK = Plan()
FULL = Plan(seconds=15.0, idle_seconds=60.0, runs=3, rounds=20)


def measure_baselines(plan: Plan) -> Iterator[Row]:
    """What other programs take."""
    yield from baselines.measure(plan.rounds)


def measure_ingest(plan: Plan) -> Iterator[Row]:
    """Each shape of requests as fast as it is answered."""
    for name in plan.shapes:
        found = ingest.measure(SHAPES[name], plan.seconds)
        yield Row(f"ingest, {name}", found["spans_per_cpu_second"], UNIT, "more", PROTOBUF)
        yield Row(f"a request, {name}", found["cpu_us_per_request"], "CPU-us", "less")
        yield Row(f"peak memory, {name}", found["rss_max_with_merges_mib"], "MiB", "less")


def measure_paced(plan: Plan) -> Iterator[Row]:
    """Latencies at a pace that leaves room, and what small batches at a modest pace take."""
    found = ingest.measure(CALM, plan.seconds)
    for key, unit in (
        ("ack_p50_ms", "ms"), ("ack_p99_ms", "ms"), ("commit_p50_ms", "ms"), ("commit_p99_ms", "ms"),
        ("queryable_p50_s", "s"), ("queryable_p99_s", "s"),
    ):  # fmt: skip
        what, q, _ = key.split("_")
        yield Row(f"{what}, {q}, {CALM.rate:,.0f} spans/s", found[key], unit, "less")
    found = ingest.measure(SMALL, 5 * plan.seconds)
    name = f"{SMALL.rate:,.0f} spans/s in requests of {SMALL.spans_per_request}"
    yield Row(f"{name}, share of a core", found["cores"], "cores", "less")
    yield Row(f"{name}, peak memory", found["rss_max_mib"], "MiB", "less")


def measure_idle(plan: Plan) -> Iterator[Row]:
    """A collector to which nothing is sent."""
    with tempfile.TemporaryDirectory() as folder:
        found = process.idle(Path(folder), plan.idle_seconds)
    yield Row("start to ready", found["ready_seconds"], "s", "less")
    yield Row("idle, memory", found["rss_mib"], "MiB", "less")
    yield Row("idle, share of a core", found["cores"], "cores", "less")


def measure_stored(plan: Plan) -> Iterator[Row]:
    """Merges, rollups and queries for each number of stored spans."""
    for size in plan.sizes:
        with tempfile.TemporaryDirectory() as folder:
            location = Location(Path(folder) / "data")
            location.prepare()
            sizes = stored.fill(location, size, is_sorted=True)
            name = f"{size:,} stored"
            yield Row(f"merges, {name}", sizes["spans merged per CPU-second"], UNIT, "more", PARQUET)
            yield Row(f"longest merge, {name}", sizes["longest merge, s"], "s", "less")
            yield Row(f"size, {name}", sizes["bytes a span"], "bytes/span", "less")
            for query, taken in queries.queries(location).items():
                yield Row(f"{query}, {name}", taken["median ms"], "ms", "less")
                yield Row(f"{query}, worst, {name}", taken["worst ms"], "ms", "less")
        yield Row(f"rollup, all sets, {name}", rolled_up(size), UNIT, "more", DUCKDB)


def rolled_up(size: int) -> float:
    """Spans per CPU-second of rolling so many up, read and commits included."""
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder) / "data")
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake, Config())
            rollup.store(lake, size, [], seed=1)
            seconds, done = rollup.cpu(lambda: jobs.roll_up(lake, Config(), threading.Event()))
    return done.spans / seconds


STEPS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "baselines": measure_baselines,
    "ingest": measure_ingest,
    "paced": measure_paced,
    "idle": measure_idle,
    "stored": measure_stored,
}
ONCE = ("stored",)
"""What takes long and repeats its queries itself."""


def run(plan: Plan, steps: tuple[str, ...]) -> list[Row]:
    """The rows of these steps, the baselines first."""
    rows: list[Row] = []
    for name, step in STEPS.items():
        if name not in (*steps, "baselines"):
            continue
        print(f"measuring: {name}", file=sys.stderr)
        runs = [list(step(plan)) for _ in range(1 if name in ONCE else plan.runs)]
        rows += [median_row(same) for same in zip(*runs, strict=True)]
    return with_ratios(rows)


def main() -> None:
    """Print the table; write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="longer, three times, with the spread")
    parser.add_argument("--sizes", nargs="+", default=["1e6"], help="numbers of stored spans, such as 1e6")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=tuple(STEPS), help="these steps alone")
    parser.add_argument("--json", type=Path, help="where the figures go too")
    options = parser.parse_args()
    plan = FULL if options.full else QUICK
    sizes = tuple(int(float(size)) for size in options.sizes)
    about = describe() | {"bench": "full" if options.full else "quick"}
    rows = run(Plan(**vars(plan) | {"sizes": sizes}), tuple(options.only))
    print(table(rows))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(as_json(rows, about), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
