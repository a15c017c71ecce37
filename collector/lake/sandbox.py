"""SQL of users: one reading statement, on the lake alone, within bounds.

Three walls stand behind each other: the lake is attached read-only; DuckDB is locked down (no file outside
the data files, no extension, no change of settings); and the parsed statement is held to known table functions,
since those of extensions (`sqlite_scan`, `ducklake_cleanup_old_files`) mind neither of the other two.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from collector.config import QueryConfig
from collector.errors import SpanlakeError
from collector.lake import engine
from collector.lake.lake import Reader, check_version
from collector.lake.location import Location
from collector.lake.retention import SAMPLED, SPANS

BATCH_ROWS = 10_000
THREADS = min(4, os.cpu_count() or 1)
SPILL_FACTOR = 4
"""Bytes on disk that a query may spill, as a multiple of `query.memory_bytes_max`."""

TABLE_FUNCTIONS = frozenset(
    {
        "duckdb_columns",
        "duckdb_functions",
        "duckdb_keywords",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "ducklake_current_snapshot",
        "ducklake_list_files",
        "ducklake_snapshots",
        "ducklake_table_changes",
        "ducklake_table_deletions",
        "ducklake_table_info",
        "ducklake_table_insertions",
        "generate_series",
        "histogram",
        "histogram_values",
        "json_each",
        "json_tree",
        "range",
        "repeat",
        "unnest",
    }
)
LAKE_FUNCTIONS = frozenset(
    {"current_snapshot", "snapshots", "table_changes", "table_deletions", "table_info", "table_insertions"}
)
"""Functions of the attached catalog, called as `lake.snapshots()`."""


class QueryError(SpanlakeError):
    """A user's statement that is refused or that failed; the message is the database's where it has one."""


@dataclass(frozen=True)
class Result:
    """The answer to one statement: its schema, and its rows as they are computed (read them once)."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


class Sandbox:
    """A locked-down connection to a lake, for one statement after the other; made by `open_sandbox`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: QueryConfig) -> None:
        self._connection = connection
        self._config = config

    @contextmanager
    def run(self, sql: str) -> Iterator[Result]:
        """Run one reading statement: SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE or EXPLAIN.

        After `query.timeout_seconds` it is interrupted, also while its rows are read.

        Raises QueryError for a statement that is refused or fails, here or while the rows are read.
        """
        expired = threading.Event()
        timer = threading.Timer(self._config.timeout_seconds, _interrupt, (self._connection, expired))
        timer.daemon = True
        timer.start()
        try:
            with _database_errors(expired, self._config):
                statement = _admit(self._connection, sql)
                reader = self._connection.execute(statement).to_arrow_reader(BATCH_ROWS)
            yield Result(reader.schema, _batches(reader, expired, self._config))
        finally:
            timer.cancel()

    def interrupt(self) -> None:
        """End the statement that runs now, if any, with a QueryError. Called from another thread."""
        self._connection.interrupt()


@contextmanager
def open_sandbox(location: Location, config: QueryConfig) -> Iterator[Sandbox]:
    """Open a lake for SQL of users. Memory is bounded by `query.memory_bytes_max`, spilled bytes by four times that.

    Raises OperatorError where there is no lake.
    """
    location.require()
    with tempfile.TemporaryDirectory(prefix="spanlake-query-") as spill:
        connection = engine.connect(config.memory_bytes_max, THREADS)
        try:
            engine.attach(connection, location, read_only=True)
            reader = Reader(connection)
            check_version(reader, location)
            _show_sampled(connection, reader)
            _lock_down(connection, location, spill, SPILL_FACTOR * config.memory_bytes_max)
            yield Sandbox(connection, config)
        finally:
            # A statement whose rows nobody reads to their end still runs; closing would wait for it.
            connection.interrupt()
            connection.close()


def _show_sampled(connection: duckdb.DuckDBPyConnection, reader: Reader) -> None:
    """Where spans were sampled, let `spans` mean those that were kept too, also to the lake's views and macros.

    A temporary view goes before what the lake has under its name.
    """
    tables = [f"{engine.CATALOG}.main.{table}" for table in (SPANS, SAMPLED)]
    try:
        are_some = reader.rows(f"SELECT 1 FROM {tables[1]} LIMIT 1")
    except duckdb.CatalogException:
        return  # nothing was ever sampled here
    if are_some:
        connection.execute(f"CREATE TEMP VIEW {SPANS} AS FROM {' UNION ALL FROM '.join(tables)}")


def _lock_down(connection: duckdb.DuckDBPyConnection, location: Location, spill: str, spill_bytes: int) -> None:
    # Settings take no bound values.
    connection.execute(f"SET temp_directory = {engine.literal(spill)}")
    connection.execute(f"SET max_temp_directory_size = '{spill_bytes // 2**20}MiB'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET allowed_directories = [{engine.literal(f'{location.files}/')}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _interrupt(connection: duckdb.DuckDBPyConnection, expired: threading.Event) -> None:
    expired.set()
    with suppress(duckdb.Error):  # the statement may have ended just now, and its connection with it
        connection.interrupt()


@contextmanager
def _database_errors(expired: threading.Event, config: QueryConfig) -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _timed_out(config) if expired.is_set() else QueryError(str(error)) from error


def _timed_out(config: QueryConfig) -> QueryError:
    return QueryError(
        f"the query was interrupted after query.timeout_seconds = {config.timeout_seconds:g}; "
        "ask for less (a time range in WHERE, a LIMIT), or raise the limit"
    )


def _batches(reader: pa.RecordBatchReader, expired: threading.Event, config: QueryConfig) -> Iterator[pa.RecordBatch]:
    """The batches. An interrupt that falls between two of them stops nothing: the time is looked at here too."""
    while True:
        with _database_errors(expired, config):
            batch = next(reader, None)
        if batch is None:
            return
        if expired.is_set():
            raise _timed_out(config)
        yield batch


def _admit(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of `sql`, where it only reads the lake. Raises QueryError."""
    statement = _single(connection, sql)
    inner = statement
    if statement.type == duckdb.StatementType.EXPLAIN:
        inner = _single(connection, _explained(statement.query))
    # As a literal: for a bound value, DuckDB imports pandas first, which takes longer than all else here.
    serialized = connection.execute(f"SELECT json_serialize_sql({engine.literal(inner.query)})").fetchall()
    tree = json.loads(serialized[0][0])
    if inner.type != duckdb.StatementType.SELECT or tree["error"]:
        raise QueryError(
            f"{_first_word(inner.query)} is refused: expected one statement that only reads "
            "(SELECT, FROM, WITH, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN)"
        )
    _check_tree(tree["statements"], connection)
    return statement


