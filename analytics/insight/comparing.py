"""Two selections of spans against each other, stratum by stratum: service, operation, kind and tenant.

Errors by Cochran-Mantel-Haenszel over strata; durations by Mann-Whitney and Cliff's delta within operations; and
Kitagawa's decomposition says how much of the difference of error rates and of slow spans (longer than the 95th
percentile of B) is the mix (who is there) and how much the rates (how they do), which avoids Simpson's paradox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analytics.buckets import LOG_GAMMA
from analytics.change import duration
from analytics.insight import telling
from analytics.insight.explaining import frame
from analytics.insight.grains import BUCKETS_PER_CELL
from analytics.insight.measures import Floats
from analytics.insight.mix import kitagawa
from analytics.insight.panel import quantile_ns
from analytics.insight.slices import CELLS
from analytics.window import Window
from collector.errors import OperatorError
from collector.lake.sandbox import Sandbox

OPERATION = ("service_name", "operation", "kind")
_STRATUM = (*OPERATION, "tenant")


@dataclass(frozen=True)
class Split:
    """A crude difference of A and B (a share), and its parts by rates and by mix."""

    difference: float
    by_rates: float
    by_mix: float


@dataclass(frozen=True)
class Comparison:
    """`operations`: a row an operation that both have, with columns service_name, operation, kind, spans_a, spans_b,
    unknown_weight_share_a, unknown_weight_share_b (of spans whose sampling probability is unknown), error_rate_a,
    error_rate_b, p95_ns_a, p95_ns_b, cliffs_delta (above 0: A is slower), p (Mann-Whitney), p_corrected (over all
    operations, Benjamini and Hochberg 1995); largest difference first.

    `odds_ratio` of errors, A to B, with its 95 % interval and p, over all strata.
    """

    operations: pl.DataFrame
    odds_ratio: float
    odds_low: float
    odds_high: float
    p: float
    errors: Split
    slow: Split
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """All fields; `operations` as a list."""
        values = {**vars(self), "errors": vars(self.errors), "slow": vars(self.slow)}
        return {**values, "operations": self.operations.to_dicts()}


def compare(sandbox: Sandbox, window: Window, first: str, second: str) -> Comparison:
    """Compare the spans for which `first` (A) and `second` (B) hold: SQL conditions on columns of spans.

    Spans for which both hold are in both. Raises QueryError for a condition that does not run, OperatorError for one
    that selects nothing.
    """
    cells = pl.concat([_cells(sandbox, window, where, side) for where, side in ((first, "a"), (second, "b"))])
    for where, side in ((first, "a"), (second, "b")):
        if cells.filter(pl.col("side") == side).is_empty():
            raise OperatorError(
                f"--{side} {where!r} selects no span of {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} "
                "UTC; expected some, to compare"
            )
    threshold = _threshold(cells)
    strata = cells.group_by(*_STRATUM, "side").agg(
        pl.col("spans", "errors").sum(), slow=pl.col("spans").filter(pl.col("cell") > threshold).sum()
    )
    trials, errors, slow = (_pairs(strata, name) for name in ("spans", "errors", "slow"))
    p, odds, low, high = telling.stratified_test(errors, trials)
    splits = {name: _split(events, trials) for name, events in (("errors", errors), ("slow", slow))}
    operations = _operations(cells)
    sentence = _sentence(operations, splits["slow"], splits["errors"], odds, low, high)
    return Comparison(operations, odds, low, high, p, splits["errors"], splits["slow"], sentence)


def _cells(sandbox: Sandbox, window: Window, where: str, side: str) -> pl.DataFrame:
    bucket = f"ceil(ln(greatest(duration_ns, 0.97)) / {LOG_GAMMA!r})"
    return frame(
        sandbox,
        f"SELECT '{side}' AS side, {', '.join(_STRATUM)}, floor({bucket} / {BUCKETS_PER_CELL})::INTEGER AS cell, "
        "count(*)::BIGINT AS spans, count(*) FILTER (status = 'error')::BIGINT AS errors, "
        "count(*) FILTER (sample_weight IS NULL)::BIGINT AS unknown FROM spans "
        f"WHERE start_time >= TIMESTAMP '{window.start:%Y-%m-%d %H:%M}' "
        f"AND start_time < TIMESTAMP '{window.end:%Y-%m-%d %H:%M}' AND ({where}\n) GROUP BY ALL",
    )


def _threshold(cells: pl.DataFrame) -> pl.Expr:
    """The cell of B's 95th percentile of each operation."""
    ordered = cells.filter(pl.col("side") == "b").group_by(*OPERATION, "cell").agg(pl.col("spans").sum()).sort("cell")
    found = ordered.group_by(OPERATION).agg(
        pl.col("cell").filter(pl.col("spans").cum_sum() >= 0.95 * pl.col("spans").sum()).first()
    )
    names = pl.concat_str(OPERATION, separator="\x1f")
    keys = found.select(names.alias("key"), "cell")
    return names.replace_strict(keys["key"], keys["cell"], default=CELLS, return_dtype=pl.Int32)


