"""Bounds on what rollups keep apart: beyond them the rest is folded into `(overflow)`, and counted.

Bounds hold for each hour of a rollup, and so for its minutes. The values that come first in an hour are kept, those
that come together by their number of spans and then by name; what is kept once stays kept for the hour, and what is
folded stays folded, so that the sums of each value that stands there are exact (while the bounds are not changed).
Tempo's metrics generator limits series in this way; here no sum is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from analytics.rollup.partials import merged
from analytics.rollup.sets import DimensionSet
from collector.config import AnalyzeConfig
from collector.lake.lake import Reader

OVERFLOW = "(overflow)"
HOUR = "hour"
PLACES = ("region", "zone", "environment")
OWNERS = ("tenant", "service_name")
ENUMERATED = ("component", "kind")
_HOURS_REMEMBERED = 48


@dataclass(frozen=True)
class Level:
    """At most `values_max` different values of `columns` together, for each value of `within` and hour."""

    columns: tuple[str, ...]
    within: tuple[str, ...]
    values_max: int


@dataclass
class Kept:
    """The values that the hours of a rollup keep, as far as they were asked for; valid at `position` alone.

    `values`: hour and the dimensions of `bounded`, different rows.
    """

    position: int | None
    values: pl.DataFrame
    hours: set[datetime] = field(default_factory=set)


def levels(dimension_set: DimensionSet, config: AnalyzeConfig) -> tuple[Level, ...]:
    """The bounds of a set, in the order in which they are applied."""
    dimensions = dimension_set.dimensions
    owners = tuple(name for name in OWNERS if name in dimensions)
    wide = tuple(name for name in bounded(dimension_set) if name not in (*PLACES, *OWNERS))
    found = [Level((name,), (), config.regions_max) for name in PLACES if name in dimensions]
    for place, owner in enumerate(owners):
        maximum = config.tenants_max if owner == "tenant" else config.services_per_tenant_max
        found.append(Level((owner,), owners[:place], maximum))
    found += [Level((name,), owners, config.operations_per_service_max) for name in wide]
    if len(wide) > 1:
        found.append(Level(wide, owners, config.combinations_per_service_max))
    return tuple(found)


def bounded(dimension_set: DimensionSet) -> tuple[str, ...]:
    """The dimensions whose values clients choose."""
    return tuple(name for name in dimension_set.dimensions if name not in ENUMERATED)


def nothing_kept(dimension_set: DimensionSet, position: int | None) -> Kept:
    """The values kept where nothing was asked for yet."""
    schema = {HOUR: pl.Datetime("us"), **dict.fromkeys(bounded(dimension_set), pl.String())}
    return Kept(position, pl.DataFrame(schema=schema))


def recall(reader: Reader, dimension_set: DimensionSet, rows: pl.DataFrame, kept: Kept) -> Kept:
    """`kept`, with the values that the stored rollup has in the hours of `rows`."""
    needed = set(rows["window_start"].dt.truncate("1h").unique()) - kept.hours
    if not needed:
        return kept
    names = ", ".join(("window_start AS hour", *bounded(dimension_set)))
    values = reader.frame(
        f"SELECT DISTINCT {names} FROM {dimension_set.hours} "
        "WHERE window_start IN (SELECT unnest(?::TIMESTAMP[])) AND window_start BETWEEN ? AND ?",
        [list(needed), min(needed), max(needed)],
    ).cast(kept.values.schema)
    return Kept(kept.position, pl.concat([kept.values, values]), kept.hours | needed)


def fold(
    rows: pl.DataFrame, dimension_set: DimensionSet, config: AnalyzeConfig, kept: pl.DataFrame
) -> pl.DataFrame:
    """`rows` (partial rows by minute) within the bounds, of which the values `kept` already take their part.

    Same columns. Rows beyond a bound have OVERFLOW in its columns, and are summed; `folded_series` counts them.
    """
    marked = rows.with_columns(pl.col("window_start").dt.truncate("1h").alias(HOUR), folded=pl.lit(False))
    for level in levels(dimension_set, config):
        marked = _fold_level(marked, level, kept)
    few = marked.filter("folded")
    if few.is_empty():
        return rows
    counted = few.with_columns(folded_series=pl.col("folded_series") + 1).select(rows.columns)
    return pl.concat(
        [marked.filter(~pl.col("folded")).select(rows.columns), merged(counted, "1m", dimension_set.dimensions)]
    )


def remember(kept: Kept, rows: pl.DataFrame, dimension_set: DimensionSet) -> Kept:
    """What is kept together with `rows` (folded), before they are stored."""
    new = rows.select(pl.col("window_start").dt.truncate("1h").alias(HOUR), *bounded(dimension_set))
    return Kept(kept.position, pl.concat([kept.values, new.unique()]).unique(), kept.hours)


def settled(kept: Kept, position: int) -> Kept:
    """What is kept once its rows are stored and the mark stands at `position`; old hours are forgotten."""
    hours = sorted(kept.hours)[-_HOURS_REMEMBERED:]
    return Kept(position, kept.values.filter(pl.col(HOUR).is_in(hours)), set(hours))


def _fold_level(rows: pl.DataFrame, level: Level, kept: pl.DataFrame) -> pl.DataFrame:
    if _within(rows, level, kept):
        return rows
    group, key = [HOUR, *level.within], [HOUR, *level.within, *level.columns]
    old = kept.lazy().select(key).unique().filter(~_all_overflow(level.columns))
    taken = old.group_by(group).len("taken")
    new = rows.lazy().group_by(key).agg(pl.col("count").sum()).join(old, on=key, how="anti")
    ranked = (
        new.filter(~_all_overflow(level.columns))
        .sort("count", *level.columns, descending=[True, *[False] * len(level.columns)])
        .with_columns(rank=pl.int_range(1, pl.len() + 1).over(group))
        .join(taken, on=group, how="left")
    )
    beyond = ranked.filter(pl.col("rank") + pl.col("taken").fill_null(0) > level.values_max)
    found = beyond.select(*key, beyond=pl.lit(True)).collect()
    if found.is_empty():
        return rows
    is_beyond = pl.col("beyond").fill_null(False)
    return (
        rows.join(found, on=key, how="left")
        .with_columns(
            *(pl.when(is_beyond).then(pl.lit(OVERFLOW)).otherwise(name).alias(name) for name in level.columns),
            folded=pl.col("folded") | is_beyond,
        )
        .drop("beyond")
    )


def _within(rows: pl.DataFrame, level: Level, kept: pl.DataFrame) -> bool:
    """Whether all hours and owners together stay within the bound: what is usual, and cheap to find."""
    if rows.height + kept.height <= level.values_max:
        return True
    different = 1
    for name in level.columns:
        different *= rows[name].n_unique() + kept[name].n_unique()
    return different <= level.values_max


def _all_overflow(columns: Sequence[str]) -> pl.Expr:
    return pl.all_horizontal(pl.col(name) == OVERFLOW for name in columns)


def folded(reader: Reader, names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """For each set of `names` with folded spans: its name, these spans, and at most so many series they were of.

    A series counts anew in each minute and run that folds it.
    """
    for name in names:
        spans, series = reader.row(
            "SELECT COALESCE(sum(count), 0)::BIGINT, COALESCE(sum(folded_series), 0)::BIGINT "
            f"FROM {DimensionSet(name, ()).hours} WHERE folded_series > 0"
        )
        if spans:
            yield name, int(spans), int(series)
