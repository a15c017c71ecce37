"""From what was told in a scenario to figures, and from figures of many scenarios to a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from benchmarks.evaluate.live import Minute
from benchmarks.evaluate.matching import AFTERMATH, RULES, Verdict, names_place, names_tenant, verdict
from sample_data.incidents.truth import Truth

LARGE_FACTOR = 2.0
"""Effect size from which on an incident counts for the goals."""
GROWING = frozenset({"leak"})
"""Incidents whose effect grows exponentially from nothing to its size at their end; all others begin with a step."""
_LARGE = f"of these, {LARGE_FACTOR:.0f}x and more"


@dataclass(frozen=True, slots=True)
class Judged:
    """A finding that was told in a scenario: when first, what it is to the incident, and its sentence."""

    at: datetime
    kind: str
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Result:
    """One scenario. `minutes_to_detect` and what follows are None where the cause was not told.

    `minutes_to_detect`: whole minutes from the start to when it was first told. `rank`: median, over the minutes of
    the incident at which it was told, of its place in the list, 1 the first. `right_place`, `right_tenant`: of the
    highest cause of the last such minute. `quiet_minutes`: minutes that had to stay silent.
    """

    kind: str
    seed: int
    truth: Truth | None
    told: tuple[Judged, ...]
    quiet_minutes: int
    cpu_seconds_per_minute: float
    minutes_to_detect: float | None = None
    rank: float | None = None
    right_place: bool | None = None
    right_tenant: bool | None = None

    @property
    def detected(self) -> bool:
        """Whether the cause was told at all."""
        return self.minutes_to_detect is not None

    @property
    def size_when_told(self) -> float | None:
        """Of GROWING: how many times the usual it was when its cause was first told, at most its size at the end."""
        if self.truth is None or self.minutes_to_detect is None or self.kind not in GROWING:
            return None
        lasts = (self.truth.end_second - self.truth.start_second) / 60
        size: float = self.truth.factor ** min(self.minutes_to_detect / lasts, 1.0)
        return size

    def count(self, *verdicts: Verdict) -> int:
        """How many findings are of these verdicts."""
        return sum(one.verdict in verdicts for one in self.told)


@dataclass(frozen=True)
class Row:
    """A kind's scenarios together. Figures that nothing was measured for are None; times are in minutes.

    `precision`: share of findings that are cause or symptom. `first`: share of scenarios whose cause was the first of
    the list in the median minute. `false_per_day`: false alarms for 24 hours of minutes that had to be silent.
    """

    kind: str
    scenarios: int
    recall: float | None
    precision: float | None
    detect_median: float | None
    detect_p90: float | None
    first: float | None
    right_place: float | None
    right_tenant: float | None
    findings_per_incident: float
    false_alarms: int
    false_per_day: float | None


def judge(kind: str, seed: int, truth: Truth | None, minutes: Sequence[Minute], known: Iterable[str] = ()) -> Result:
    """Judge a scenario's minutes; `known` are identities that were open before it began, and are not counted."""
    seen, told = set(known), []
    for minute in minutes:
        for finding in minute.told:
            if finding.identity not in seen:
                seen.add(finding.identity)
                told.append(Judged(minute.at, finding.kind, verdict(finding, minute.at, truth), finding.sentence))
    expects = truth is not None and bool(RULES[truth.kind].causes)
    quiet = 0 if expects else len(minutes)
    cpu = sum(minute.seconds for minute in minutes) / max(1, len(minutes))
    result = Result(kind, seed, truth, tuple(told), quiet, cpu)
    return _detection(result, truth, minutes) if truth is not None and expects else result


def _detection(result: Result, truth: Truth, minutes: Sequence[Minute]) -> Result:
    ranks = []
    first: datetime | None = None
    best = None
    for minute in minutes:
        places = [i for i, f in enumerate(minute.told) if verdict(f, minute.at, truth) == "cause"]
        if places:
            first = first or minute.at
            best = minute.told[places[0]]
            ranks.append(places[0] + 1)
    if first is None or best is None:
        return result
    waited = timedelta(seconds=first.timestamp() - truth.start_second)
    return Result(
        result.kind, result.seed, result.truth, result.told, result.quiet_minutes, result.cpu_seconds_per_minute,
        waited / timedelta(minutes=1), median(ranks), names_place(best, truth), names_tenant(best, truth),
    )  # fmt: skip


def table(results: Sequence[Result]) -> list[Row]:
    """A row a kind, in the order in which they come, one for all that have a cause, and one for the larger of these."""
    kinds = list(dict.fromkeys(result.kind for result in results))
    rows = [_row(kind, [r for r in results if r.kind == kind]) for kind in kinds]
    caused = [r for r in results if r.kind in RULES and RULES[r.kind].causes]
    large = [r for r in caused if r.truth is not None and r.truth.factor >= LARGE_FACTOR]
    return [*rows, *(_row(name, them) for name, them in (("all with a cause", caused), (_LARGE, large)) if them)]


def _row(kind: str, results: Sequence[Result]) -> Row:
    detected = [r for r in results if r.detected]
    waits = sorted(r.minutes_to_detect for r in detected if r.minutes_to_detect is not None)
    expected = [r for r in results if not r.quiet_minutes]
    quiet_days = sum(r.quiet_minutes for r in results) / (24 * 60)
    false = sum(r.count("false") for r in results)
    total = sum(len(r.told) for r in results)
    return Row(
        kind=kind,
        scenarios=len(results),
        recall=_share(len(detected), len(expected)),
        precision=_share(total - false, total) if expected else None,
        detect_median=median(waits) if waits else None,
        detect_p90=waits[math.ceil(0.9 * len(waits)) - 1] if waits else None,
        first=_share(sum(r.rank == 1 for r in detected), len(expected)),
        right_place=_share(sum(bool(r.right_place) for r in detected), len(detected)),
        right_tenant=_share(sum(bool(r.right_tenant) for r in detected), len(detected)),
        findings_per_incident=total / len(results),
        false_alarms=false,
        false_per_day=false / quiet_days if quiet_days else None,
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def misses(results: Sequence[Result]) -> list[str]:
    """What went wrong, a line each: causes not told, not first, or late, and false alarms."""
    lines = []
    for result in results:
        what = f"{result.kind} seed={result.seed}"
        if result.truth is not None and not result.quiet_minutes:
            where = {k: v for k, v in result.truth.as_json().items() if v and k not in ("tenants", "kind")}
            if not result.detected:
                lines.append(f"{what} MISSED: {where}")
            elif result.rank != 1:
                lines.append(f"{what} RANK {result.rank}: {where}")
            elif (result.minutes_to_detect or 0) > 3:
                size = result.size_when_told
                grown = f", when it was {size:.2g} times the usual" if size is not None else ""
                lines.append(f"{what} LATE {result.minutes_to_detect:.0f} min{grown}: {where}")
        lines += [
            f"{what} FALSE {one.at:%H:%M} {one.kind}: {one.sentence}" for one in result.told if one.verdict == "false"
        ]
    return lines


__all__ = ["AFTERMATH", "Judged", "Result", "Row", "judge", "misses", "table"]
