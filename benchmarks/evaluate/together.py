"""`python -m benchmarks.evaluate.together FILE...`: one table of several runs' `--output`, and what went wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.evaluate.__main__ import KINDS, markdown
from benchmarks.evaluate.scoring import Judged, Result, misses, table
from sample_data.incidents.truth import Truth


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of all files' scenarios together, then commits, silent minutes and misses; the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.evaluate.together", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by --output")
    contents = [json.loads(path.read_text()) for path in parser.parse_args(argv).files]
    results = [result(scenario) for content in contents for scenario in content["scenarios"]]
    results.sort(key=lambda one: (KINDS.index(one.kind), one.seed))
    print(markdown(table(results)))
    silent = [one for one in results if one.quiet_minutes]
    quiet = sum(one.quiet_minutes for one in silent if one.kind == "quiet")
    commits = sorted({str(content["about"].get("commit")) for content in contents})
    print(
        f"commits {', '.join(commits)}; silent minutes {sum(one.quiet_minutes for one in silent)} (quiet: {quiet}), "
        f"false alarms in them {sum(one.count('false') for one in silent)}"
    )
    print("\n".join(misses(results)))
    return 0


def result(scenario: Mapping[str, Any]) -> Result:
    """A scenario as `--output` has it."""
    told = tuple(Judged(**{**one, "at": datetime.fromisoformat(one["at"])}) for one in scenario["told"])
    known = scenario["truth"]
    return Result(**{**scenario, "told": told, "truth": None if known is None else _truth(known)})


def _truth(known: Mapping[str, Any]) -> Truth:
    names = {field.name for field in fields(Truth)}
    values: dict[str, Any] = {name: value for name, value in known.items() if name in names}
    values["tenants"] = tuple(known["tenants"])
    for name in ("start", "end"):
        values[f"{name}_second"] = int(datetime.fromisoformat(known[f"{name}_time"]).timestamp())
    return Truth(**values)


if __name__ == "__main__":
    sys.exit(main())
