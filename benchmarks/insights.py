"""Insight: CPU and memory of a run over a lake of many tenants, of looking back over a window of it, and of explaining
a selection of millions of spans.

    POLARS_MAX_THREADS=1 python -m benchmarks.insights [--per-second 1000] [--hours 26] [--spans 5000000] [--lake DIR]

The lake is that of `benchmarks.insight_lake`. A run: as of the job's first minute, reading `insight.history_minutes` of
the rollups and judging them. Increments: reading one minute more, and judging, several times; then as many minutes at
once as are read again where all of them got late spans. In a process of its own, for what is resident and the peak of
it up to then; CPU of all its threads, by look and since the process began. Looking back: as `spanlake insights
--window` does, over all hours but the first two; all judged anew, then told of what a job has stored (see `tell`
there), each in a process of its own, whose CPU since it began is told too. Explain: the slowest in a hundred of so many
raw spans, as `spanlake explain` asks it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import psutil

from analytics import jobs
from analytics.insight.engine import findings
from analytics.insight.evidence import Evidence
from analytics.insight.explaining import explain
from analytics.insight.going_on import REREAD_MINUTES, Ongoing
from analytics.insight.looking_back import look_back
from analytics.window import MINUTE, Window
from benchmarks import insight_lake, process
from benchmarks.insight_lake import END
from benchmarks.rollup import SPANS_PER_SECOND, START_NS, spans
from collector.config import InsightConfig, QueryConfig
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.sandbox import open_sandbox
from collector.lake.segments import write_segment

INCREMENTS = 12
RECENT = timedelta(minutes=15)
HISTORY_HOURS = 2
Result = TypeVar("Result")


def measure(folder: Path) -> dict[str, object]:
    """A run and increments on the lake in a folder; in this process."""
    config = InsightConfig()
    ongoing = Ongoing(config.history_minutes)
    known = Evidence.empty()
    cpu_seconds: list[float] = []
    with Lake(Location(folder), read_only=False) as lake:

        def look(until: datetime) -> dict[str, object]:
            nonlocal known
            with lake.read() as reader:
                known, reading = timed(lambda: ongoing.until(reader, until))
            found, judging = timed(lambda: findings(known, until, RECENT, config))
            parts = {"reading": reading["cpu_seconds"], "judging": judging["cpu_seconds"]}
            cpu_seconds.append(sum(parts.values()))
            return {
                "findings": len(found),
                "cpu_seconds": parts | {"both": cpu_seconds[-1]},
                "seconds": reading["seconds"] + judging["seconds"],
                "process_cpu_seconds": time.process_time(),
                "resident_mib": process.rss_bytes(psutil.Process()) / 2**20,
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }

        run = look(END - (REREAD_MINUTES + 1 + INCREMENTS) * MINUTE) | _sizes(known)
        increments = [look(END - (REREAD_MINUTES + step) * MINUTE) for step in range(INCREMENTS, 0, -1)]
        each = cpu_seconds[1:]
        middle = {"least": min(each), "median": statistics.median(each), "most": max(each)}
        at_once = {f"increment_of_{REREAD_MINUTES + 1}_minutes": look(END)}
        return {"run": run, "increments": increments, "cpu_seconds_of_an_increment": middle, **at_once}


def _sizes(evidence: Evidence) -> dict[str, object]:
    grains = {name: getattr(evidence, name) for name in ("base", "host", "version", "destination", "error")}
    return {
        "rows": {name: one.rows.height for name, one in grains.items()},
        "series": {name: one.keys.height for name, one in grains.items()},
        "cells": {name: one.cells.height for name, one in grains.items()},
    }


def looking_back(folder: Path, hours: float, anew: bool) -> dict[str, object]:
    """Findings of a window of the lake in a folder; in this process."""
    window = Window(END - timedelta(hours=hours), END)
    with Lake(Location(folder), read_only=True, cache_files=False) as lake:
        answer, took = timed(lambda: look_back(lake, window, InsightConfig(), anew=anew))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"hours": hours, "minutes_judged_anew": sum(part.minutes for part in answer.anew)}
    used = {"process_cpu_seconds": time.process_time(), "peak_mib": peak / 1024}
    return {"look_back": {**figures, "findings": len(answer.found), **took, **used}}


def timed(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What `work` gives, and its seconds."""
    wall, cpu = time.monotonic(), time.process_time()
    result = work()
    return result, {"cpu_seconds": time.process_time() - cpu, "seconds": time.monotonic() - wall}


def explaining(count: int) -> dict[str, float]:
    """Explain the slow spans among `count`."""
    with tempfile.TemporaryDirectory() as folder:
        location = Location(Path(folder) / "data")
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake)
            step = 500_000
            for done in range(0, count, step):
                start = START_NS + done // SPANS_PER_SECOND * 10**9
                path = write_segment(
                    spans(min(step, count - done), done, start), lake.location.files / "main" / "spans"
                )
                with lake.write() as transaction:
                    transaction.add_files("spans", [path])
        begin = datetime.fromtimestamp(START_NS // 10**9, UTC)
        window = Window(begin, begin + timedelta(minutes=count // SPANS_PER_SECOND // 60 + 1))
        with open_sandbox(location, QueryConfig()) as sandbox:
            found, took = timed(lambda: explain(sandbox, window, "duration_ns > 7700000"))
        return {"spans": count, "rows": found.height, **took}


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=26)
    parser.add_argument("--spans", type=int, default=5_000_000)
    parser.add_argument("--lake", type=Path, metavar="DIR", help="Keep the lake here, and use what is there.")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--look-back", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure)))
        return
    if folder := asked.look_back or asked.told:
        print(json.dumps(looking_back(folder, asked.hours - HISTORY_HOURS, anew=folder == asked.look_back)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = asked.lake or Path(folder) / "data"
        if not data.exists():
            insight_lake.make(data, asked.per_second, asked.hours)
        for what in ("--measure", "--look-back", "--told")[: 3 if asked.hours > HISTORY_HOURS else 1]:
            if what == "--told":
                insight_lake.tell(data, asked.hours - HISTORY_HOURS)
            command = [sys.executable, "-m", "benchmarks.insights", what, str(data), "--hours", str(asked.hours)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)
    if asked.spans:
        print(json.dumps({"explain": explaining(asked.spans)}), flush=True)


if __name__ == "__main__":
    main()
