"""Puts a merged file in the place of its sources: the rows that DuckLake's own merge writes into the catalog.

`ducklake_merge_adjacent_files` of DuckLake 1.0 removes the sources with all that is known of them, schedules their
files for deletion, adds the new file from the first snapshot of its rows on (`partial_max` says the last), and
notes a snapshot `merge_adjacent`. The same is done here, in one transaction under the commit lock, on a catalog
that is known in every column; on any other nothing is done. After the specification of DuckLake 1.0 (tables) and
`WriteMergeAdjacent` of its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from collector.lake import engine
from collector.lake.lake import Lake, Reader
from collector.lake.retention import AGES, SPANS, WINDOW
from collector.lake.rewrite import field
from collector.lake.tiers import File
from collector.spans import SPAN_SCHEMA

CATALOG_VERSION = "1.0"
_METADATA = f"__ducklake_metadata_{engine.CATALOG}.main"
_COLUMNS = {
    "ducklake_data_file": "data_file_id table_id begin_snapshot end_snapshot file_order path path_is_relative "
    "file_format record_count file_size_bytes footer_size row_id_start partition_id encryption_key mapping_id "
    "partial_max",
    "ducklake_file_column_stats": "data_file_id table_id column_id column_size_bytes value_count null_count min_value "
    "max_value contains_nan extra_stats",
    "ducklake_files_scheduled_for_deletion": "data_file_id path path_is_relative schedule_start",
    "ducklake_snapshot": "snapshot_id snapshot_time schema_version next_catalog_id next_file_id",
    "ducklake_snapshot_changes": "snapshot_id changes_made author commit_message commit_extra_info",
}
_DESCRIBE_FILES = (
    "ducklake_data_file",
    "ducklake_file_column_stats",
    "ducklake_delete_file",
    "ducklake_file_partition_value",
    "ducklake_file_variant_stats",
)
_TABLE_SQL = f"""
SELECT t.table_id FROM {_METADATA}.ducklake_table t JOIN {_METADATA}.ducklake_schema s USING (schema_id)
WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL AND t.table_name = ? AND s.path || t.path = ? || '/'
    AND t.path_is_relative AND s.path_is_relative
"""
_FIELDS_SQL = f"""
SELECT column_id, column_name, parent_column FROM {_METADATA}.ducklake_column
WHERE table_id = ? AND end_snapshot IS NULL ORDER BY column_order
"""
_FILES_SQL = f"""
SELECT
    f.data_file_id, f.path, f.path_is_relative, f.record_count, f.file_size_bytes, f.begin_snapshot,
    COALESCE(f.partial_max, f.begin_snapshot), f.row_id_start, COALESCE(substr(s.max_value, 1, 10), ''),
    COALESCE(date_diff('second', TRY_CAST(s.min_value AS TIMESTAMP_NS), TRY_CAST(s.max_value AS TIMESTAMP_NS)), 0)
FROM {_METADATA}.ducklake_data_file f
LEFT JOIN {_METADATA}.ducklake_column c
    ON c.table_id = f.table_id AND c.end_snapshot IS NULL AND c.parent_column IS NULL AND c.column_name = $2
LEFT JOIN {_METADATA}.ducklake_file_column_stats s ON s.data_file_id = f.data_file_id AND s.column_id = c.column_id
WHERE f.table_id = $1 AND f.end_snapshot IS NULL AND f.encryption_key IS NULL AND f.partition_id IS NULL
    AND f.record_count > 0
    AND f.begin_snapshot >= (
        SELECT max(begin_snapshot) FROM {_METADATA}.ducklake_schema_versions WHERE table_id = $1
    )
    AND NOT EXISTS (FROM {_METADATA}.ducklake_delete_file d WHERE d.data_file_id = f.data_file_id)
ORDER BY f.begin_snapshot, f.row_id_start, f.data_file_id
"""
_STATS_SQL = f"""
SELECT s.column_id, c.column_type, s.column_size_bytes, s.value_count, s.null_count, s.min_value, s.max_value,
    s.contains_nan::BIGINT
