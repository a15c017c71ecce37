"""Commits a segment and the mark of a job by the rows that DuckLake itself would write, at a fifth of the cost.

`ducklake_add_data_files` and an INSERT into `progress` take 36 ms of CPU, most of it in some fifty statements by which
DuckLake changes its catalog through DuckDB. What they come to are rows in seven tables, here written by one statement
of SQLite each (`sqlite_query` of DuckDB's extension), in one transaction under the commit lock, over the connection
that DuckLake has to the catalog.

Nothing of the catalog is taken for granted: DuckLake commits the first segment, and this module goes on only where
the rows that it would have written are those that DuckLake wrote; and again whenever the schema of the lake changes.
After the specification of DuckLake 1.0 (tables), and tests that compare catalogs row by row.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow.parquet.core import ParquetReader

from collector.lake import column_stats, engine, swap
from collector.lake.column_stats import FileStats, Leaf, TableStats
from collector.lake.lake import Lake, Reader, check_stands_at

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
_CATALOG = f"__ducklake_metadata_{engine.CATALOG}"
_METADATA = f"{_CATALOG}.main"
_COLUMNS = {
    "ducklake_table_stats": "table_id record_count next_row_id file_size_bytes",
    "ducklake_table_column_stats": "table_id column_id contains_null contains_nan min_value max_value extra_stats",
    "ducklake_inlined_data_tables": "table_id table_name schema_version",
}
_MARK_COLUMNS = "row_id begin_snapshot end_snapshot job position committed_at"
_MARK_KINDS = {1: pa.string(), 2: pa.int64(), 3: pa.timestamp("us")}
"""Of table `progress`, by column_id."""
_PROGRESS_SQL = f"""
SELECT t.table_id, i.table_name
FROM {_METADATA}.ducklake_table t JOIN {_METADATA}.ducklake_schema s USING (schema_id)
JOIN {_METADATA}.ducklake_inlined_data_tables i ON i.table_id = t.table_id
WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL AND s.schema_name = 'main' AND t.table_name = 'progress'
"""
_FILE_SQL = f"""
SELECT d.* FROM {_METADATA}.ducklake_data_file d WHERE d.table_id = ? AND d.path = ? AND d.end_snapshot IS NULL
"""
_FILE_STATS_SQL = f"""
SELECT * FROM {_METADATA}.ducklake_file_column_stats WHERE data_file_id = ? ORDER BY column_id
"""
# For SQLite; each takes rows as JSON, an array of arrays.
_STATE_SQL = """
SELECT json_array(
    (SELECT json_array(snapshot_id, schema_version, next_catalog_id, next_file_id) FROM ducklake_snapshot
     ORDER BY snapshot_id DESC LIMIT 1),
    (SELECT max(position) FROM {marks} WHERE job = ?1 AND end_snapshot IS NULL),
    (SELECT count(*) FROM ducklake_data_file WHERE table_id = {progress_id}),
    (SELECT count(*) FROM ducklake_column_mapping WHERE mapping_id = {mapping_id}),
    (SELECT json_group_array(json_array(table_id, next_row_id)) FROM ducklake_table_stats
     WHERE table_id IN ({spans_id}, {progress_id})),
    (SELECT json_group_array(json_array(
        table_id, column_id, contains_null, contains_nan, min_value, max_value, extra_stats))
     FROM ducklake_table_column_stats WHERE table_id IN ({spans_id}, {progress_id})))
"""
_TABLE_STATS_SQL = """
UPDATE ducklake_table_stats
SET record_count = record_count + (new.value ->> 1), next_row_id = next_row_id + (new.value ->> 1),
    file_size_bytes = file_size_bytes + (new.value ->> 2)
