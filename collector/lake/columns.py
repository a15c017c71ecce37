"""Columns that tables of an older lake lack: those of today's DDL that are not there yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb

from collector.lake.tables import Definition


def lacking(definitions: Sequence[Definition], present: Iterable[Sequence[Any]]) -> list[tuple[str, str, str]]:
    """Table, column and type of what the tables of `definitions` lack.

    `present`: table and column of what is there; a table of which nothing is there lacks nothing, it is to be created.
    """
    there = {(table, column) for table, column in present}
    tables = {table for table, _ in there}
    wanted = [definition for definition in definitions if definition.kind == "table" and definition.name in tables]
    if not wanted:
        return []
    with duckdb.connect() as connection:
        for definition in wanted:
            connection.execute(definition.ddl())
        columns = connection.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
        )
        return [(table, column, kind) for table, column, kind in columns.fetchall() if (table, column) not in there]
