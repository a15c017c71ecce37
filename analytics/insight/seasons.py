"""Figures against the same time of other days: yesterday, last week, and what is usual at this time.

For each series the figures of a window are compared with those of the window before it and of the same time on
DAYS_BEFORE. What is usual is their median, its scale 1.4826 x MAD, at least what counting alone gives and a tenth of
the median; a deviation beyond UNUSUAL scales is unusual (the modified z-score of Iglewicz and Hoaglin, "How to Detect
and Handle Outliers", 1993). With fewer than SAMPLES_MIN such days, or too few spans, the answer is INSUFFICIENT.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import polars as pl

from analytics.change import INSUFFICIENT
from analytics.insight.measures import Bools, Floats
from analytics.rollup.sets import BASE, DimensionSet
from analytics.rollup.windows import Values, figures_of_each
from analytics.window import Window
from collector.lake.lake import Reader

DAYS_BEFORE = (1, 2, 3, 4, 5, 6, 7, 14, 21, 28)
YESTERDAY, LAST_WEEK = DAYS_BEFORE.index(1), DAYS_BEFORE.index(7)
SAMPLES_MIN = 3
UNUSUAL = 3.5
FIGURES = ("rate_per_second", "error_rate", "p95_ns", "hit_ratio")
SERIES = ("region", "tenant", "service_name", "operation")
COMPARED_SCHEMA = pl.Schema(
    {
        "figure": pl.String(),
        **dict.fromkeys(("now", "previous", "yesterday", "last_week", "usual", "scale"), pl.Float64()),
        "samples": pl.Int64(),
        "deviation": pl.Float64(),
        "verdict": pl.String(),
    }
)
_RELATIVE_SCALE = 0.1
_POINTS_SCALE = {"error_rate": 0.001, "hit_ratio": 0.01}
_OTHER_WINDOWS = 2
"""Of all windows that are read: the one that is asked of, and the one before it."""


def compared(
    reader: Reader,
    window: Window,
    by: Sequence[str] = (),
    dimension_set: DimensionSet = BASE,
    values: Values | None = None,
    volume_min: int = 60,
    figures: Sequence[str] = FIGURES,
) -> pl.DataFrame:
    """A row for each value of `by` with spans in any window and each of `figures`; columns *by, COMPARED_SCHEMA.

    `usual`, `scale`: of the same time on DAYS_BEFORE, of which `samples` are known; `deviation`: (now - usual) / scale;
    `verdict`: 'usual', 'higher', 'lower' or INSUFFICIENT. A figure is null where it rests on fewer than `volume_min`
    spans (of hit_ratio: lookups); a rate where nothing at all was recorded at the time. Most deviating first. Raises
    ValueError for dimensions that the set has not, duckdb.Error where it has no tables.
    """
    past = (Window(window.start - timedelta(days=days), window.end - timedelta(days=days)) for days in DAYS_BEFORE)
    windows = [window, window.previous(), *past]
    found = figures_of_each(reader, windows, by, dimension_set, values, (0.95,) if "p95_ns" in figures else ())
    recorded = np.zeros(len(windows), dtype=bool)
    if "rate_per_second" in figures:
        recorded[figures_of_each(reader, windows, (), dimension_set)["number"].to_numpy()] = True
    series = found.select(by).unique(maintain_order=True) if by else pl.DataFrame({"all": [""]}).head(found.height)
    at = _positions(found, series, by), found["number"].to_numpy()
    parts = [
        pl.concat(
            [series.select(by), _judged(figure, found, at, recorded, window.seconds, volume_min)], how="horizontal"
        )
        for figure in figures
    ]
    return pl.concat(parts).sort(pl.col("deviation").abs(), descending=True, nulls_last=True, maintain_order=True)


def _positions(found: pl.DataFrame, series: pl.DataFrame, by: Sequence[str]) -> np.ndarray:
    if not by:
        return np.zeros(found.height, dtype=np.intp)
    numbered = found.select(by).join(series.with_row_index("at"), on=list(by), how="left", maintain_order="left")
    return numbered["at"].to_numpy().astype(np.intp)


def _judged(
    figure: str, found: pl.DataFrame, at: tuple[np.ndarray, np.ndarray], recorded: Bools, seconds: float, floor: int
) -> pl.DataFrame:
    """COMPARED_SCHEMA of one figure: a row a series, in the order of their positions."""
    shape = (int(at[0].max(initial=-1)) + 1, len(recorded))
    volume, value = np.zeros(shape), np.full(shape, np.nan)
    volume[at] = pl.select(found["hits"] + found["misses"]).to_series() if figure == "hit_ratio" else found["count"]
    value[at] = found[figure].cast(pl.Float64).fill_null(np.nan)
    if figure == "rate_per_second":
        value = np.where(recorded[None, :], np.nan_to_num(value), np.nan)
        enough = np.max(volume, axis=1, initial=0) >= floor
        value[~enough] = np.nan
    else:
        value[volume < floor] = np.nan
    return summary(figure, value, volume[:, 0], seconds)


def summary(figure: str, value: Floats, volume: Floats, seconds: float) -> pl.DataFrame:
    """COMPARED_SCHEMA of one figure. `value`: series x (now, previous, the same time on DAYS_BEFORE), NaN where it is
    not known; `volume`: spans of each series now."""
    past = value[:, _OTHER_WINDOWS:]
    samples = np.isfinite(past).sum(axis=1)
    usual = _median(past)
    mad = 1.4826 * _median(np.abs(past - usual[:, None]))
    scale = np.maximum(np.maximum(mad, _RELATIVE_SCALE * np.abs(usual)), _noise(figure, usual, volume, seconds))
    if figure == "hit_ratio":
        scale = np.maximum(mad, _noise(figure, usual, volume, seconds))
    deviation = (value[:, 0] - usual) / scale
    known = np.isfinite(deviation) & (samples >= SAMPLES_MIN)
    verdict = np.where(np.abs(deviation) < UNUSUAL, "usual", np.where(deviation > 0, "higher", "lower"))
    columns = {
        "now": value[:, 0], "previous": value[:, 1], "yesterday": past[:, YESTERDAY],
        "last_week": past[:, LAST_WEEK], "usual": np.where(known, usual, np.nan),
        "scale": np.where(known, scale, np.nan), "samples": samples, "deviation": np.where(known, deviation, np.nan),
        "verdict": np.where(known, verdict, INSUFFICIENT),
    }  # fmt: skip
    frame = pl.DataFrame({"figure": [figure] * len(value), **columns}, schema=COMPARED_SCHEMA)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def _noise(figure: str, usual: Floats, volume: Floats, seconds: float) -> Floats:
    """The least scale that counting alone gives such a figure."""
    if figure == "rate_per_second":
        counting: Floats = np.sqrt(np.maximum(usual * seconds, 1.0)) / seconds
        return counting
    if figure in _POINTS_SCALE:
        share = np.clip(usual, 0.0, 1.0)
        return np.sqrt(share * (1 - share) / np.maximum(volume, 1.0)) + _POINTS_SCALE[figure]
    return np.full(len(usual), 1.0)


def _median(values: Floats) -> Floats:
    """Medians of rows, of what is known; NaN where nothing is."""
    found = np.full(len(values), np.nan)
    some = np.isfinite(values).any(axis=1)
    found[some] = np.nanmedian(values[some], axis=1)
    return found
