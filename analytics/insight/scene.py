"""One look at the evidence: panels and expectations, computed once for all detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analytics.insight import baselines
from analytics.insight.baselines import Least, Scan
from analytics.insight.evidence import Evidence
from analytics.insight.grains import DEMAND, Grain
from analytics.insight.measures import Bools, Floats, Ints, Measure, Rated, Span, summed
from analytics.insight.panel import Panel
from analytics.insight.tallies import Tallied, Tally
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


class Groups:
    """A level of places: `keys` a row each, `of` the group of each series of the panel."""

    def __init__(
        self, keys: pl.DataFrame, of: Ints, sums: Callable[[], Measure | Rated], judged: Judged, quiet: bool = False
    ) -> None:
        """`sums` gives the measure by group. `quiet`: nothing can stand out, by the last minutes alone."""
        self.keys = keys
        self.of = of
        self._sums = sums
        self._judged = judged
        self._quiet = quiet

    @cached_property
    def measure(self) -> Measure | Rated:
        """Sums by group."""
        return self._sums()

    @cached_property
    def scan(self) -> Scan:
        """The scan of each group."""
        return baselines.scan(self.measure, self._judged.span, self._judged.sign)

    @cached_property
    def p_corrected(self) -> Floats:
        """p values corrected over the level (Benjamini and Hochberg 1995), of those with enough trials."""
        tested = self._tested
        corrected = np.ones(len(self.scan.p))
        if tested.any():
            corrected[tested] = multipletests(self.scan.p[tested], method="fdr_bh")[1]
        return corrected

    @cached_property
    def flagged(self) -> Bools:
        """Those that stand out."""
        if self._quiet:
            return np.zeros(self.keys.height, dtype=bool)
        scan, least = self.scan, self._judged.least
        ratio = scan.ratio if self._judged.sign > 0 else 1 / scan.ratio
        found: Bools = (
            self._tested
            & (self.p_corrected <= self._judged.false_discovery_rate)
            & (scan.p <= baselines.P_TOLD_MAX)
            & (scan.z >= least.deviation)
            & (ratio >= least.ratio)
            & (np.abs(scan.observed - scan.expected) >= least.events)
        )
        return found

    @property
    def _tested(self) -> Bools:
        found: Bools = self.scan.trials >= self._judged.least.trials
        return found


@dataclass(frozen=True)
class Judged:
    """How groups are judged: too many events (`sign` 1) or too few (-1), and what is worth telling."""

    span: Span
    sign: int
    least: Least
    false_discovery_rate: float


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
        self._tallies: dict[str, tuple[Tally, Tally]] = {}
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
            if what in _SLOW:
                observed: Floats | Tally = self._beyond(name)[_SLOW.index(what)]
            else:
                observed = panel.tally("misses") if what == "misses" else self._failed(name)
            trials = panel.tally("misses", "hits") if what == "misses" else panel.tally("count")
            if isinstance(observed, Tally):
                self._measures[key] = baselines.tallied_rates(observed, trials, STRATA[name], self.span)
            else:
                keys, strata = panel.groups(STRATA[name])
                self._measures[key] = baselines.rates(observed, trials.array, strata, keys.height, self.span)
        return self._measures[key]

    def forget(self, name: str, what: str) -> None:
        """Free what `measure` keeps, of what is hardly asked for again; it would be counted anew."""
        self._measures.pop((name, what), None)

    def _beyond(self, name: str) -> tuple[Tally, Tally]:
        if name not in self._tallies:
            self._tallies[name] = self.panel(name).beyond_strata(STRATA[name], self.thresholds(name))
        return self._tallies[name]

    def _failed(self, name: str) -> Floats | Tally:
        """Errors by series and minute; without those of callers over their quota, which panel base knows."""
        panel, errors = self.panel(name), self.panel("error")
        of_quota = errors.keys["error_type"].is_in(OVER_QUOTA)
        if name != "base" or not of_quota.any():
            return panel.tally("errors")
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
        panel = self.panel("demand")
        ordered = panel.keys.with_row_index("series").sort(DEMAND)
        return ordered.drop("series"), panel.counts["steady_count"][ordered["series"].to_numpy()]

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
            keys, of = self.panel(name).groups(by)
            self._levels[key] = self.over(keys, of, self.measure(name, what), what, sign)
        return self._levels[key]

    def over(self, keys: pl.DataFrame, of: Ints, measure: Rated | Measure, what: str = "", sign: int = 1) -> Groups:
        """Scan a measure of series, summed up by the group `of` each; of all minutes only where the last ones are out
        of the ordinary."""
        judged = self._how(what, sign)
        quiet = False
        if isinstance(measure, Tallied) and self.span.recent >= max(baselines.SCALES):
            late = measure.last(max(baselines.SCALES)).by(of, keys.height)
            quiet = not baselines.may_stand_out(late, sign, judged.least).any()
        return Groups(keys, of, lambda: measure.by(of, keys.height), judged, quiet)

    def judged(self, keys: pl.DataFrame, of: Ints, measure: Measure | Rated, what: str = "", sign: int = 1) -> Groups:
        """Scan groups, correct their p values over all of them, and flag what stands out."""
        return Groups(keys, of, lambda: measure, self._how(what, sign))

    def _how(self, what: str, sign: int) -> Judged:
        ratio = max(self.config.ratio_min, RATIOS.get(what, 0.0))
        least = Least(self.config.volume_min, ratio, self.config.deviation_min)
        return Judged(self.span, sign, least, self.config.false_discovery_rate)


def traffic(count: Floats, span: Span) -> Measure:
    """Counts against the median of the baseline's minutes; expected at least one a minute."""
    usual = np.median(count[:, : span.baseline], axis=1) if span.baseline else np.zeros(len(count))
    expected = np.repeat(np.maximum(usual, 1.0)[:, None], span.count, axis=1)
    return Measure(count, expected, expected, expected)
