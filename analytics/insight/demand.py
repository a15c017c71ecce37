"""How much is asked for, from the counts by second of the base set of rollups (see `traced.demand`)."""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.insight import traced
from analytics.insight.grains import Grain, entries, groups_on
from analytics.insight.slices import totals

SERVED = ("server", "consumer")
_BY = ("region", "tenant", "kind")
_SECONDS = 60 // traced.SLOTS


class Demand:
    """Spans by minute, slot, region, tenant and kind, of batches of a rollup that continue a grain of the base set."""

    def __init__(self, before: Grain) -> None:
        self._groups = before.groups(_BY)
        self._parts = [np.zeros((4, 0))]

    def add(self, keys: pl.DataFrame, rows: pl.DataFrame) -> None:
        """Count rows with `minute`, `series` (the row of `keys`) and `second_counts`."""
        self._groups = groups_on(*self._groups, keys)
        values, of = self._groups
        lengths, second, spans = entries(rows["second_counts"])
        minute = rows["minute"].to_numpy().astype(np.int64)
        first, size = int(minute.min()), values.height
        of_row = ((minute - first) * size + of[rows["series"].to_numpy()]) * traced.SLOTS
        filled, total = totals(np.repeat(of_row, lengths) + second // _SECONDS, spans)
        row, slot = np.divmod(filled, traced.SLOTS)
        self._parts.append(np.stack([row // size + first, row % size, slot, total]))

    def steady(self, served: bool) -> pl.DataFrame:
        """DEMAND_SCHEMA of all that was added: of what is `served` alone, or of all kinds."""
        minute, group, slot, spans = np.concatenate(self._parts, axis=1).astype(np.int64)
        values = self._groups[0]
        pairs = values.select("region", "tenant").unique(maintain_order=True)
        pair = groups_on(pairs, np.empty(0, dtype=np.intp), values)[1]
        if served:
            wanted = values["kind"].is_in(SERVED).to_numpy()[group]
            minute, group, slot, spans = (column[wanted] for column in (minute, group, slot, spans))
        if not len(minute):
            return traced.DEMAND_SCHEMA.to_frame()
        first, size = int(minute.min()), pairs.height
        filled, total = totals(((minute - first) * size + pair[group]) * traced.SLOTS + slot, spans)
        row, place = np.unique(filled // traced.SLOTS, return_inverse=True)
        by_slot = np.zeros((len(row), traced.SLOTS))
        by_slot[place, filled % traced.SLOTS] = total
        by_slot.sort(axis=1)
        minutes = pl.Series((row // size + first) * 60_000_000).cast(pl.Datetime("us"))
        # The lower middle one.
        steady_count = traced.SLOTS * by_slot[:, (traced.SLOTS - 1) // 2]
        found = pairs[row % size].with_columns(
            minute=minutes, count=pl.Series(by_slot.sum(1)), steady_count=pl.Series(steady_count)
        )
        return found.select(traced.DEMAND_SCHEMA.names()).cast(traced.DEMAND_SCHEMA)
