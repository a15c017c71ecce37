"""`python -m benchmarks.evaluate.calibration`: how often quiet traffic looks improbable, by the p that tells findings.

Every few minutes of a quiet time, all places that `places`, `hosts` and `lookups` look at are scanned: how many scans
find a p up to 1e-3, 1e-4, ..., and how many a sum of six standard deviations, of which a normal distribution has one
in a thousand million. Were p right, and every scan one test, as many as `by p` says would be there; a scan makes up to
five tests, and leaves out sums that are not high throughout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
import polars as pl

from analytics.insight import hosts, lookups, places
from analytics.insight.measures import Floats
from analytics.insight.scene import Scene
from benchmarks.evaluate.scenarios import Platforms
from collector.config import InsightConfig

LIMITS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
DEVIATIONS = 6.0


def main(argv: Sequence[str] | None = None) -> int:
    """Scan quiet times of the seeds asked for and print a table; the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.evaluate.calibration", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], metavar="SEED", help="below 1000 (1 2)")
    parser.add_argument("--minutes", type=int, default=230, help="quiet time a seed, after the history (230)")
    parser.add_argument("--every", type=int, default=4, help="minutes between looks (4)")
    parser.add_argument("--rate", type=float, default=200.0, help="mean operations a second (200)")
    options = parser.parse_args(argv)
    found = pl.concat(
        [
            looked
            for seed in options.seeds
            for looked in _of_seed(Platforms(seed, options.rate, 75), options.minutes, options.every)
        ]
    )
    print(markdown(found))
    return 0


def _of_seed(platforms: Platforms, minutes: int, every: int) -> Iterator[pl.DataFrame]:
    config = InsightConfig()
    quiet = platforms.quiet(minutes)
    for until in quiet.minutes[::every]:
        known = quiet.evidence.between(until - timedelta(minutes=config.history_minutes), until)
        yield scans(Scene(known, until, config))


def scans(scene: Scene) -> pl.DataFrame:
    """Scans of all places with enough to tell of: `measure`, `level`, `p` and `z`."""
    parts = []
    for measure, level, p, z, trials in _levels(scene):
        told = trials >= scene.config.volume_min
        names = {"measure": pl.lit(measure), "level": pl.lit(level)}
        parts.append(pl.DataFrame({"p": p[told], "z": z[told]}).with_columns(**names))
    return pl.concat(parts)


def _levels(scene: Scene) -> Iterator[tuple[str, str, Floats, Floats, Floats]]:
    wanted: list[tuple[str, str, Sequence[str]]] = [
        ("base", what, by) for what in ("slow", "very_slow", "errors") for by in places.LEVELS
    ]
    wanted += [("host", what, hosts.BY) for what in ("slow", "very_slow", "errors")]
    wanted += [("destination", "misses", by) for by in lookups.LEVELS]
    for name, what, by in wanted:
        scan = scene.level(name, what, by).scan
        yield what, " ".join(by), scan.p, scan.z, scan.trials


def markdown(found: pl.DataFrame) -> str:
    """A row a measure and level: scans, and how many of them find each of LIMITS, over how many it would be by p."""
    heads = ("measure", "level", "scans", *(f"p <= {limit:g} (by p)" for limit in LIMITS), f"z >= {DEVIATIONS:g}")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (measure, level), part in found.group_by("measure", "level", maintain_order=True):
        counts = [int((part["p"] <= limit).sum()) for limit in LIMITS]
        cells = [f"{count} ({limit * part.height:.2g})" for count, limit in zip(counts, LIMITS, strict=True)]
        striking = int((part["z"] >= DEVIATIONS).sum())
        lines.append(f"| {measure} | {level} | {part.height} | {' | '.join(cells)} | {striking} |")
    smallest = float(np.min(found["p"].to_numpy()))
    return "\n".join([*lines, f"smallest p {smallest:.1e} of {found.height} scans"])


if __name__ == "__main__":
    sys.exit(main())
