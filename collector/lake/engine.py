"""DuckDB and its extensions: the one place that loads them and attaches a lake.

The extensions come from Python packages of exactly DuckDB's release and are loaded by path: nothing is
downloaded, and DuckDB checks their signature.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import duckdb

from collector.errors import OperatorError
from collector.lake.location import Location

EXTENSIONS = ("ducklake", "sqlite_scanner")
CATALOG = "lake"
BUSY_TIMEOUT_MS = 30_000


def extension_path(name: str) -> Path:
    """The file of an extension. Raises OperatorError where its package is missing or of another release."""
    release = f"v{duckdb.__version__}"
    try:
        module = importlib.import_module(f"duckdb_extension_{name}")
    except ImportError as error:
        raise OperatorError(
            f"the package duckdb-extension-{name.replace('_', '-')} is not installed; "
            "install spanlake with its locked requirements"
        ) from error
    path = Path(next(iter(module.__path__))) / "extensions" / release / f"{name}.duckdb_extension"
    if not path.exists():
        raise OperatorError(
            f"the extension {name} has no build for DuckDB {release}; install spanlake with its locked requirements"
        )
    return path


def connect(
    memory_bytes_max: int, threads: int, *, cache_files: bool = True, spill_folder: str = ""
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the extensions loaded, time zone UTC, and nothing attached.

    `cache_files` keeps data files, and their footers as parsed, in memory once they were read: of use to who reads them
    again. What does not fit into memory goes to `spill_folder`; without one the query fails.
    """
    connection = duckdb.connect(
        config={
            "temp_directory": spill_folder,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": f"{memory_bytes_max // 2**20}MiB",
            "threads": str(threads),
            "enable_external_file_cache": str(cache_files).lower(),
        }
    )
    for name in EXTENSIONS:
        connection.load_extension(str(extension_path(name)))
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute(f"SET GLOBAL parquet_metadata_cache = {str(cache_files).lower()}")
    return connection


def attach_sql(location: Location, read_only: bool) -> str:
    """The ATTACH statement of a lake, as any DuckDB of the same release takes it."""
    options = [
        f"DATA_PATH {literal(str(location.files))}",
        "OVERRIDE_DATA_PATH true",
        "META_JOURNAL_MODE 'WAL'",
        f"META_BUSY_TIMEOUT {BUSY_TIMEOUT_MS}",
        "DATA_INLINING_ROW_LIMIT 0",
    ]
    if read_only:
        options.append("READ_ONLY")
    uri = literal(f"ducklake:sqlite:{location.catalog}")
    return f"ATTACH {uri} AS {CATALOG} ({', '.join(options)})"


def attach(connection: duckdb.DuckDBPyConnection, location: Location, read_only: bool) -> None:
    """Attach a lake and make it the default. Raises OperatorError with DuckDB's message."""
    try:
        connection.execute(attach_sql(location, read_only))
        connection.execute(f"USE {CATALOG}")
    except duckdb.Error as error:
        raise OperatorError(
            f"the lake at storage.data = {str(location.root)!r} does not open: {error}; "
            "expected a data folder written by this release of spanlake"
        ) from error


def literal(text: str) -> str:
    """`text` as an SQL string, for statements that take no bound values."""
    return "'" + text.replace("'", "''") + "'"
