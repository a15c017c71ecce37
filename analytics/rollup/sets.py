"""Sets of dimensions: each has two rollups, by minute and by hour, and a mark of how far they have come.

The base set is always there; others are configuration (`analyze.dimension_sets`). The tables of a set are made from
one template, `analytics/sql/rollup.sql`. A set that is added begins with all spans that are there. One that is no
longer configured stops where it is; its tables stay until `drop`, and go on from there where it comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import polars as pl

from analytics.rollup.partials import DIMENSIONS, rollup_schema
from collector.config import BASE_SET, AnalyzeConfig
from collector.errors import OperatorError
from collector.lake import engine
from collector.lake.lake import Lake, Reader, Transaction

log = logging.getLogger(__name__)

JOB = "rollup"
Length = Literal["1m", "1h"]


@dataclass(frozen=True)
class DimensionSet:
    """A name and the dimensions of its rollups, in the order of their columns."""

    name: str
    dimensions: tuple[str, ...]

    @property
    def job(self) -> str:
        """The name of its mark in table `progress`."""
        return JOB if self.name == BASE_SET else f"{JOB}/{self.name}"

    @property
    def minutes(self) -> str:
        """The table by minute."""
        return self._table("1m")

    @property
    def hours(self) -> str:
        """The table by hour."""
        return self._table("1h")

    @property
    def tables(self) -> tuple[tuple[str, Length], ...]:
        """Both tables, each with the length of its windows."""
        return (self.minutes, "1m"), (self.hours, "1h")

    @property
    def schema(self) -> pl.Schema:
        """The columns of both tables."""
        return rollup_schema(self.dimensions)

    def ddl(self) -> str:
        """The statements that create both tables."""
        template = resources.files("analytics").joinpath("sql", "rollup.sql").read_text(encoding="utf-8")
        columns = "".join(f"    {name} VARCHAR NOT NULL,\n" for name in self.dimensions)
        return "".join(template.format(table=table, dimensions=columns) for table, _ in self.tables)

    def _table(self, length: Length) -> str:
        return f"rollup_{length}" if self.name == BASE_SET else f"rollup_{self.name}_{length}"


BASE = DimensionSet(BASE_SET, DIMENSIONS)


def configured(config: AnalyzeConfig) -> tuple[DimensionSet, ...]:
    """The sets to keep, BASE first."""
    return (BASE, *(DimensionSet(name, tuple(dims)) for name, dims in config.dimension_sets.items() if dims))


def ensure(lake: Lake, sets: Sequence[DimensionSet]) -> None:
    """Create the tables that are missing. A set that misses one begins anew, with all spans that are there.

    So does a set whose tables have the measures of another release. Raises OperatorError where tables have other
    dimensions than the configuration says.
    """
    with lake.read() as reader:
        if not list(_missing(reader, sets)):
            return
    with lake.write() as transaction:
        for dimension_set in list(_missing(transaction, sets)):
            _remove(transaction, dimension_set)
            transaction.execute(dimension_set.ddl())


def drop(lake: Lake, name: str) -> None:
    """Remove the tables and the mark of a set. Raises OperatorError for the base, and where there is no such set."""
    dimension_set = DimensionSet(name, ())
    with lake.write() as transaction:
        present = [other for other, _ in stored(transaction)]
        if name == BASE_SET or name not in present:
            others = ", ".join(other for other in present if other != BASE_SET) or "none"
            raise OperatorError(f"set of dimensions {name!r}: expected one that is stored ({others}); name such a one")
        _remove(transaction, dimension_set)


def stored(reader: Reader) -> list[tuple[str, int | None]]:
    """The sets whose tables are in the lake, base first: name, and the snapshot that each has come to."""
    tables = set(_columns(reader))
    names = [BASE_SET, *sorted(table[7:-3] for table in tables if table.endswith("_1h") and table != BASE.hours)]
    sets = [s for name in names if tables.issuperset({(s := DimensionSet(name, ())).minutes, s.hours})]
    positions = reader.positions([s.job for s in sets])
    return [(s.name, positions[s.job]) for s in sets]


def _missing(reader: Reader, sets: Sequence[DimensionSet]) -> Iterator[DimensionSet]:
    columns = _columns(reader)
    for dimension_set in sets:
        found = [columns.get(table) for table, _ in dimension_set.tables]
        expected = dimension_set.schema.names()
        if found != [expected, expected]:
            for names in found:
                _check_dimensions(dimension_set, names)
            yield dimension_set


def _check_dimensions(dimension_set: DimensionSet, columns: Sequence[str] | None) -> None:
    if columns is None:
        return
    dimensions = columns[1 : columns.index("count")]
    if dimensions != list(dimension_set.dimensions):
        name = dimension_set.name
        raise OperatorError(
            f"analyze.dimension_sets.{name} = {list(dimension_set.dimensions)}: its tables are by {dimensions}; "
            "expected these; give the set another name, or set it to [] and remove its rollups: "
            f"spanlake analyze --drop {name}"
        )


def _remove(transaction: Transaction, dimension_set: DimensionSet) -> None:
    for table, _ in dimension_set.tables:
        transaction.execute(f'DROP TABLE IF EXISTS "{table}"')
    transaction.execute("DELETE FROM progress WHERE job = ?", [dimension_set.job])


def _columns(reader: Reader) -> dict[str, list[str]]:
    """The columns of each rollup table, in order."""
    rows = reader.rows(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE database_name = ? AND regexp_matches(table_name, '^rollup_(.+_)?1[mh]$') GROUP BY table_name",
        [engine.CATALOG],
    )
    return dict(rows)