FROM json_each(?) AS new WHERE table_id = new.value ->> 0 RETURNING 1
"""
_TABLE_COLUMN_STATS_SQL = """
UPDATE ducklake_table_column_stats
SET contains_null = new.value ->> 2, contains_nan = NULL, min_value = new.value ->> 3, max_value = new.value ->> 4
FROM json_each(?) AS new WHERE table_id = new.value ->> 0 AND column_id = new.value ->> 1 RETURNING 1
"""


@dataclass(frozen=True)
class _Known:
    """The catalog as far as a commit needs it; it holds as long as `schema_version` does."""

    schema_version: int
    spans_id: int
    progress_id: int
    marks: str
    """The table of the catalog in which the rows of `progress` are."""
    mapping_id: int
    """How columns of segments are found: by their names."""
    leaves: Sequence[Leaf]


@dataclass(frozen=True)
class _State:
    """What the catalog holds at the begin of a commit."""

    snapshot_id: int
    schema_version: int
    next_catalog_id: int
    next_file_id: int
    position: int | None
    next_row_ids: dict[int, int]
    column_stats: dict[tuple[int, int], TableStats]


@dataclass(frozen=True)
class _Segment:
    """A file to be registered."""

    path: Path
    rows: int
    size_bytes: int
    footer_bytes: int
    stats: Sequence[FileStats]


class Appender:
    """Registers segments and moves a job's mark, once it has seen DuckLake do it. For one thread."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._known: _Known | None = None
        self._learns_at = 0.0

    def commit(self, path: Path, job: str, expected: int | None, position: int) -> bool:
        """Register the segment `path` and move `job`, in one transaction.

        False where that is to be left to DuckLake; then nothing has changed. Raises StaleProgressError as
        Transaction.advance, OSError where there is no such file, and duckdb.Error.
        """
        known = self._known
        if known is None:
            return False
        try:
            with self._lake.catalog() as connection:
                segment = _segment(path, known.leaves)
                state = _state(connection, known, job)
                if segment is None:
                    return False
                if state is None or state.schema_version != known.schema_version:
                    self._forget(0.0 if state else RETRY_SECONDS)
                    return False
                check_stands_at(job, state.position, expected)
                _write(connection, known, state, segment, job, position)
        except duckdb.Error:
            self._forget(RETRY_SECONDS)
            raise
        return True

    def learn(self, path: Path) -> None:
        """Go on as DuckLake did with the segment `path`, where that is known in every row. Never raises."""
        if self._known is not None or time.monotonic() < self._learns_at:
            return
        try:
            with self._lake.read() as reader:
                self._known = _known(reader, path)
        except (duckdb.Error, pa.ArrowException, OSError, LookupError):
            log.exception("the catalog does not tell how it was written")
        if self._known is None:
            self._forget(RETRY_SECONDS)

    def _forget(self, seconds: float) -> None:
        """Leave all to DuckLake, at least for so long."""
        self._known, self._learns_at = None, time.monotonic() + seconds


def _known(reader: Reader, path: Path) -> _Known | None:
    """What is to be known after DuckLake registered `path`; None where its rows are not those that `_write` makes."""
    spans = swap.known(reader)
    progress = reader.rows(_PROGRESS_SQL)
    if (
        spans is None
        or any(swap.columns(reader, table) != names.split() for table, names in _COLUMNS.items())
        or len(progress) != 1
        or swap.columns(reader, progress[0][1]) != _MARK_COLUMNS.split()
    ):
        return None
    schema_version = reader.row(
        f"SELECT schema_version FROM {_METADATA}.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1"
    )[0]
    file = reader.row(_FILE_SQL, [spans.table_id, path.name])
    stats = reader.rows(_FILE_STATS_SQL, [file[0]])
    leaves = column_stats.leaves(spans.schema)
    segment = _segment(path, leaves)
    known = _Known(schema_version, spans.table_id, progress[0][0], progress[0][1], file[14], leaves)
    if (
        segment is None
        or list(file) != _file_row(known, segment, file[0], file[2], file[11])
        or stats != [(file[0], spans.table_id, *each, None, None) for each in segment.stats]
    ):
        return None
    return known


def _segment(path: Path, leaves: Sequence[Leaf]) -> _Segment | None:
    reader = ParquetReader()  # pq.read_metadata looks at each column, for four times the cost
    reader.open(str(path))
    metadata = reader.metadata
    stats = column_stats.of_file(metadata, leaves)
    if stats is None:
        return None
    return _Segment(path, metadata.num_rows, path.stat().st_size, metadata.serialized_size, stats)


def _file_row(known: _Known, segment: _Segment, file_id: int, snapshot_id: int, first_row_id: int) -> list[Any]:
    values = [file_id, known.spans_id, snapshot_id, None, None, segment.path.name, 1, "parquet", segment.rows]
    return [*values, segment.size_bytes, segment.footer_bytes, first_row_id, None, None, known.mapping_id, None]


def _sqlite(connection: duckdb.DuckDBPyConnection, sql: str, parameter: str) -> list[tuple[Any, ...]]:
    """The rows of a statement that SQLite runs in the transaction of `connection`."""
    query = f"FROM sqlite_query({engine.literal(_CATALOG)}, {engine.literal(sql)}, params = row(?))"
    return connection.execute(query, [parameter]).fetchall()