def _single(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    # By the locked connection: for IMPORT DATABASE, parsing alone reads files.
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError(
            f"expected one statement that only reads, found {len(statements)} "
            "(a PIVOT counts as one where its columns are named: ON column IN (values))"
        )
    return statements[0]


def _first_word(sql: str) -> str:
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    word = sql.encode()[starts[0] :].split(maxsplit=1)[0] if starts else b""
    return word.decode(errors="replace").upper()


def _explained(sql: str) -> str:
    """What an EXPLAIN statement explains: the text after EXPLAIN [ANALYZE] [(options)]."""
    text = sql.encode()
    starts = [start for start, kind in duckdb.tokenize(sql) if kind != duckdb.token_type.comment]
    words = [text[start:end].strip().upper() for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    skip = 2 if len(words) > 1 and words[1] == b"ANALYZE" else 1
    if len(words) > skip + 1 and words[skip] == b"(" and words[skip + 1] in (b"FORMAT", b"ANALYZE"):
        skip = words.index(b")", skip) + 1
    return text[starts[skip] :].decode() if skip < len(starts) else ""


def _lake_macros(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute(_TABLE_MACROS_SQL).fetchall()
    return {name for (name,) in rows}


_TABLE_MACROS_SQL = f"""
SELECT function_name FROM duckdb_functions()
WHERE database_name = {engine.literal(engine.CATALOG)} AND function_type = 'table_macro'
"""


def _check_tree(node: Any, connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse unknown table functions, and files in place of tables, anywhere in a parsed statement."""
    pending = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            if node.get("type") == "TABLE_FUNCTION":
                _check_function(node["function"], connection)
            elif node.get("type") == "BASE_TABLE" and set("./\\*?:") & set(node["table_name"]):
                raise QueryError(f"{node['table_name']!r} is refused: expected a table or view of the lake")
            pending.extend(node.values())


def _check_function(function: dict[str, Any], connection: duckdb.DuckDBPyConnection) -> None:
    name = function.get("function_name", "").lower()
    of_lake = engine.CATALOG in (function.get("catalog", "").lower(), function.get("schema", "").lower())
    known = LAKE_FUNCTIONS if of_lake else TABLE_FUNCTIONS
    # The lake's own are many to look through, and few statements ask for one.
    if name not in known and name not in _lake_macros(connection):
        raise QueryError(
            f"the table function {name!r} is refused: expected tables and views of the lake, or a table "
            "function that reads nothing else"
        )
