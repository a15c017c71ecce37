"""What a run of the benchmarks found, as rows of a table and as JSON, and what changed between two of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

NOISE = 0.15
"""Part by which a figure of one run may be off on a quiet machine; rows of several runs tell their own spread."""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure. `baseline` names the row that it is to be seen in proportion to: `ratio` is this one to that.

    `spread` is half of the distance between the largest and the smallest of several runs, as a part of the figure.
    """

    name: str
    value: float
    unit: str
    better: Literal["more", "less"]
    baseline: str = ""
    ratio: float | None = None
    spread: float = 0.0


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the ratio to the baseline where that was measured too."""
    values = {row.name: row.value for row in rows}
    return [
        Row(**asdict(row) | {"ratio": row.value / values[row.baseline]}) if values.get(row.baseline) else row
        for row in rows
    ]


def median_row(runs: Sequence[Row]) -> Row:
    """One row of those of several runs: the median, and their spread."""
    ordered = sorted(runs, key=lambda row: row.value)
    middle = ordered[len(ordered) // 2]
    spread = (ordered[-1].value - ordered[0].value) / 2 / middle.value if middle.value else 0.0
    return Row(**asdict(middle) | {"spread": spread})


def as_json(rows: Sequence[Row], about: Mapping[str, object]) -> dict[str, Any]:
    """A run as JSON: `about` says machine, versions, date and commit."""
    return {"about": dict(about), "rows": [asdict(row) for row in rows]}


def from_json(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a run. Raises ValueError where it is not one."""
    try:
        return [Row(**row) for row in document["rows"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the JSON of a benchmark run ({error}); make one with `make bench JSON=FILE`") from error


def table(rows: Sequence[Row]) -> str:
    """Text for people."""
    width = max((len(row.name) for row in rows), default=0)
    lines = []
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:8.2f} x {row.baseline}"
        spread = f" ±{row.spread:4.0%}" if row.spread else "      "
        lines.append(f"{row.name:{width}} {shown(row.value):>12} {row.unit:12}{spread}{ratio}".rstrip())
    return "\n".join(lines)


def shown(value: float) -> str:
    """Three or more digits, without a fraction that says nothing."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in two runs: `factor` is the second to the first, seen in proportion to their baselines where both
    have one, so that a slower machine alone changes nothing. `verdict`: better, worse, or "" within `noise`.
    """

    name: str
    before: float
    after: float
    factor: float
    noise: float
    verdict: Literal["better", "worse", ""]


def changes(before: Sequence[Row], after: Sequence[Row]) -> list[Change]:
    """What changed, for rows of both runs, in the order of the second."""
    old = {row.name: row for row in before}
    return [_change(old[row.name], row) for row in after if row.name in old and old[row.name].unit == row.unit]


def _change(a: Row, b: Row) -> Change:
    first, second = (a.ratio, b.ratio) if a.ratio and b.ratio and a.baseline == b.baseline else (a.value, b.value)
    factor = second / first if first else (1.0 if first == second else math.inf)
    noise = max(NOISE, a.spread + b.spread)
    verdict: Literal["better", "worse", ""] = ""
    if max(factor, 1 / factor if factor else math.inf) > 1 + noise:
        verdict = "better" if (factor > 1) == (b.better == "more") else "worse"
    return Change(b.name, a.value, b.value, factor, noise, verdict)


def changes_table(found: Sequence[Change], only_in: Mapping[str, Sequence[str]]) -> str:
    """Text for people; `only_in` names rows that one of the runs does not have."""
    width = max((len(change.name) for change in found), default=0)
    lines = []
    for c in found:
        figures = f"{c.name:{width}} {shown(c.before):>12} {shown(c.after):>12} {c.factor:7.2f} x"
        lines.append(f"{figures}  noise {c.noise:4.0%}  {c.verdict}".rstrip())
    lines += [f"only in {run}: {', '.join(names)}" for run, names in only_in.items() if names]
    return "\n".join(lines)
