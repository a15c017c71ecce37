"""Batches of a rollup as they come: which series their rows are of, and what their maps hold."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from analytics.insight.measures import Ints

_SPANS_BITS, _CELL_BITS = 32, 10
"""Spans of a row and cell, and cells, are fewer than these bits count."""


def entries(maps: pl.Series) -> tuple[Ints, Ints, Ints]:
    """How many entries each map of numbers has, and the keys and values of all of them."""
    values = maps.map.values()
    lengths = values.list.len().fill_null(0).to_numpy()
    keys, flat = (lists.explode(empty_as_null=False).drop_nulls().to_numpy() for lists in (maps.map.keys(), values))
    return lengths, keys, flat.astype(np.int64, copy=False)


def cells(rows: pl.DataFrame, buckets_per_cell: int) -> pl.DataFrame:
    """Columns `minute`, `series`, `cell` and `spans` of rows with `minute`, `series` and
    `latency_buckets`, a row of each and cell."""
    lengths, bucket, spans = entries(rows["latency_buckets"])
    # Place and spans in one number: numbers are sorted much faster than an order of them is found.
    packed = np.repeat(np.arange(rows.height) << _SPANS_BITS + _CELL_BITS, lengths)
    packed += (np.maximum(bucket // buckets_per_cell, -1).astype(np.int64) + 1) << _SPANS_BITS
    packed += spans
    packed.sort()
    at = packed >> _SPANS_BITS
    is_first = np.ones(len(at), dtype=bool)
    np.not_equal(at[1:], at[:-1], out=is_first[1:])
    first = np.flatnonzero(is_first)
    packed &= (1 << _SPANS_BITS) - 1
    total = np.add.reduceat(packed, first) if len(first) else packed
    row, cell = at[first] >> _CELL_BITS, at[first] & (1 << _CELL_BITS) - 1
    minute, series = (rows[name].to_numpy()[row] for name in ("minute", "series"))
    return pl.DataFrame({"minute": minute, "series": series, "cell": cell - 1, "spans": total})


def known(batch: pa.RecordBatch, keys: pl.DataFrame, hashes: pl.Series) -> tuple[pl.DataFrame, pl.Series, pl.Series]:
    """`keys` and their hashes with those behind them that they lack of a batch, and which of them each row is
    (`series`)."""
    wanted = pl.Series("key", batch.column("key"), dtype=pl.UInt64)
    series = _places(wanted, hashes)
    if not series.null_count():
        return keys, hashes, series
    unknown = series.is_null().arg_true()
    new = pl.DataFrame({"key": wanted.gather(unknown), "at": unknown}).unique("key", keep="first", maintain_order=True)
    # `take` gives texts buffers of their own: a few of a batch would else keep those of all of its rows.
    texts = pl.DataFrame(batch.select(keys.columns).take(pa.array(new["at"].to_numpy())))
    hashes = pl.concat([hashes, new["key"]], rechunk=True)
    return pl.concat([keys, texts]), hashes, _places(wanted, hashes)


def _places(wanted: pl.Series, hashes: pl.Series) -> pl.Series:
    """Where each number lies among `hashes`, null where it does not (`series`)."""
    known = pl.DataFrame({"key": hashes}).with_row_index("series")
    return pl.DataFrame({"key": wanted}).join(known, on="key", how="left", maintain_order="left")["series"]
