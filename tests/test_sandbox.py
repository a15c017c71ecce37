"""SQL of users: what works, what is refused, what is bounded."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.config import QueryConfig
from collector.errors import OperatorError
from collector.lake.location import Location
from collector.lake.sandbox import QueryError, Sandbox, open_sandbox


@pytest.fixture(scope="module")
def location(lake_folder: Path) -> Location:
    return Location(lake_folder)


@pytest.fixture(scope="module")
def sandbox(location: Location) -> Iterator[Sandbox]:
    with open_sandbox(location, QueryConfig()) as opened:
        yield opened


def rows(sandbox: Sandbox, sql: str) -> list[dict[str, object]]:
    with sandbox.run(sql) as result:
        return [row for batch in result.batches for row in batch.to_pylist()]


def bounded_rows(location: Location, config: QueryConfig, sql: str) -> list[dict[str, object]]:
    with open_sandbox(location, config) as sandbox:
        return rows(sandbox, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM spans",
        "FROM lake.main.spans LIMIT 1",
        "select 1;",
        "/* why */ SELECT 1 -- so",
        "WITH t AS (SELECT 1 AS x) SELECT * FROM t",
        "VALUES (1), (2)",
        "TABLE spans LIMIT 1",
        "DESCRIBE spans",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SUMMARIZE rollup_1m",
        "EXPLAIN SELECT count(*) FROM spans",
        "EXPLAIN ANALYZE SELECT count(*) FROM spans",
        "EXPLAIN (FORMAT json) SELECT 1",
        "SELECT * FROM range(3), unnest([1, 2])",
        "SELECT name FROM (SELECT * FROM spans) WHERE kind IN (SELECT 'server')",
        "SELECT k FROM spans, LATERAL (SELECT unnest(map_keys(attributes)) AS k) LIMIT 1",
        "PIVOT spans ON kind IN ('server', 'client') USING count(*) GROUP BY region",
        "SELECT ago('15 minutes')",
        "SELECT * FROM traces LIMIT 1",
        "SELECT latency_quantile_ns(list(latency_buckets), 0.5) FROM rollup_1m",
        "SELECT table_name FROM information_schema.tables",
        "SELECT * FROM duckdb_tables()",
        "SELECT * FROM lake.snapshots()",
        "SELECT * FROM LAKE.table_info()",
        "SELECT count(*) FROM ducklake_table_insertions('lake', 'main', 'spans', 0, 1)",
        "SELECT count(*) FROM spans AT (TIMESTAMP => now())",
        "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_table",
    ],
)
def test_statements_that_read_the_lake_work(sandbox: Sandbox, sql: str) -> None:
    assert rows(sandbox, sql)


def attempts(folder: Path, foreign: Path) -> list[str]:
    segment = next((folder / "lake").rglob("*.parquet"))
    readers = ["read_csv", "read_csv_auto", "read_text", "read_blob", "read_parquet", "read_json", "glob", "sniff_csv"]
    return [
        *(f"SELECT * FROM {reader}('{foreign}/secret.csv')" for reader in readers),
        *(f"SELECT * FROM {reader}('{folder}/catalog.sqlite')" for reader in readers),
        *(f"SELECT * FROM {reader}('{folder}/spool/*')" for reader in readers),
        f"SELECT * FROM '{foreign}/secret.csv'",
        f'SELECT * FROM "{foreign}/secret.csv"',
        f"SELECT * FROM '{segment}'",
        f"SELECT * FROM read_parquet('{segment}')",
        f"SELECT * FROM parquet_metadata('{segment}')",
        f"SELECT (SELECT count(*) FROM read_text('{foreign}/secret.csv'))",
        f"WITH t AS (SELECT * FROM read_text('{foreign}/secret.csv')) SELECT 1",
        f"EXPLAIN ANALYZE SELECT * FROM read_text('{foreign}/secret.csv')",
        f"DESCRIBE SELECT * FROM read_text('{foreign}/secret.csv')",
        f"SUMMARIZE '{foreign}/secret.csv'",
        f"SELECT * FROM query('SELECT * FROM read_text(''{foreign}/secret.csv'')')",
        f"SELECT * FROM query_table('{foreign}/secret.csv')",
        f"SELECT * FROM sqlite_scan('{foreign}/secret.sqlite', 't')",
        f"SELECT * FROM main.sqlite_scan('{foreign}/secret.sqlite', 't')",
        f"SELECT * FROM lake.sqlite_scan('{foreign}/secret.sqlite', 't')",
        f"SELECT * FROM sqlite_attach('{foreign}/secret.sqlite')",
        "SELECT * FROM sqlite_query('__ducklake_metadata_lake', 'SELECT 1')",
        f"SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM ''{foreign}/secret.csv'''))",
        f"ATTACH '{foreign}/secret.sqlite' (TYPE sqlite)",
        "ATTACH ':memory:' AS other",
        f"COPY (SELECT 1) TO '{foreign}/out.csv'",
        f"COPY spans TO '{folder}/lake/out.parquet'",
        f"COPY spans FROM '{foreign}/secret.csv'",
        f"EXPLAIN ANALYZE COPY (SELECT 1) TO '{foreign}/out.csv'",
        f"/**/ EXPLAIN /**/ ANALYZE /**/ COPY (SELECT 1) TO '{foreign}/out.csv'",
        f"EXPLAIN (ANALYZE, FORMAT json) COPY (SELECT 1) TO '{foreign}/out.csv'",
        "EXPLAIN ANALYZE DELETE FROM spans",
        f"EXPORT DATABASE '{foreign}/out'",
        "INSTALL httpfs",
        "LOAD httpfs",
        f"LOAD '{foreign}/evil.duckdb_extension'",
        "SET enable_external_access = true",
        "SET memory_limit = '1TB'",
        "RESET lock_configuration",
        f"IMPORT DATABASE '{foreign}'",
        "PRAGMA enable_profiling",
        "PRAGMA storage_info('spans')",
        "USE memory",
        "INSERT INTO spans SELECT * FROM spans",
        "DELETE FROM spans",
        "UPDATE spans SET name = ''",
        "TRUNCATE spans",
        "DROP TABLE spans",
        "ALTER TABLE spans ADD COLUMN x INT",
        "CREATE TABLE lake.t AS SELECT 1",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE MACRO f() AS TABLE SELECT * FROM read_text('x')",
        "CREATE SECRET (TYPE s3)",
        "BEGIN",
        "COMMIT",
        "CHECKPOINT",
        "VACUUM",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "CALL lake.set_option('data_inlining_row_limit', '1')",
        "CALL ducklake_merge_adjacent_files('lake')",
        "SELECT * FROM ducklake_cleanup_old_files('lake', cleanup_all => true)",
        "SELECT * FROM ducklake_expire_snapshots('lake', older_than => now())",
        "SELECT * FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)",
        f"SELECT * FROM ducklake_add_data_files('lake', 'spans', '{segment}')",
        "SELECT * FROM lake.merge_adjacent_files()",
        "SELECT * FROM checkpoint()",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM LAKE_SPANS",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_settings()",
        "SELECT getenv('HOME')",
        "SELECT 1; SELECT 2",
        "SELECT 1; DELETE FROM spans",
        "",
        ";",
        "-- nothing",
        "EXPLAIN",
        "SELEC 1",
        "SELECT 'a' FROM",
        "SELECT no_such_column FROM spans",
    ]


def test_every_other_statement_is_refused_and_changes_nothing(
    location: Location, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "secret.csv").write_text("hunter2\n")
    (tmp_path / "schema.sql").write_text("hunter2")
    (tmp_path / "load.sql").write_text("hunter2")
    with sqlite3.connect(tmp_path / "secret.sqlite") as foreign:
        foreign.execute("CREATE TABLE t AS SELECT 'hunter2' AS c")
    foreign.close()
    before = rows(sandbox, "SELECT count(*) FROM spans")
    files = {path: path.stat().st_size for path in (location.root / "lake").rglob("*")}
    for sql in attempts(location.root, tmp_path):
        with pytest.raises(QueryError) as raised:
            pytest.fail(f"{sql} gave {rows(sandbox, sql)}")
        assert "hunter2" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"secret.csv", "secret.sqlite", "schema.sql", "load.sql"}
    assert {path: path.stat().st_size for path in (location.root / "lake").rglob("*")} == files
    assert rows(sandbox, "SELECT count(*) FROM spans") == before


def test_the_message_of_the_database_reaches_the_user(sandbox: Sandbox) -> None:
    with pytest.raises(QueryError, match=r'Referenced column "durations_ns" not found.*\n.*"duration_ns"'):
        rows(sandbox, "SELECT durations_ns FROM spans")


def test_a_fault_in_the_middle_of_the_rows_is_a_query_error(sandbox: Sandbox) -> None:
    sql = "SELECT CASE WHEN i = 900000 THEN error('at last') ELSE i END FROM range(1000000) t(i)"
    with pytest.raises(QueryError, match="at last"):
        rows(sandbox, sql)


def test_a_statement_is_interrupted_at_the_end_of_its_time(location: Location) -> None:
    with pytest.raises(QueryError, match=r"query.timeout_seconds = 0\.5"):
        bounded_rows(location, QueryConfig(timeout_seconds=0.5), "SELECT count(*) FROM range(1000000000000)")


def test_a_slow_reader_of_rows_is_interrupted_too(location: Location) -> None:
    config = QueryConfig(timeout_seconds=0.5)
    with open_sandbox(location, config) as sandbox, sandbox.run("SELECT * FROM range(100000000)") as result:
        next(result.batches)
        expired = threading.Event()
        threading.Timer(0.8, expired.set).start()
        expired.wait()
        with pytest.raises(QueryError, match="interrupted"):
            for _ in result.batches:
                pass


def test_memory_and_spilled_bytes_are_bounded(location: Location) -> None:
    config = QueryConfig(memory_bytes_max=64 * 2**20)
    with pytest.raises(QueryError, match="Out of Memory"):
        bounded_rows(location, config, "SELECT list(i::VARCHAR || repeat('x', 100)) FROM range(100000000) t(i)")


def test_a_result_is_not_held_in_memory(location: Location) -> None:
    config = QueryConfig(memory_bytes_max=64 * 2**20)
    sql = "SELECT i, i FROM range(20000000) t(i)"
    with open_sandbox(location, config) as sandbox, sandbox.run(sql) as result:
        assert sum(batch.num_rows for batch in result.batches) == 20_000_000


def test_no_lake_is_a_message_for_the_operator(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no lake at"), open_sandbox(Location(tmp_path), QueryConfig()):
        pass
