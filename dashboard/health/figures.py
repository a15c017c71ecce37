"""The figures of the page, how each is written, compared with the window before, and when it got worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from analytics.change import VOLUME_MIN
from dashboard import units

LATENCY_RATIO_NOTABLE = 1.2
ERROR_POINTS_NOTABLE = 0.005
HIT_POINTS_NOTABLE = -0.02


@dataclass(frozen=True)
class Figure:
    """A figure: its column in `analytics.health.health_rows`, names, text of a value, and its comparison.

    `relative`: compared as a ratio to the baseline, else as a difference of fractions of 1. `worse_from`: the
    change from which on (downwards where negative) it is worth the colour of worse, None never; and that only
    where both windows have `worse_spans_min` spans.
    """

    column: str
    label: str
    title: str
    help: str
    text: Callable[[float | None], str]
    relative: bool
    worse_from: float | None
    worse_spans_min: int

    @property
    def change(self) -> str:
        """Name of the column that holds the change against the baseline."""
        return f"{self.column}_change"

    @property
    def baseline(self) -> str:
        """Name of the column that holds the window before."""
        return f"baseline_{self.column}"

    def change_text(self, change: float | None) -> str:
        """A change as people read it; empty for None."""
        return units.relative_change(change) if self.relative else units.point_change(change)

    @property
    def worse(self) -> str:
        """Name of the column that says whether the change is worth the colour of worse."""
        return f"{self.column}_worse"


def _latency(name: str, meaning: str, spans_min: int) -> Figure:
    return Figure(
        column=f"{name}_ns",
        label=name,
        title=f"Latency {name}",
        help=f"{meaning} of duration",
        text=units.duration,
        relative=True,
        worse_from=LATENCY_RATIO_NOTABLE,
        worse_spans_min=spans_min,
    )


# A quantile q of fewer than 10 / (1 - q) spans moves by chance.
FIGURES = (
    Figure("rate_per_second", "Rate", "Rate", "Spans per second", units.rate, True, None, VOLUME_MIN),
    Figure("error_rate", "Errors", "Errors", "Spans with status error", units.share, False, ERROR_POINTS_NOTABLE, 500),
    _latency("p50", "Median", VOLUME_MIN),
    _latency("p95", "95th percentile", 200),
    _latency("p99", "99th percentile", 1000),
    Figure(
        "hit_ratio", "Hit ratio", "Cache hit ratio", "Hits of all cache lookups", units.share, False,
        HIT_POINTS_NOTABLE, 1000,
    ),
)  # fmt: skip


def compared(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `analytics.health.health_rows`, with `<figure>_change` and `<figure>_worse` for each of FIGURES.

    A change is the ratio to the baseline, for shares the difference; null below VOLUME_MIN spans.
    """
    changed = rows.with_columns(_change(figure).alias(figure.change) for figure in FIGURES)
    return changed.with_columns(_worse(figure).alias(figure.worse) for figure in FIGURES)


def _change(figure: Figure) -> pl.Expr:
    value, baseline = pl.col(figure.column), pl.col(figure.baseline)
    change = pl.when(baseline > 0).then(value / baseline) if figure.relative else value - baseline
    # A rate of nothing is a change, other figures of nearly nothing are chance.
    volumes = ["baseline_count"] if figure.column == "rate_per_second" else ["baseline_count", "count"]
    return pl.when(pl.min_horizontal(volumes) >= VOLUME_MIN).then(change)


def _worse(figure: Figure) -> pl.Expr:
    if figure.worse_from is None:
        return pl.lit(False)
    change = pl.col(figure.change)
    notable = change <= figure.worse_from if figure.worse_from < 0 else change >= figure.worse_from
    enough = pl.min_horizontal("baseline_count", "count") >= figure.worse_spans_min
    return (notable & enough).fill_null(False)
