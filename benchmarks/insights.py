"""Insight: CPU and memory of a run over many tenants, and of explaining a selection of millions of spans.

    python -m benchmarks.insights [--tenants 1000] [--regions 6] [--operations 20] [--minutes 180] [--spans 5000000]

A run: `findings` on evidence of so many minutes, in which each tenant uses one to three regions, with Zipf-like traffic
(counts by minute are Poisson; series without spans in a minute have no row, as in the rollups). An increment: joining
one more minute to the evidence; reading it is not in it. CPU of this process, all threads; peak of resident memory.
Explain: over a lake of so many spans, as `spanlake explain` asks it.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from analytics import jobs
from analytics.insight.engine import findings
from analytics.insight.evidence import BASE, CELLS_SCHEMA, HOST, ROWS_SCHEMA, VERSION, Evidence, Grain
from analytics.insight.explaining import explain
from analytics.window import Window
from benchmarks.rollup import SPANS_PER_SECOND, START_NS, spans
from collector.config import InsightConfig, QueryConfig
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.sandbox import open_sandbox
from collector.lake.segments import write_segment

START = datetime(2026, 3, 1, tzinfo=UTC)
SPANS_A_MINUTE = 600_000
HOSTS = 20
Result = TypeVar("Result")


def grain(dimensions: tuple[str, ...], keys: pl.DataFrame, weight: np.ndarray, minutes: range, seed: int) -> Grain:
    """Counts of a minute and series by Poisson, and durations in about four cells each."""
    rng = np.random.default_rng(seed)
    share = weight / weight.sum() * SPANS_A_MINUTE
    rows, cells = [], []
    for minute in minutes:
        count = rng.poisson(share)
        series = np.flatnonzero(count)
        n = count[series]
        at = START.replace(tzinfo=None) + minute * timedelta(minutes=1)
        rows.append(
            pl.DataFrame({"minute": [at] * len(series), "series": series, "count": n, "errors": rng.binomial(n, 0.002)})
        )
        each = np.repeat(series, np.minimum(n, 4))
        cells.append(
            pl.DataFrame(
                {
                    "minute": [at] * len(each),
                    "series": each,
                    "cell": rng.normal(90, 4, len(each)).astype(int),
                    "spans": np.repeat(-(-n // np.minimum(n, 4)), np.minimum(n, 4)),
                }
            )
        )
    counted = pl.concat(rows).with_columns(
        hits=pl.lit(0), misses=pl.lit(0), busy_ns=pl.col("count") * 1_000_000, unknown_weight_count=pl.lit(0)
    )
    return Grain(
        dimensions,
        keys,
        counted.select(ROWS_SCHEMA.names()).cast(dict(ROWS_SCHEMA)),
        pl.concat(cells).cast(dict(CELLS_SCHEMA)),
    )


def evidence(tenants: int, regions: int, operations: int, minutes: range) -> Evidence:
    """Grains base, host and version of one platform."""
    rng = np.random.default_rng(1)
    size = 1 / np.arange(1, tenants + 1)
    places = [(t, r) for t in range(tenants) for r in rng.choice(regions, rng.integers(1, 4), replace=False)]
    base = [(f"r{r}", f"t{t}", f"s{o % 5}", "rpc", f"op{o}", "server") for t, r in places for o in range(operations)]
    weight = np.array([size[t] / (1 + o) for t, _ in places for o in range(operations)])
    host = [(f"r{r}", f"h{r}-{h}", f"t{t}", f"s{h % 5}", "server") for t, r in places for h in range(HOSTS)]
    host_weight = np.array([size[t] for t, _ in places for _ in range(HOSTS)])
    version = [(f"r{r}", f"s{o % 5}", "1", f"i{h}", f"op{o}", "server")
               for r in range(regions) for h in range(HOSTS) for o in range(operations)]  # fmt: skip

    def frame(rows: list[tuple[str, ...]], names: tuple[str, ...]) -> pl.DataFrame:
        return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String()), orient="row")

    empty = Evidence.empty()
    return Evidence(
        grain(BASE, frame(base, BASE), weight, minutes, 2),
        grain(HOST, frame(host, HOST), host_weight, minutes, 3),
        grain(VERSION, frame(version, VERSION), np.ones(len(version)), minutes, 4),
        *(value for name, value in vars(empty).items() if name not in ("base", "host", "version")),
    )


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
            found, took = timed(lambda: explain(sandbox, window, "duration_ns > 5000000"))
        return {"spans": count, "rows": found.height, **took}


def main() -> None:
    """Print figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("tenants", 1000),
        ("regions", 6),
        ("operations", 20),
        ("minutes", 180),
        ("spans", 5_000_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    known = evidence(asked.tenants, asked.regions, asked.operations, range(asked.minutes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = START + timedelta(minutes=asked.minutes)
    config = InsightConfig(history_minutes=asked.minutes)
    found, took = timed(lambda: findings(known, end, timedelta(minutes=15), config))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({
        "run": {"series": known.base.keys.height, "rows": known.base.rows.height, "cells": known.base.cells.height,
                "findings": len(found), **took, "mib_before": before / 1024, "mib_peak": after / 1024},
    }), flush=True)  # fmt: skip
    new = evidence(asked.tenants, asked.regions, asked.operations, range(asked.minutes, asked.minutes + 1))
    _, took = timed(lambda: Evidence.concat([known.between(START + timedelta(minutes=1), end), new]))
    print(json.dumps({"increment": took}), flush=True)
    if asked.spans:
        print(json.dumps({"explain": explaining(asked.spans)}), flush=True)


if __name__ == "__main__":
    main()
