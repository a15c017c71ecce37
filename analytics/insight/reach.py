"""Who is hurt by a finding: of its tenants, of the traffic at its place, and of each tenant's operations.

A tenant, or one of its operations, is hurt where it has clearly more events (slow spans, errors, misses, as the
finding has it) since the finding began than its own baseline lets expect: the larger p of a Poisson test and of one
that takes the usual scale of its deviations in, corrected over all that were tested there (Benjamini and Hochberg
1995), and at least _RATIO_MIN times as many. Shares come with Wilson's interval (Wilson 1927). A tenant with fewer than
_TRIALS_MIN spans is not active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from analytics.insight import baselines, telling
from analytics.insight.finding import Finding, Reach, Share
from analytics.insight.locating import effective_number
from analytics.insight.measures import Bools, Floats, Measure, Rated
from analytics.insight.panel import Panel
from analytics.insight.scene import Scene

_MEASURES: Mapping[str, str] = {
    "errors": "errors", "region_errors": "errors", "retry_storm": "errors", "hit_ratio": "misses",
    "error_rate": "errors", "miss_ratio": "misses", "tenants_errors_share": "errors", "tenants_slow_share": "slow",
    "latency": "slow", "region_slow": "slow", "instance": "slow", "noisy_neighbour": "slow", "exhaustion": "slow",
    "deploy": "slow", "burst": "slow", "hot_key": "slow", "slo_burn": "slow",
}  # fmt: skip
"""What counts as being hurt, by kind of finding, or by the measure of its effect where that says more."""
_FALSE_DISCOVERY_RATE = 0.01
_RATIO_MIN = 1.3
_TRIALS_MIN = 20
_OPERATIONS_OF_TENANTS_MAX = 20


@dataclass(frozen=True)
class Hurt:
    """Groups of series: `keys` a row each; which are active, which hurt, their excess and their spans."""

    keys: pl.DataFrame
    active: Bools
    hurt: Bools
    excess: Floats
    spans: Floats


def with_reach(scene: Scene, finding: Finding) -> Finding:
    """`finding` with `who` is hurt at its place since it began; as it is where that is not known of its kind."""
    what = _MEASURES.get(finding.effect.measure) or _MEASURES.get(finding.kind)
    name = "destination" if what == "misses" else "host" if finding.host else "base"
    if what is None or (name == "base" and finding.destination) or (name == "host" and what == "errors"):
        return finding
    panel = scene.panel(name)
    place = finding.place
    wanted = {
        "region": place.region, "service_name": place.service, "operation": place.operation, "host": place.host,
        "destination": place.destination,
    }  # fmt: skip
    which = telling.every({key: text for key, text in wanted.items() if text and key in panel.keys.columns}, panel.keys)
    if not which.any():
        return finding
    since = scene.span.index(pl.Series([finding.since.replace(tzinfo=None)]).cast(pl.Datetime("us")))[0]
    first = int(np.clip(since, 0, scene.span.count - 1))
    return replace(finding, who=reach(panel, scene.measure(name, what), which, first))


def reach(panel: Panel, measure: Measure | Rated, which: Bools, since: int) -> Reach:
    """Who is hurt among the series `which` of a panel that has tenants, from minute `since` on."""
    tenants = hurt(panel, measure, which, since, ("tenant",))
    spans = float(tenants.spans[tenants.active].sum())
    of_hurt = float(tenants.spans[tenants.hurt].sum())
    operations: tuple[tuple[str, Share], ...] = ()
    if "operation" in panel.keys.columns and tenants.hurt.any():
        operations = tuple(_operations(panel, measure, which, since, tenants))
    return Reach(
        share_of(int(tenants.hurt.sum()), int(tenants.active.sum())), share_of(int(of_hurt), int(spans)),
        effective_number(np.where(tenants.hurt, tenants.excess, 0.0)), operations,
    )  # fmt: skip


def _operations(
    panel: Panel, measure: Measure | Rated, which: Bools, since: int, tenants: Hurt
) -> list[tuple[str, Share]]:
    order = [int(index) for index in np.argsort(-tenants.excess) if tenants.hurt[index]]
    names = tenants.keys["tenant"].gather(order[:_OPERATIONS_OF_TENANTS_MAX]).to_list()
    mine = which & panel.keys["tenant"].is_in(names).to_numpy()
    by = [name for name in ("tenant", "service_name", "operation") if name in panel.keys.columns]
    found = hurt(panel, measure, mine, since, by)
    counted = (
        found.keys.select("tenant")
        .with_columns(active=pl.Series(found.active), hurt=pl.Series(found.hurt))
        .group_by("tenant")
        .agg(pl.col("active", "hurt").sum())
    )
    shares = {tenant: share_of(bad, active) for tenant, active, bad in counted.iter_rows()}
    return [(name, shares[name]) for name in names]


def hurt(panel: Panel, measure: Measure | Rated, which: Bools, since: int, by: Sequence[str]) -> Hurt:
    """Which values of `by`, among the series `which`, are hurt from minute `since` on."""
    keys = panel.keys.filter(pl.Series(which)).select(by)
    groups = keys.unique().sort(by, nulls_last=True)
    of = keys.join(groups.with_row_index("group"), on=list(by), how="left", maintain_order="left", nulls_equal=True)
    stretch = measure.rows(which).by(of["group"].to_numpy().astype(np.intp), groups.height)
    observed, expected, _, spans = (array[:, since:].sum(1, dtype=float) for array in stretch.arrays())
    active = spans >= _TRIALS_MIN
    scale = baselines.scan(stretch, panel.span).scale
    z = (observed - expected - 0.5) / (scale * np.sqrt(np.maximum(expected, 0.25)))
    p = np.maximum(stats.poisson.sf(observed - 1, np.maximum(expected, 1e-9)), stats.norm.sf(z))
    clearly = np.zeros(len(p), dtype=bool)
    if active.any():
        clearly[active] = multipletests(p[active], alpha=_FALSE_DISCOVERY_RATE, method="fdr_bh")[0]
    return Hurt(groups, active, clearly & (observed > _RATIO_MIN * expected), observed - expected, spans)


def share_of(part: int, whole: int) -> Share:
    """A share with Wilson's interval; of nothing it is 0, and nothing is known."""
    if whole <= 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    low, high = proportion_confint(part, whole, method="wilson")
    return Share(part, whole, part / whole, float(low), float(high))
