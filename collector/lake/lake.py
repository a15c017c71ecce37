"""The open lake of one process: readers and transactions by intent; no raw connection leaves this package."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from collector.errors import OperatorError, RetryableError
from collector.lake import engine
from collector.lake.columns import lacking
from collector.lake.deadline import bounded
from collector.lake.location import Location
from collector.lake.lock import exclusive
from collector.lake.tables import MADE, SCHEMA_VERSION, Definition

if TYPE_CHECKING:
    import polars as pl

Parameters = Sequence[object] | Mapping[str, object]


class Reader:
    """Queries at one snapshot of the lake; made by `Lake.read`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def arrow(self, sql: str, parameters: Parameters = ()) -> pa.Table:
        """The result as an Arrow table. Raises duckdb.Error with the database's message."""
        return self._connection.execute(sql, parameters).to_arrow_table()

    def frame(self, sql: str, parameters: Parameters = ()) -> pl.DataFrame:
        """The result as a polars frame. Raises duckdb.Error."""
        import polars as pl  # noqa: PLC0415 - the collector reads no frames and starts without polars

        return pl.DataFrame(self.arrow(sql, parameters))

    def batches(self, sql: str, parameters: Parameters = (), rows: int = 100_000) -> Iterator[pa.RecordBatch]:
        """The result in batches of about so many rows, as they come: it is never in memory as a whole.

        No other query may run on this reader until it is exhausted. Raises duckdb.Error.
        """
        yield from self._connection.execute(sql, parameters).to_arrow_reader(rows)

    def row(self, sql: str, parameters: Parameters = ()) -> tuple[Any, ...]:
        """The first row. Raises LookupError where there is none, duckdb.Error from the database."""
        row: tuple[Any, ...] | None = self._connection.execute(sql, parameters).fetchone()
        if row is None:
            raise LookupError(f"the query gave no row: {sql}")
        return row

    def rows(self, sql: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """All rows as tuples; for small results. Raises duckdb.Error."""
        rows: list[tuple[Any, ...]] = self._connection.execute(sql, parameters).fetchall()
        return rows

    def has(self, name: str) -> bool:
        """Whether the lake has a table, view or macro of this name."""
        return (name,) in self.rows(_OBJECTS_SQL)

    def filled(self) -> frozenset[str]:
        """Names of the tables that have files. Asking for them takes less than planning one query of a table."""
        found = self.rows(f"SELECT table_name FROM ducklake_table_info('{engine.CATALOG}') WHERE file_count > 0")
        return frozenset(name for (name,) in found)

    def snapshot_id(self) -> int:
        """The newest snapshot that this reader sees."""
        return int(self.row(f"SELECT id FROM {engine.CATALOG}.current_snapshot()")[0])

    def position(self, job: str) -> int | None:
        """How far `job` has come: the position of its last committed transaction, None before the first."""
        return self.positions([job])[job]

    def positions(self, jobs: Sequence[str]) -> dict[str, int | None]:
        """The position of each job."""
        found = self.rows("SELECT job, max(position) FROM progress WHERE list_contains(?, job) GROUP BY job", [jobs])
        return dict.fromkeys(jobs) | {job: int(position) for job, position in found}


class Transaction(Reader):
    """One transaction on the catalog; made by `Lake.write`."""

    def add_files(self, table: str, paths: Sequence[Path]) -> None:
        """Register whole Parquet files (see `segments.write_segment`) as rows of `table`."""
        for path in paths:
            self._connection.execute("CALL ducklake_add_data_files(?, ?, ?)", [engine.CATALOG, table, str(path)])

    def insert(self, table: str, rows: pa.Table | pa.RecordBatch) -> None:
        """Insert rows; the columns of `rows` are matched by name."""
        view = f"rows_{threading.get_ident()}"
        self._connection.register(view, rows)
        try:
            self._connection.execute(f'INSERT INTO "{table}" BY NAME SELECT * FROM {view}')
        finally:
            self._connection.unregister(view)

    def execute(self, sql: str, parameters: Parameters = ()) -> None:
        """Run a statement for its effect."""
        self._connection.execute(sql, parameters)

    def advance(self, job: str, expected: int | None, position: int) -> None:
        """Move `job` to `position` in this transaction.

        Raises StaleProgressError where another process has moved it from `expected`: the work was done there.
        """
        self.advance_all([job], expected, position)

    def advance_all(self, jobs: Sequence[str], expected: int | None, position: int) -> None:
        """As `advance`, for jobs that stand at the same position and move together."""
        for job, found in self.positions(jobs).items():
            check_stands_at(job, found, expected)
        self._connection.execute("INSERT INTO progress SELECT unnest(?), ?, now()::TIMESTAMP", [list(jobs), position])


class StaleProgressError(RetryableError):
    """Another process has done the same step of a job; nothing was committed here."""


def check_stands_at(job: str, found: int | None, expected: int | None) -> None:
    """Raise StaleProgressError where the position of a job is not the expected one."""
    if found != expected:
        raise StaleProgressError(f"{job} stands at {found}, not at {expected}: another process did this work")


def _begin(connection: duckdb.DuckDBPyConnection) -> None:
    """Begin, then name the lake: the other way round it would take a transaction of its own to look at the catalog."""
    connection.execute("BEGIN")
    connection.execute(f"USE {engine.CATALOG}")


class Lake:
    """A lake as one process has it open. Threads share it; each call takes a connection of its own."""

    def __init__(
        self,
        location: Location,
        *,
        read_only: bool,
        memory_bytes_max: int = 512 * 2**20,
        threads: int = 2,
        read_seconds_max: float | None = None,
        spill_folder: str = "",
        cache_files: bool = True,
    ) -> None:
        """Attach. `read_seconds_max` bounds the queries of each `read` together; None: no bound.

        A query that needs more than `memory_bytes_max` fails, or writes to `spill_folder` where one is given. Up to so
        much is kept of files that were read, if `cache_files`, where nothing is written.
        Raises OperatorError where there is no lake, or one of a newer schema.
        """
        self.location = location
        self.read_only = read_only
        self._read_seconds_max: float | None = None
        self._catalog: duckdb.DuckDBPyConnection | None = None
        """Kept between uses: a new connection takes longer than what it is used for. The commit lock guards it."""
        is_cached = read_only and cache_files
        self._root = engine.connect(memory_bytes_max, threads, cache_files=is_cached, spill_folder=spill_folder)
        if read_only:
            location.require()
            engine.attach(self._root, location, read_only=True)
        else:
            with exclusive(location.commit_lock):
                engine.attach(self._root, location, read_only=False)
        with self.read() as reader:
            check_version(reader, location)
        self._read_seconds_max = read_seconds_max

    def close(self) -> None:
        """Detach. Safe to call twice."""
        if self._catalog is not None:
            self._catalog.close()
        self._root.close()

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A reader whose queries all see the same snapshot. Raises QueryTimeoutError beyond `read_seconds_max`."""
        connection = self._root.cursor()
        try:
            with nullcontext() if self._read_seconds_max is None else bounded(connection, self._read_seconds_max):
                _begin(connection)
                yield Reader(connection)
        finally:
            connection.close()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """One transaction, alone among all processes: committed at the end, rolled back on an error.

        Raises what the body raises, and duckdb.Error from the commit.
        """
        if self.read_only:
            raise RuntimeError("this lake was opened read-only")
        with exclusive(self.location.commit_lock):
            connection = self._root.cursor()
            try:
                _begin(connection)
                yield Transaction(connection)
                connection.execute("COMMIT")
            finally:
                connection.close()

    @contextmanager
    def catalog(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction on the tables of the catalog itself, as `write`. For this package."""
        with exclusive(self.location.commit_lock):
            if self._catalog is None:
                self._catalog = self._root.cursor()
            self._catalog.execute("BEGIN")
            try:
                yield self._catalog
                self._catalog.execute("COMMIT")
            except BaseException:
                self._catalog.close()
                self._catalog = None
                raise

    @contextmanager
    def maintenance(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for calls that bring their own transaction, under the commit lock. For this package."""
        with exclusive(self.location.commit_lock):
            connection = self._root.cursor()
            try:
                connection.execute(f"USE {engine.CATALOG}")
                yield connection
            finally:
                connection.close()

    def ensure(self, definitions: Sequence[Definition]) -> None:
        """Create what of `definitions` is missing, columns included (NULL in the rows that are there); replace views
        and macros that were made of another DDL; stamp the schema version on a new lake.

        Raises OperatorError where the lake cannot be written.
        """
        try:
            self._ensure([MADE, *(d for d in definitions if d != MADE)])
        except (duckdb.Error, OSError) as error:
            raise OperatorError(
                f"the lake at storage.data = {str(self.location.root)!r} cannot be written: {error}; "
                "expected a folder with free space that no other program locks"
            ) from error

    def _ensure(self, definitions: Sequence[Definition]) -> None:
        with self.read() as reader:
            lacks = _due(definitions, reader) or lacking(definitions, reader.rows(_COLUMNS_SQL))
            if not lacks and not _inlined_otherwise(definitions, reader):
                return
        with self.write() as transaction:
            due = _due(definitions, transaction)
            for definition in due:
                if definition.kind == "table":
                    transaction.execute(definition.ddl())
                if definition.name == "schema_version":
                    transaction.execute("INSERT INTO schema_version VALUES (?, now()::TIMESTAMP)", [SCHEMA_VERSION])
            for table, column, kind in lacking(definitions, transaction.rows(_COLUMNS_SQL)):
                transaction.execute(f'ALTER TABLE "{table}" ADD COLUMN "{column}" {kind}')
            for definition in due:
                if definition.kind != "table":
                    transaction.execute(definition.ddl())
                    made = [definition.name, definition.fingerprint]
                    transaction.execute(f"INSERT INTO {MADE.name} VALUES (?, ?, now()::TIMESTAMP)", made)
        # DuckLake takes options only of tables that are committed.
        with self.write() as transaction:
            for definition in _inlined_otherwise(definitions, transaction):
                transaction.execute(
                    f"CALL {engine.CATALOG}.set_option('data_inlining_row_limit', ?, table_name => ?)",
                    [definition.inline_rows_max, definition.name],
                )


def check_version(reader: Reader, location: Location) -> None:
    """Raise OperatorError for a lake whose schema is newer than this release knows."""
    try:
        version = reader.row(f"SELECT max(version) FROM {engine.CATALOG}.main.schema_version")[0]
    except duckdb.CatalogException:
        return  # nobody has made its tables yet
    if version is not None and version > SCHEMA_VERSION:
        raise OperatorError(
            f"the lake at storage.data = {str(location.root)!r} has schema version {version}: expected at "
            f"most {SCHEMA_VERSION}; it was written by a newer spanlake: upgrade this one"
        )


def _due(definitions: Sequence[Definition], reader: Reader) -> list[Definition]:
    """Those that are missing, and views and macros that were made of another DDL, or nobody knows of which."""
    present = {name for (name,) in reader.rows(_OBJECTS_SQL)}
    made = dict(reader.rows(_MADE_SQL)) if MADE.name in present else {}
    return [
        d for d in definitions if d.name not in present or (d.kind != "table" and made.get(d.name) != d.fingerprint)
    ]


def _inlined_otherwise(definitions: Sequence[Definition], reader: Reader) -> list[Definition]:
    """Tables of which the catalog keeps inserts of other sizes than it should."""
    options = reader.rows(
        f"SELECT scope_entry, value FROM {engine.CATALOG}.options() "
        "WHERE option_name = 'data_inlining_row_limit' AND scope = 'TABLE' AND scope_entry IS NOT NULL"
    )
    rows_max = {entry.removeprefix("main."): int(value) for entry, value in options}
    return [d for d in definitions if d.kind == "table" and rows_max.get(d.name, 0) != d.inline_rows_max]


_COLUMNS_SQL = f"SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = '{engine.CATALOG}'"
_MADE_SQL = f"SELECT name, arg_max(fingerprint, made_at) FROM {MADE.name} GROUP BY name"
_OBJECTS_SQL = f"""
SELECT table_name FROM duckdb_tables() WHERE database_name = '{engine.CATALOG}'
UNION ALL SELECT view_name FROM duckdb_views() WHERE database_name = '{engine.CATALOG}'
UNION ALL SELECT function_name FROM duckdb_functions() WHERE database_name = '{engine.CATALOG}'
"""


def wait_for_lake(location: Location, timeout_seconds: float) -> bool:
    """Wait until a collector has made the lake; False where it did not within the time."""
    deadline = time.monotonic() + timeout_seconds
    while not location.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