def _change(connection: duckdb.DuckDBPyConnection, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """Run a statement that changes a row for each of `rows`."""
    changed = len(_sqlite(connection, sql, json.dumps(rows))) if rows else 0
    if changed != len(rows):
        raise duckdb.InternalException(f"{changed} rows of the catalog changed, not {len(rows)}: {sql}")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Sequence[object]]) -> None:
    values = ", ".join(f"value ->> {number}" for number in range(len(rows[0])))
    _change(connection, f"INSERT INTO {table} SELECT {values} FROM json_each(?) RETURNING 1", rows)


def _state(connection: duckdb.DuckDBPyConnection, known: _Known, job: str) -> _State | None:
    """What the catalog holds; None where it is not as DuckLake left it when it was learnt."""
    ((text,),) = _sqlite(connection, _STATE_SQL.format(**vars(known)), job)
    snapshot, position, files_of_progress, mappings, tables, columns = map(_parsed, json.loads(text))
    stats = {
        (table_id, column_id): TableStats(contains_null, least, greatest)
        for table_id, column_id, contains_null, contains_nan, least, greatest, extra in columns
        if contains_nan is None and extra is None
    }
    wanted = {(known.spans_id, leaf.column_id) for leaf in known.leaves} | {
        (known.progress_id, column_id) for column_id in _MARK_KINDS
    }
    next_row_ids = dict(tables)
    is_as_known = not files_of_progress and mappings == 1 and len(tables) == len(next_row_ids) == 2
    if not is_as_known or not wanted <= stats.keys():
        return None
    snapshot_id, schema_version, next_catalog_id, next_file_id = snapshot
    return _State(snapshot_id, schema_version, next_catalog_id, next_file_id, position, next_row_ids, stats)


def _parsed(value: Any) -> Any:
    """An array within an array comes as text from some releases of SQLite."""
    return json.loads(value) if isinstance(value, str) else value


def _write(
    connection: duckdb.DuckDBPyConnection, known: _Known, state: _State, segment: _Segment, job: str, position: int
) -> None:
    """All rows of a commit."""
    now, snapshot_id, file_id = datetime.now(UTC), state.snapshot_id + 1, state.next_file_id
    moment = now.strftime("%Y-%m-%d %H:%M:%S.%f")
    mark = [
        FileStats(column_id, 0, 1, 0, text, text)
        for column_id, text in zip(_MARK_KINDS, (job, str(position), moment), strict=True)
    ]
    file_row = _file_row(known, segment, file_id, snapshot_id, state.next_row_ids[known.spans_id])
    columns = _changed(known, state, segment.stats, mark)
    changes = f"inserted_into_table:{known.spans_id},inlined_insert:{known.progress_id}"
    next_row_id = state.next_row_ids[known.progress_id]
    snapshot = [snapshot_id, f"{moment}+00", state.schema_version, state.next_catalog_id, file_id + 1]
    _insert(connection, "ducklake_snapshot", [snapshot])
    _insert(connection, "ducklake_snapshot_changes", [[snapshot_id, changes, None, None, None]])
    _insert(connection, "ducklake_data_file", [file_row])
    stats = [[file_id, known.spans_id, *each, None, None] for each in segment.stats]
    _insert(connection, "ducklake_file_column_stats", stats)
    _insert(connection, known.marks, [[next_row_id, snapshot_id, None, job, position, moment]])
    tables = [[known.spans_id, segment.rows, segment.size_bytes], [known.progress_id, 1, 0]]
    _change(connection, _TABLE_STATS_SQL, tables)
    _change(connection, _TABLE_COLUMN_STATS_SQL, columns)


def _changed(
    known: _Known, state: _State, of_spans: Sequence[FileStats], of_mark: Sequence[FileStats]
) -> list[tuple[object, ...]]:
    """The statistics of columns that the commit changes: table_id, column_id, contains_null, least, greatest."""
    kinds = {(known.spans_id, leaf.column_id): leaf.kind for leaf in known.leaves}
    kinds |= {(known.progress_id, column_id): kind for column_id, kind in _MARK_KINDS.items()}
    new = {(known.spans_id, each.column_id): each for each in of_spans}
    new |= {(known.progress_id, each.column_id): each for each in of_mark}
    return [
        (*key, *after)
        for key, each in new.items()
        if (after := column_stats.merged(state.column_stats[key], each, kinds[key])) != state.column_stats[key]
    ]
