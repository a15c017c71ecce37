"""Tables whose rows add up: from events to rows, and from rows to fewer of them.

An event is what one span or pair of spans adds to one row; its `weight` is 1, or -1 where it takes back what was added
before. The sum of all rows of the same keys is exact, whichever events each of them holds, and whatever was taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

WEIGHT = "weight"
CELLS = pl.Map(pl.Int16, pl.Int64)
TOTAL_NS = pl.Decimal(38, 0)


@dataclass(frozen=True)
class Shape:
    """The columns of a table that adds up.

    `keys` tell rows apart; `counts` (Int64) and `totals` (exact beyond 64 bits) are sums; `maps` are counts by Int16:
    by bucket of `analytics.buckets`, or by small number. An event has one Int16 or null for each of `maps`.
    """

    keys: Mapping[str, pl.DataType]
    counts: Sequence[str]
    totals: Sequence[str] = ()
    maps: Sequence[str] = ()
    schema: pl.Schema = field(init=False)

    def __post_init__(self) -> None:
        columns = dict(self.keys) | dict.fromkeys(self.counts, pl.Int64()) | dict.fromkeys(self.totals, TOTAL_NS)
        object.__setattr__(self, "schema", pl.Schema(columns | dict.fromkeys(self.maps, CELLS)))

    def rows(self, events: pl.DataFrame) -> pl.DataFrame:
        """One row of `schema` for each set of keys of the events; none where everything was taken back."""
        weight = pl.col(WEIGHT)
        sums = [(pl.col(name).cast(pl.Int128) * weight).sum().cast(pl.Int64).alias(name) for name in self.counts]
        sums += [(pl.col(name).cast(pl.Int128) * weight).sum().alias(name) for name in self.totals]
        cells = {name: events.filter(pl.col(name).is_not_null()).select(
            *self.keys, cell=pl.col(name).cast(pl.Int16), value=weight.cast(pl.Int64)
        ) for name in self.maps}  # fmt: skip
        return self._joined(events.group_by(list(self.keys)).agg(sums), cells)

    def merged(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The same sums in one row for each set of keys; none where they are all 0."""
        sums = [pl.col(name).sum() for name in self.counts]
        sums += [pl.col(name).cast(pl.Int128).sum() for name in self.totals]
        cells = {
            name: rows.select(*self.keys, entry=pl.col(name).map.entries())
            .explode("entry", empty_as_null=False)
            .select(*self.keys, cell=pl.col("entry").struct.field("key"), value=pl.col("entry").struct.field("value"))
            for name in self.maps
        }
        return self._joined(rows.group_by(list(self.keys)).agg(sums), cells)

    def _joined(self, sums: pl.DataFrame, cells: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        found = sums
        for name, column in cells.items():
            found = found.join(_maps(column, list(self.keys), name), on=list(self.keys), how="left", nulls_equal=True)
        found = found.with_columns(
            pl.when(pl.col(name).is_null()).then(pl.lit([], pl.List(_ENTRY))).otherwise(pl.col(name)).alias(name)
            for name in self.maps
        )
        something = [pl.col(name) != 0 for name in (*self.counts, *self.totals)]
        something += [pl.col(name).list.len() > 0 for name in self.maps]
        return found.filter(pl.any_horizontal(something)).select(self.schema.names()).cast(self.schema)


_ENTRY = pl.Struct({"key": pl.Int16(), "value": pl.Int64()})


def _maps(cells: pl.DataFrame, keys: Sequence[str], name: str) -> pl.DataFrame:
    summed = cells.group_by(*keys, "cell").agg(pl.col("value").sum()).filter(pl.col("value") != 0)
    return summed.group_by(keys).agg(pl.struct(key="cell", value="value").alias(name))


def weighed(after: pl.DataFrame, before: pl.DataFrame) -> pl.DataFrame:
    """Events that replace those of `before` by those of `after`."""
    return pl.concat([after.with_columns(pl.lit(1).alias(WEIGHT)), before.with_columns(pl.lit(-1).alias(WEIGHT))])
