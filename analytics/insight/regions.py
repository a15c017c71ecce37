"""A region that stands out, against the other regions in the same minutes: tenant by tenant, operation by operation.

Cochran-Mantel-Haenszel with tenant and operation as strata (Mantel and Haenszel 1959), so that who is there does not
pass for how well it goes: of errors, and of spans longer than the other regions' 95th percentile of the same operation
(a quantile test, after Mood, "Introduction to the Theory of Statistics", 1950). p values are corrected over all regions
compared in the same look (Benjamini and Hochberg 1995). It is said with the finding, whether the others do as badly or
not: what goes wrong everywhere alike is not the region's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analytics.insight import telling
from analytics.insight.finding import Finding
from analytics.insight.measures import Bools, Floats, summed
from analytics.insight.panel import Panel
from analytics.insight.scene import Scene

EVENTS = {"region_slow": "a slow span", "latency": "a slow span", "region_errors": "an error", "errors": "an error"}
OPERATION = ("service_name", "component", "operation", "kind")
_QUANTILE = 0.95


@dataclass(frozen=True)
class Against:
    """The odds of an event in a region, to those in all others (common odds ratio), its 95 % interval, and p."""

    odds: float
    low: float
    high: float
    p: float


def with_others(scene: Scene, found: list[Finding]) -> list[Finding]:
    """`found`, those of a region of the kinds of EVENTS with one phrase more in `baselines`: against other regions."""
    compared = {id(one): against_others(scene, one) for one in found if _is_regional(one)}
    known = {key: value for key, value in compared.items() if value is not None}
    if not known:
        return found
    corrected = dict(zip(known, multipletests([value.p for value in known.values()], method="fdr_bh")[1], strict=True))
    return [
        replace(one, baselines=(*one.baselines, _phrase(one, known[id(one)], float(corrected[id(one)]), len(known))))
        if id(one) in known
        else one
        for one in found
    ]


def against_others(scene: Scene, finding: Finding) -> Against | None:
    """The region of a finding against all others since it began, at its service and operation; None where no stratum
    has both."""
    panel = scene.panel("base")
    wanted = {"service_name": finding.service, "operation": finding.operation}
    which = telling.every({name: value for name, value in wanted.items() if value}, panel.keys)
    here = (panel.keys["region"] == finding.region).to_numpy()
    begun = int((finding.since.replace(tzinfo=None) - scene.span.start).total_seconds() // 60)
    first = min(max(begun, 0), scene.span.count - 1)
    if finding.kind in ("errors", "region_errors"):
        events = panel.counts["errors"][:, first:].sum(1)
    else:
        events = panel.beyond(_usual_elsewhere(panel, which & ~here, first))[:, first:].sum(1)
    trials = panel.counts["count"][:, first:].sum(1)
    keys, of = panel.groups(("tenant", *OPERATION))
    sides = [
        [summed((array * side)[:, None].astype(float), of, keys.height)[:, 0] for side in (which & here, which & ~here)]
        for array in (events, trials)
    ]
    pairs = [np.stack(side, axis=1) for side in sides]
    if not ((pairs[1] > 0).all(1) & (pairs[0].sum(1) > 0)).any():
        return None
    p, odds, low, high = telling.stratified_test(*pairs)
    return Against(odds, low, high, p)


def _usual_elsewhere(panel: Panel, elsewhere: Bools, first: int) -> Floats:
    """For each series the cell of its operation's _QUANTILE among the series `elsewhere`, from minute `first` on."""
    keys, of = panel.groups(OPERATION)
    spread = panel.spreads(np.where(elsewhere, of, -1), keys.height, slice(first, None))
    up_to = np.cumsum(spread, axis=1)
    found: Floats = (up_to < _QUANTILE * up_to[:, -1:]).sum(axis=1).astype(float)[of]
    return found


def _is_regional(finding: Finding) -> bool:
    return finding.kind in EVENTS and finding.region is not None and finding.tenant_scope is None


def _phrase(finding: Finding, found: Against, p: float, family: int) -> str:
    probability = f"p {p:.2g}" if p else "p below 1e-300"
    return (
        f"other regions: {found.odds:.2g} times their odds of {EVENTS[finding.kind]} ({found.low:.2g} to "
        f"{found.high:.2g}) at the same tenant and operation, {probability} corrected over {family}"
    )


def family(found: list[Finding]) -> list[Finding]:
    """`found` with p_corrected at least that of their exact test's p over all findings that the same test was made for
    (Benjamini and Hochberg 1995)."""
    tests = pl.DataFrame(
        {
            "at": range(len(found)),
            "test": [one.confidence.test.split(",")[0].split(":")[0] for one in found],
            "p": [one.confidence.p for one in found],
        },
        schema={"at": pl.Int64, "test": pl.String, "p": pl.Float64},
    ).drop_nulls("p")
    corrected: dict[int, float] = {}
    for _, part in tests.group_by("test", maintain_order=True):
        values = multipletests(part["p"].to_numpy(), method="fdr_bh")[1]
        corrected |= {int(at): float(value) for at, value in zip(part["at"], values, strict=True)}
    return [
        replace(
            one, confidence=replace(one.confidence, p_corrected=max(one.confidence.p_corrected or 0.0, corrected[at]))
        )
        if at in corrected
        else one
        for at, one in enumerate(found)
    ]
