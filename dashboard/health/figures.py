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
    change from which on (downwards where negative) it is worth the colour of worse; None never.
    """

    column: str
    label: str
    title: str
    text: Callable[[float | None], str]
    relative: bool
    worse_from: float | None
    help: str

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

    def is_worse(self, change: float | None) -> bool:
        """Whether a change is worth the colour of worse."""
        if change is None or self.worse_from is None:
            return False
        return change <= self.worse_from if self.worse_from < 0 else change >= self.worse_from


def _latency(name: str, meaning: str) -> Figure:
    return Figure(
        f"{name}_ns", name, f"Latency {name}", units.duration, True, LATENCY_RATIO_NOTABLE, f"{meaning} of duration"
    )


FIGURES = (
    Figure("rate_per_second", "Rate", "Rate", units.rate, True, None, "Spans per second"),
    Figure("error_rate", "Errors", "Errors", units.share, False, ERROR_POINTS_NOTABLE, "Spans with status error"),
    _latency("p50", "Median"),
    _latency("p95", "95th percentile"),
    _latency("p99", "99th percentile"),
    Figure(
        "hit_ratio", "Hit ratio", "Cache hit ratio", units.share, False, HIT_POINTS_NOTABLE,
        "Hits of all cache lookups",
    ),
)  # fmt: skip


def compared(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `analytics.health.health_rows` and `<figure>_change` for each of FIGURES.

    A change is the ratio to the baseline, for shares the difference; null below VOLUME_MIN spans.
    """
    return rows.with_columns(_change(figure).alias(figure.change) for figure in FIGURES)


def _change(figure: Figure) -> pl.Expr:
    value, baseline = pl.col(figure.column), pl.col(figure.baseline)
    change = pl.when(baseline > 0).then(value / baseline) if figure.relative else value - baseline
    # A rate of nothing is a change, other figures of nearly nothing are chance.
    volumes = ["baseline_count"] if figure.column == "rate_per_second" else ["baseline_count", "count"]
    return pl.when(pl.min_horizontal(volumes) >= VOLUME_MIN).then(change)
