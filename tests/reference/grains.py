"""Grains from counts that a test makes up, with the names of dimensions in every row."""

from __future__ import annotations

import polars as pl

from analytics.insight.grains import CELLS_SCHEMA, Grain


def grain_of(dimensions: tuple[str, ...], counts: pl.DataFrame, cells: pl.DataFrame | None = None) -> Grain:
    """`counts`: minute (Datetime, naive UTC), the dimensions and COUNTS; `cells`: minute, dimensions, cell, spans."""
    keys = counts.select(dimensions).unique(maintain_order=True)
    rows, spread = (_numbered(frame, keys) for frame in (counts, counts.clear() if cells is None else cells))
    return Grain.of_series(dimensions, keys, rows, CELLS_SCHEMA.to_frame() if cells is None else spread)


def _numbered(frame: pl.DataFrame, keys: pl.DataFrame) -> pl.DataFrame:
    minutes = pl.col("minute").cast(pl.Datetime("us")).dt.epoch("s") // 60
    return frame.with_columns(minutes).join(keys.with_row_index("series"), on=keys.columns, nulls_equal=True)
