"""One look at the evidence: panels and expectations, computed once for all detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analytics.insight import baselines
from analytics.insight.baselines import Scan
from analytics.insight.evidence import Evidence, Grain
from analytics.insight.measures import Bools, Floats, Ints, Measure, Rated, Span, dense, summed
from analytics.insight.panel import Panel
from collector.config import InsightConfig

STRATA = {
    "base": ("region", "service_name", "component", "operation", "kind"),
    "host": ("region", "service_name", "kind"),
    "version": ("region", "service_name", "operation", "kind"),
    "destination": ("region", "component", "operation", "kind"),
}
_SLOW = ("slow", "very_slow")
SHARES = ("slow", "very_slow", "errors", "misses")
RATIOS = {"very_slow": 2.0, "errors": 2.0, "missing": 3.0}
"""Ratios to the usual that are worth telling, where they are larger than `ratio_min`: what is rare varies more."""
OVER_QUOTA = ("RESOURCE_EXHAUSTED", "429", "ThrottlingException", "TooManyRequests", "rate_limited")
"""Values of `error.type` that tell of a caller who is over its quota: no trouble of the service."""
HISTORY_MIN = 15
"""Minutes of history under which nothing is said."""


@dataclass(frozen=True)
class Groups:
    """A level of places: `keys` a row each, `of` the group of each series of the panel, and its scan and p values
    corrected over the level (Benjamini and Hochberg 1995); `flagged` those that stand out."""

    keys: pl.DataFrame
    of: Ints
    measure: Measure | Rated
    scan: Scan
    p_corrected: Floats
    flagged: Bools


class Scene:
    """Evidence up to `until` (aware), as arrays."""

    def __init__(self, evidence: Evidence, until: datetime, config: InsightConfig) -> None:
        self.evidence = evidence
        self.config = config
        self.until = until
        end = until.astimezone(UTC).replace(tzinfo=None, second=0, microsecond=0)
        first = evidence.first_minute
        minutes = 0 if first is None else int((end - first) / timedelta(minutes=1))
        self.span = Span.until(end, max(0, min(minutes, config.history_minutes)), config.recent_minutes)
        self._panels: dict[str, Panel] = {}
        self._coarse: dict[str, Panel] = {}
        self._thresholds: dict[str, Floats] = {}
        self._counted: dict[tuple[str, str], Floats] = {}
        self._measures: dict[tuple[str, str], Rated] = {}
        self._levels: dict[tuple[str, str, tuple[str, ...], int], Groups] = {}

    @property
    def has_history(self) -> bool:
        """Whether there is enough to compare with."""
        return self.span.baseline >= HISTORY_MIN

    def panel(self, name: str) -> Panel:
        """The panel of a grain of `Evidence`, by its name."""
        if name not in self._panels:
            grain: Grain = getattr(self.evidence, name)
            self._panels[name] = Panel.of(grain, self.span)
        return self._panels[name]

    def coarse(self, name: str) -> Panel:
        """A panel summed up to its STRATA."""
        if name not in self._coarse:
            self._coarse[name] = self.panel(name).coarse(STRATA[name])
        return self._coarse[name]

    def thresholds(self, name: str) -> Floats:
        """The cells beyond which spans are slow and very slow, by stratum (see `Panel.thresholds`)."""
        if name not in self._thresholds:
            strata = self.coarse(name)
            self._thresholds[name] = strata.thresholds(np.arange(strata.size), strata.size)
        return self._thresholds[name]

    def measure(self, name: str, what: str) -> Rated:
        """One of SHARES of a panel, with what was to be expected of each of its series."""
        key = (name, what)
        if key not in self._measures:
            panel = self.panel(name)
            strata_keys, strata = panel.groups(STRATA[name])
            trials = panel.counts["count"]
            if what in _SLOW:
                observed = self._slow(name, what, strata)
            elif what == "misses":
                observed, trials = panel.counts["misses"], panel.counts["misses"] + panel.counts["hits"]
            else:
                observed = self._failed(name)
            self._measures[key] = baselines.rates(observed, trials, strata, strata_keys.height, self.span)
        return self._measures[key]

    def forget(self, name: str, what: str) -> None:
        """Free what `measure` keeps, of what is hardly asked for again; it would be counted anew."""
        self._measures.pop((name, what), None)

    def _slow(self, name: str, what: str, strata: Ints) -> Floats:
        """Spans beyond one of `thresholds`; both are counted at once, and kept until they are asked for."""
        if (name, what) not in self._counted:
            both = self.panel(name).beyond_each([cells[strata] for cells in self.thresholds(name)])
            self._counted |= {(name, each): array for each, array in zip(_SLOW, both, strict=True)}
        return self._counted.pop((name, what))

    def _failed(self, name: str) -> Floats:
        """Errors by series and minute; without those of callers over their quota, which panel base knows."""
        panel, errors = self.panel(name), self.panel("error")
        of_quota = errors.keys["error_type"].is_in(OVER_QUOTA)
        if name != "base" or not of_quota.any():
            return panel.counts["errors"]
        quota = errors.where(of_quota)
        by = ["region", "tenant", "service_name", "operation", "kind"]
        # Series that differ by their component alone share what is known of both.
        series = panel.keys.select(by).with_row_index("series").unique(by, keep="first")
        at = quota.keys.join(series, on=by, how="left", maintain_order="left")["series"]
        found = np.zeros((panel.size, self.span.count), dtype=np.float32)
        known = at.is_not_null().to_numpy()
        np.add.at(found, at.drop_nulls().to_numpy(), quota.counts["errors"][known])
        failed: Floats = np.maximum(panel.counts["errors"] - found, 0)
        return failed

    @cached_property
    def demand(self) -> tuple[pl.DataFrame, Floats]:
        """Steady demand (see `traced.demand`): columns region and tenant, and for each row its counts by minute."""
        known = self.evidence.demand.filter(pl.col("minute") >= self.span.start, pl.col("minute") < self.span.end)
        keys = known.select("region", "tenant").unique().sort("region", "tenant")
        return keys, dense(self.span, known, keys, "steady_count")

    def demand_by(self, by: Sequence[str], sign: int = 1) -> Groups:
        """Scan demand, summed up by region, tenant or both; `of` goes by the rows of `demand`."""
        key = ("demand", "", tuple(by), sign)
        if key not in self._levels:
            keys, count = self.demand
            names = keys.select(by).unique(maintain_order=True).with_row_index("group")
            of = keys.join(names, on=list(by), maintain_order="left")["group"].to_numpy().astype(np.intp)
            measure = traffic(summed(count, of, names.height), self.span)
            self._levels[key] = self.judged(names.drop("group"), of, measure, "demand", sign)
        return self._levels[key]

    def level(self, name: str, what: str, by: Sequence[str], sign: int = 1) -> Groups:
        """Scan a measure of a panel, summed up by some dimensions."""
        key = (name, what, tuple(by), sign)
        if key not in self._levels:
            panel = self.panel(name)
            keys, of = panel.groups(by)
            measure = self.measure(name, what).by(of, keys.height)
            self._levels[key] = self.judged(keys, of, measure, what, sign)
        return self._levels[key]

    def judged(self, keys: pl.DataFrame, of: Ints, measure: Measure | Rated, what: str = "", sign: int = 1) -> Groups:
        """Scan groups, correct their p values over all of them, and flag what stands out."""
        scan = baselines.scan(measure, self.span, sign)
        tested = scan.trials >= self.config.volume_min
        corrected = np.ones(len(scan.p))
        if tested.any():
            corrected[tested] = multipletests(scan.p[tested], method="fdr_bh")[1]
        ratio = scan.ratio if sign > 0 else 1 / scan.ratio
        flagged = (
            tested
            & (corrected <= self.config.false_discovery_rate)
            & (scan.z >= self.config.deviation_min)
            & (ratio >= max(self.config.ratio_min, RATIOS.get(what, 0.0)))
            & (np.abs(scan.observed - scan.expected) >= 10)
        )
        return Groups(keys, of, measure, scan, corrected, flagged)


def traffic(count: Floats, span: Span) -> Measure:
    """Counts against the median of the baseline's minutes; expected at least one a minute."""
    usual = np.median(count[:, : span.baseline], axis=1) if span.baseline else np.zeros(len(count))
    expected = np.repeat(np.maximum(usual, 1.0)[:, None], span.count, axis=1)
    return Measure(count, expected, expected, expected)
