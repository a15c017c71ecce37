"""`python -m benchmarks.evaluate`: see `docs/evaluation.md`."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine
from benchmarks.evaluate.matching import RULES
from benchmarks.evaluate.scoring import Result, Row, misses, table
from benchmarks.evaluate.seeds import Plan, run_seed

KINDS = (*RULES, "quiet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios of the seeds asked for and print the table; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.evaluate", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=_seeds, default=range(1, 6), metavar="A-B", help="1000-1999 are for judging only (1-5)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)} (all)")
    add("--factor", type=float, help="effect size of all incidents, instead of one drawn for each")
    add("--rate", type=float, default=200.0, help="mean operations a second, of about 3.7 spans each (200)")
    add("--history-minutes", type=int, default=75, help="before each incident (75)")
    add("--quiet-minutes", type=int, default=120, help="quiet time a seed, after the history (120)")
    add("--jobs", type=int, default=os.cpu_count(), help="processes (one a core)")
    add("--output", type=Path, metavar="FILE", help="write the results there as JSON, too")
    add("--misses", type=Path, metavar="FILE", help="write there what went wrong, a line each")
    options = parser.parse_args(argv)
    os.environ["POLARS_MAX_THREADS"] = "1"  # for the processes that are started: there are as many as cores
    began = time.monotonic()
    plans = [
        Plan(
            seed=seed,
            kinds=part,
            factor=options.factor,
            operations_per_second=options.rate,
            history_minutes=options.history_minutes,
            quiet_minutes=options.quiet_minutes,
        )
        for seed in options.seeds
        # Two parts a seed, so that few seeds, too, keep all cores busy to the end.
        for part in (tuple(options.kinds[::2]), tuple(options.kinds[1::2]))
        if part
    ]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        results = [result for found in pool.map(run_seed, plans) for result in found]
    results.sort(key=lambda result: (KINDS.index(result.kind), result.seed))
    _report(results, options, time.monotonic() - began)
    return 0


def _report(results: Sequence[Result], options: argparse.Namespace, seconds: float) -> None:
    rows = table(results)
    print(markdown(rows))
    cpu = sum(r.cpu_seconds_per_minute for r in results) / len(results)
    about = machine.describe() | {
        "seeds": [options.seeds[0], options.seeds[-1]],
        "operations_per_second": options.rate,
        "history_minutes": options.history_minutes,
        "took_seconds": round(seconds),
        "engine_cpu_seconds_per_minute": round(cpu, 3),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if options.misses:
        options.misses.write_text("\n".join(misses(results)) + "\n")
    if options.output:
        content = {"about": about, "table": [asdict(row) for row in rows], "scenarios": [scenario(r) for r in results]}
        options.output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def scenario(result: Result) -> dict[str, object]:
    """A scenario as `--output` has it; `together.result` reads it."""
    values = asdict(result)
    truth = result.truth
    return values | {"truth": truth and truth.as_json()}


def markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    heads = (
        "kind", "scenarios", "recall", "precision", "minutes to detect: median", "p90", "ranked first", "right place",
        "right tenants", "findings each", "false alarms", "per quiet day",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, asdict(row).values()))} |" for row in rows)])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"seeds are {text!r}, expected such as 1-5 or 1000-1004")
    return seeds


if __name__ == "__main__":
    sys.exit(main())
