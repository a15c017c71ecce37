"""Where traffic will be tomorrow, with a range; silent where a forecast is worth no more than yesterday's figures.

Hours are decomposed by season of the day and trend (MSTL, Bandara, Hyndman and Bergmeir 2021, of package
statsmodels); the trend of the last days goes on (slopes after Theil and Sen). From several origins in the past the
same is forecast and compared with what came: it must beat the seasonal-naive forecast (the same hour of the day
before), and those errors are the range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.tsa.seasonal import MSTL

from analytics.insight import telling
from analytics.insight.finding import Effect, Finding, Place
from analytics.insight.measures import Floats
from analytics.insight.scene import Scene

DAY = 24
HISTORY_HOURS = 14 * DAY
_HISTORY_HOURS_MIN = 5 * DAY
_ORIGINS = 4
_TREND_HOURS = 3 * DAY
_GROWTH_MIN = 1.3
_EXACT = 1e-6
"""Of the mean: where yesterday's figures are that close, nothing is left to beat."""


@dataclass(frozen=True)
class Forecast:
    """The next DAY hours: `middle`, and `low` to `high`, which 90 % of past errors stayed within.

    `skill`: 1 - its mean absolute error over that of the seasonal-naive forecast, above 0.
    """

    middle: Floats
    low: Floats
    high: Floats
    skill: float


def forecast(values: Floats) -> Forecast | None:
    """Forecast hourly `values`; None where there are too few, or where it does not beat the seasonal-naive forecast."""
    if len(values) < _HISTORY_HOURS_MIN or not np.isfinite(values).all():
        return None
    origins = [len(values) - DAY * step for step in range(1, _ORIGINS + 1) if len(values) - DAY * step >= 3 * DAY]
    actual = np.stack([values[at : at + DAY] for at in origins])
    errors = actual - np.stack([_ahead(values[:at]) for at in origins])
    naive = actual - np.stack([values[at - DAY : at] for at in origins])
    to_beat = float(np.abs(naive).mean())
    if to_beat <= _EXACT * float(np.abs(values).mean()):
        return None
    skill = 1 - float(np.abs(errors).mean()) / to_beat
    if skill <= 0:
        return None
    middle = _ahead(values)
    low, high = np.quantile(errors, [0.05, 0.95])
    return Forecast(middle, np.maximum(middle + low, 0.0), middle + high, skill)


def _ahead(values: Floats) -> Floats:
    parts = MSTL(values, periods=(DAY,)).fit()
    level = values - parts.seasonal
    recent = level[-_TREND_HOURS:]
    slope, *_ = stats.theilslopes(recent, np.arange(len(recent)))
    season = parts.seasonal[-DAY:]
    found: Floats = float(np.median(recent[-DAY:])) + slope * (DAY / 2 + np.arange(DAY)) + season
    return found


def find(scene: Scene) -> list[Finding]:
    """A finding 'forecast' for each region whose traffic will surely be a good part above its past maximum tomorrow."""
    hourly = scene.evidence.hourly
    found = []
    for (region,), part in hourly.sort("minute").group_by("region", maintain_order=True):
        rate = _by_hour(part)
        ahead = forecast(rate)
        if ahead is None or ahead.low.max() < _GROWTH_MIN * rate.max():
            continue
        at = int(ahead.middle.argmax())
        top, usual = float(ahead.middle[at]), float(rate.max())
        effect = Effect("spans_per_second", top, usual, top / usual, ahead.low[at] / usual, ahead.high[at] / usual)
        sentence = (
            f"Traffic in {region} is about to reach {top:.0f} spans/s ({ahead.low[at]:.0f} to {ahead.high[at]:.0f}) in "
            f"{at + 1} hours; its maximum of the last {len(rate) // DAY} days is {usual:.0f}."
        )
        last = scene.span.count - 1
        found.append(
            Finding(
                "forecast", Place(str(region)), "info", telling.score(1.0, top / usual, top),
                telling.aware(scene, last), scene.until, effect,
                telling.confidence(
                    f"rolling origin, skill {ahead.skill:.2f} over seasonal-naive", None, None, len(rate)
                ),
                sentence, sql=telling.sql_of(scene, Place(str(region)), last, "rollup_1h", "sum(count) / 3600 AS rate"),
            )
        )  # fmt: skip
    return found


def _by_hour(part: pl.DataFrame) -> Floats:
    """Spans per second of whole hours, 0 where there were none."""
    return part.upsample("minute", every="1h")["count"].fill_null(0).to_numpy() / 3600