def _pairs(strata: pl.DataFrame, name: str) -> Floats:
    """An array of strata x (a, b)."""
    wide = strata.group_by(_STRATUM, maintain_order=True).agg(
        *(pl.col(name).filter(pl.col("side") == side).sum().cast(pl.Float64).alias(side) for side in ("a", "b"))
    )
    return wide.sort(_STRATUM).select("a", "b").to_numpy()


def _split(events: Floats, trials: Floats) -> Split:
    by_rates, by_mix = kitagawa(events, trials)
    return Split(by_rates + by_mix, by_rates, by_mix)


def _operations(cells: pl.DataFrame) -> pl.DataFrame:
    rows = []
    for key, part in cells.group_by(OPERATION):
        spread = {side: _spread(part.filter(pl.col("side") == side)) for side in ("a", "b")}
        if not all(one.sum() for one in spread.values()):
            continue
        p, delta, _ = telling.mann_whitney(spread["a"], spread["b"])
        sides = {side: part.filter(pl.col("side") == side) for side in ("a", "b")}
        rows.append(
            {
                **dict(zip(OPERATION, key, strict=True)),
                **{f"spans_{side}": int(one["spans"].sum()) for side, one in sides.items()},
                **{f"unknown_weight_share_{side}": _share(one, "unknown") for side, one in sides.items()},
                **{f"error_rate_{side}": _share(one, "errors") for side, one in sides.items()},
                **{f"p95_ns_{side}": quantile_ns(one, 0.95) for side, one in spread.items()},
                "cliffs_delta": delta,
                "p": min(1.0, 2 * min(p, 1 - p)),
            }
        )
    if not rows:
        return pl.DataFrame()
    found = pl.DataFrame(rows)
    corrected = multipletests(found["p"].to_numpy(), method="fdr_bh")[1]
    return found.with_columns(p_corrected=pl.Series(corrected)).sort(pl.col("cliffs_delta").abs(), descending=True)


def _share(part: pl.DataFrame, name: str) -> float:
    return float(part[name].sum()) / float(part["spans"].sum())


def _spread(part: pl.DataFrame) -> Floats:
    cell, weights = part["cell"].to_numpy() + 1, part["spans"].to_numpy()
    found: Floats = np.bincount(cell, weights=weights, minlength=CELLS).astype(float)
    return found


def _sentence(operations: pl.DataFrame, slow: Split, errors: Split, odds: float, low: float, high: float) -> str:
    if operations.is_empty():
        return "A and B have no operation in common: there is nothing to compare."
    top = operations.row(0, named=True)
    word = "slower" if top["cliffs_delta"] > 0 else "faster"
    certain = "" if low <= 1 <= high else f" (95 % interval {low:.2f} to {high:.2f})"
    error_words = "no clear difference of errors" if low <= 1 <= high else f"{odds:.2f} times the odds of an error"
    return (
        f"A against B, tenant by tenant and operation by operation: {error_words}{certain}; most different is "
        f"{top['operation']} of {top['service_name']}, {word} in A (p95 {duration(top['p95_ns_a'])} against "
        f"{duration(top['p95_ns_b'])}, Cliff's delta {top['cliffs_delta']:+.2f}). Spans that are slow by B's measure: "
        f"{100 * slow.difference:+.2f} points, of which {100 * slow.by_rates:+.2f} are rates and "
        f"{100 * slow.by_mix:+.2f} the "
        f"mix; errors: {100 * errors.difference:+.2f} points, of which {100 * errors.by_rates:+.2f} are rates."
    )