FROM {_METADATA}.ducklake_file_column_stats s
JOIN {_METADATA}.ducklake_column c ON c.table_id = s.table_id AND c.column_id = s.column_id AND c.end_snapshot IS NULL
WHERE list_contains(?, s.data_file_id) AND s.extra_stats IS NULL
ORDER BY s.column_id
"""


@dataclass(frozen=True)
class Known:
    """What is known of a table: its name and id, and its Arrow schema with field ids."""

    name: str
    table_id: int
    schema: pa.Schema

    @property
    def folder(self) -> str:
        """Where its files are, in the folder of all data files."""
        return folder_of(self.name)


def folder_of(table: str) -> str:
    """Where the files of a table are, in the folder of all data files."""
    return f"main/{table}"


def known(reader: Reader, table: str = SPANS, schema: pa.Schema = SPAN_SCHEMA) -> Known | None:
    """The table as the catalog has it; None where that is in any way not what this module knows to change.

    `schema` is that of its files.
    """
    version = dict(reader.rows(f"SELECT key, value FROM {_METADATA}.ducklake_metadata WHERE scope IS NULL"))
    tables = reader.rows(_TABLE_SQL, [table, folder_of(table)])
    if (
        version.get("version") != CATALOG_VERSION
        or version.get("encrypted") != "false"
        or any(columns(reader, name) != names.split() for name, names in _COLUMNS.items())
        or len(tables) != 1
        or columns(reader, f"ducklake_inlined_delete_{tables[0][0]}")
    ):
        return None
    table_id = int(tables[0][0])
    ids: dict[int | None, dict[str, int]] = {}
    for column_id, name, parent in reader.rows(_FIELDS_SQL, [table_id]):
        ids.setdefault(parent, {})[name] = column_id
    if list(ids[None]) != schema.names:
        return None
    return Known(table, table_id, pa.schema([_with_ids(column, ids[None][column.name], ids) for column in schema]))


def columns(reader: Reader, table: str) -> list[str]:
    """The columns of a table of the catalog; none where it has no such table."""
    try:
        return list(reader.arrow(f"FROM {_METADATA}.{table} LIMIT 0").schema.names)
    except duckdb.CatalogException:
        return []


def _with_ids(column: pa.Field, field_id: int, ids: dict[int | None, dict[str, int]]) -> pa.Field:
    """The field and all fields in it with the ids that the catalog gives them."""
    of_child, kind = ids.get(field_id, {}), column.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_with_ids(child, of_child[child.name], ids) for child in kind])
    elif pa.types.is_list(kind):
        kind = pa.list_(_with_ids(kind.value_field, of_child["element"], ids))
    elif pa.types.is_map(kind):
        kind = pa.map_(
            _with_ids(kind.key_field, of_child["key"], ids), _with_ids(kind.item_field, of_child["value"], ids)
        )
    return field(column.name, kind, column.nullable, field_id)


def files(reader: Reader, table: Known) -> list[File]:
    """The live data files of a table that may be merged, in the order of their rows."""
    found = reader.rows(_FILES_SQL, [table.table_id, AGES.get(table.name, WINDOW)])
    return [
        File(int(id_), path, bool(is_relative), int(rows), int(size), int(begin), int(last), row_id, day, seconds)
        for id_, path, is_relative, rows, size, begin, last, row_id, day, seconds in found
    ]


def swap(lake: Lake, table: Known, sources: Sequence[File], new: Path, *, with_row_ids: bool) -> bool:
    """Let `new` take the place of `sources`, files of `table`, of whose rows it is made.

    False where that is no longer possible, as one of them was removed or lost rows; then nothing has changed.
    Raises duckdb.Error.
    """
    with lake.maintenance() as connection:
        connection.execute("BEGIN")
        reader = Reader(connection)
        if known(reader, table.name, table.schema) != table or not set(sources) <= set(files(reader, table)):
            return False
        moment, new_id = _add_snapshot(connection.execute, reader, table.table_id)
        ids = [source.data_file_id for source in sources]
        stats = [[new_id, table.table_id, *values, None] for values in _stats(reader, ids)]
        _remove(connection.execute, table.folder, sources, moment)
        _add(connection.execute, table.table_id, new_id, sources, new, with_row_ids=with_row_ids)
        _insert(connection.execute, "ducklake_file_column_stats", stats)
        connection.execute("COMMIT")
    return True


Execute = Callable[..., Any]


def _insert(execute: Execute, table: str, rows: Sequence[Sequence[object]]) -> None:
    if rows:
        row = f"({', '.join('?' * len(rows[0]))})"
        execute(f"INSERT INTO {_METADATA}.{table} VALUES {', '.join([row] * len(rows))}", list(chain(*rows)))


def _add_snapshot(execute: Execute, reader: Reader, table_id: int) -> tuple[str, int]:
    """Note a snapshot with a merge; return its time as the catalog writes times, and the id for a new file."""
    latest, schema_version, catalog_id, file_id = reader.row(
        "SELECT snapshot_id, schema_version, next_catalog_id, next_file_id "
        f"FROM {_METADATA}.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1"
    )
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    _insert(execute, "ducklake_snapshot", [[latest + 1, moment, schema_version, catalog_id, file_id + 1]])
    _insert(execute, "ducklake_snapshot_changes", [[latest + 1, f"merge_adjacent:{table_id}", None, None, None]])
    return moment, int(file_id)


def _remove(execute: Execute, folder: str, sources: Sequence[File], moment: str) -> None:
    for table in _DESCRIBE_FILES:
        execute(
            f"DELETE FROM {_METADATA}.{table} WHERE data_file_id IN (SELECT unnest(?::BIGINT[]))",
            [[source.data_file_id for source in sources]],
        )
    scheduled = [
        [
            source.data_file_id,
            f"{folder}/{source.path}" if source.is_relative else source.path,
            source.is_relative,
            moment,
        ]
        for source in sources
    ]
    _insert(execute, "ducklake_files_scheduled_for_deletion", scheduled)


def _add(
    execute: Execute, table_id: int, new_id: int, sources: Sequence[File], new: Path, *, with_row_ids: bool
) -> None:
    footer_bytes = pq.read_metadata(new).serialized_size
    values = [new_id, table_id, min(source.begin_snapshot for source in sources), None, None, new.name, 1, "parquet"]
    values += [sum(source.rows for source in sources), new.stat().st_size, footer_bytes]
    values += [None if with_row_ids else sources[0].row_id_start, None, None, None]
    values += [max(source.last_snapshot for source in sources)]
    _insert(execute, "ducklake_data_file", [values])


def _stats(reader: Reader, ids: Sequence[int]) -> list[list[object]]:
    """The statistics of each column over all files: column_id, sizes and counts, least and greatest value, NaN.

    A bound that one file does not tell is told of none; a column of which a file tells nothing has no statistics.
    """
    found = []
    for column_id, group in groupby(reader.rows(_STATS_SQL, [list(ids)]), key=lambda row: row[0]):
        rows = list(group)
        if len(rows) != len(ids):
            continue
        sized, with_values = list(zip(*rows, strict=True)), [row for row in rows if row[3] != 0]
        key = _order(rows[0][1])
        least, greatest = [row[5] for row in with_values], [row[6] for row in with_values]
        nans = [row[7] for row in with_values]
        found.append(
            [
                column_id,
                *(None if None in counts else sum(counts) for counts in sized[2:5]),
                None if None in least else min(least, key=key, default=None),
                None if None in greatest else max(greatest, key=key, default=None),
                None if None in nans else max(nans, default=None),
            ]
        )
    return found


def _order(column_type: str) -> Callable[[str], Any]:
    """How values of a type are ranked, which the catalog keeps as text; times are written so that text ranks them."""
    if column_type.startswith(("int", "uint")):
        return int
    if column_type == "boolean":
        return lambda value: value in {"1", "true"}
    return float if column_type.startswith("float") else str
