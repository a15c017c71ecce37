"""How much is asked for, from the counts by second of the base set of rollups (see `traced.demand`)."""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.insight import traced
from analytics.insight.batches import entries
from analytics.insight.grains import CELLS_SCHEMA, DEMAND, Grain, groups_on, rows_schema
from analytics.insight.slices import totals

SERVED = ("server", "consumer")
_BY = ("region", "tenant", "kind")
_SECONDS = 60 // traced.SLOTS


class Demand:
    """Spans by minute, slot, region, tenant and kind, of batches of a rollup that continue a grain of the base set."""

    def __init__(self, before: Grain) -> None:
        self._groups = before.groups(_BY)
        self._parts = [np.zeros((4, 0), dtype=np.int64)]

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
        self._parts.append(np.stack([row // size + first, row % size, slot, total.astype(np.int64)]))

    def steady(self, served: bool) -> Grain:
        """Grain DEMAND of all that was added: of what is `served` alone, or of all kinds."""
        minute, group, slot, spans = np.concatenate(self._parts, axis=1)
        values = self._groups[0]
        pairs = values.select(DEMAND).unique(maintain_order=True)
        pair = groups_on(pairs, np.empty(0, dtype=np.intp), values)[1]
        if served:
            wanted = values["kind"].is_in(SERVED).to_numpy()[group]
            minute, group, slot, spans = (column[wanted] for column in (minute, group, slot, spans))
        if not len(minute):
            return Grain.empty(DEMAND)
        first, size = int(minute.min()), pairs.height
        filled, total = totals(((minute - first) * size + pair[group]) * traced.SLOTS + slot, spans)
        at, slot = np.divmod(filled, traced.SLOTS)
        is_first = np.append(True, at[1:] != at[:-1])[: len(at)]
        by_slot = np.zeros((int(is_first.sum()), traced.SLOTS))
        by_slot[np.cumsum(is_first) - 1, slot] = total
        by_slot.sort(axis=1)
        # The lower middle one.
        counts = {"count": by_slot.sum(1), "steady_count": traced.SLOTS * by_slot[:, (traced.SLOTS - 1) // 2]}
        rows = pl.DataFrame({"minute": at[is_first] // size + first, "series": at[is_first] % size, **counts})
        return Grain(DEMAND, pairs, rows.cast(rows_schema(DEMAND)), CELLS_SCHEMA.to_frame())
