"""All scenarios of one seed, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evaluate.live import Live
from benchmarks.evaluate.scenarios import Platforms
from benchmarks.evaluate.scoring import Result, judge, misses
from collector.config import InsightConfig

WARM_UP_MINUTES = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run with a seed; a `factor` of None is drawn for each incident."""

    seed: int
    kinds: Sequence[str]
    factor: float | None
    operations_per_second: float
    history_minutes: int
    quiet_minutes: int


def run_seed(plan: Plan) -> list[Result]:
    """Judge a scenario of each kind; progress goes to stderr.

    What is open when the incident begins, after WARM_UP_MINUTES of looking, is nobody's success or failure; `quiet`
    counts it.
    """
    platforms = Platforms(plan.seed, plan.operations_per_second, plan.history_minutes)
    live, last = Live(InsightConfig()), platforms.history_minutes
    warm_up = live.run(platforms.before, platforms.minutes(last - WARM_UP_MINUTES, last))
    known = {finding.identity for minute in warm_up for finding in minute.told}
    results = []
    for kind in plan.kinds:
        if kind == "quiet":
            scenario = platforms.quiet(plan.quiet_minutes)
            minutes = warm_up + live.fork().run(scenario.evidence, scenario.minutes)
            results.append(judge(kind, plan.seed, None, minutes))
        else:
            scenario = platforms.with_incident(kind, plan.factor)
            minutes = live.fork().run(scenario.evidence, scenario.minutes)
            results.append(judge(kind, plan.seed, scenario.truth, minutes, known))
        print(progress(results[-1]), file=sys.stderr, flush=True)
    return results


def progress(result: Result) -> str:
    """What came of a scenario, in a few lines."""
    found = f"told after {result.minutes_to_detect} min, rank {result.rank}" if result.detected else "no cause told"
    about = f"{len(result.told)} findings, {result.cpu_seconds_per_minute:.2f} s of CPU a minute"
    return "\n".join([f"{result.kind} seed={result.seed}: {found}, {about}", *misses([result])])
