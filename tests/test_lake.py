"""The lake on the real DuckLake: transactions, locks between processes, versions, moving, maintenance."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rollup import spans
from collector.config import StorageConfig
from collector.errors import OperatorError
from collector.lake import engine, maintain
from collector.lake.lake import Lake, StaleProgressError
from collector.lake.location import Location, locate
from collector.lake.lock import ProcessLock, holder
from collector.lake.segments import write_segment
from collector.lake.tables import COLLECTOR_DEFINITIONS, SCHEMA_VERSION, Definition


@pytest.fixture
def location(tmp_path: Path) -> Location:
    location = locate(StorageConfig(data=str(tmp_path / "data")))
    location.prepare()
    return location


@pytest.fixture
def lake(location: Location):  # type: ignore[no-untyped-def]  # a fixture that yields
    with Lake(location, read_only=False) as lake:
        lake.ensure(COLLECTOR_DEFINITIONS)
        yield lake


def numbers(lake: Lake, values: list[int]) -> None:
    path = write_segment(pa.table({"n": pa.array(values, pa.int64())}), lake.location.files / "main" / "numbers")
    with lake.write() as transaction:
        transaction.add_files("numbers", [path])


@pytest.fixture
def numbered(lake: Lake) -> Lake:
    with lake.write() as transaction:
        transaction.execute("CREATE TABLE numbers (n BIGINT)")
    return lake


def test_ensure_is_idempotent_and_stamps_the_version(lake: Lake) -> None:
    with lake.read() as reader:
        before = reader.snapshot_id()
    lake.ensure(COLLECTOR_DEFINITIONS)
    with lake.read() as reader:
        assert reader.snapshot_id() == before
        assert reader.rows("SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
        options = reader.rows(f"SELECT value FROM {engine.CATALOG}.options() WHERE scope_entry = 'main.progress'")
        assert options == [("100",)]


def test_an_error_rolls_the_whole_transaction_back(numbered: Lake) -> None:
    def fail() -> None:
        with numbered.write() as transaction:
            transaction.execute("INSERT INTO numbers VALUES (1)")
            transaction.advance("job", None, 1)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised two lines above
        fail()
    with numbered.read() as reader:
        assert reader.rows("SELECT n FROM numbers") == []
        assert reader.position("job") is None


def test_a_stale_step_of_a_job_commits_nothing(numbered: Lake) -> None:
    with numbered.write() as transaction:
        transaction.advance("job", None, 5)

    def race() -> None:
        with numbered.write() as transaction:
            transaction.execute("INSERT INTO numbers VALUES (1)")
            transaction.advance("job", None, 5)

    with pytest.raises(StaleProgressError, match="stands at 5, not at None"):
        race()
    with numbered.read() as reader:
        assert reader.row("SELECT count(*) FROM numbers") == (0,)


def test_a_reader_keeps_its_snapshot_while_others_commit(numbered: Lake) -> None:
    with numbered.read() as reader:
        assert reader.row("SELECT count(*) FROM numbers") == (0,)
        numbers(numbered, [1, 2])
        assert reader.row("SELECT count(*) FROM numbers") == (0,)
    with numbered.read() as reader:
        assert reader.row("SELECT count(*) FROM numbers") == (2,)


WRITER = """
import sys
import pyarrow as pa
from collector.config import StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.lake.segments import write_segment
location = locate(StorageConfig(data=sys.argv[1]))
with Lake(location, read_only=False) as lake:
    for i in range(int(sys.argv[2])):
        path = write_segment(pa.table({"n": pa.array([i], pa.int64())}), location.files / "main" / "numbers")
        with lake.write() as transaction:
            transaction.add_files("numbers", [path])
            transaction.advance(sys.argv[3], i if i else None, i + 1)
"""


def test_two_processes_commit_in_turn_and_lose_nothing(numbered: Lake) -> None:
    root = str(numbered.location.root)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, root, "15", name]) for name in ("a", "b")]
    for i in range(15):
        numbers(numbered, [100 + i])
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with numbered.read() as reader:
        assert reader.row("SELECT count(*), count(DISTINCT n), sum(n) FROM numbers") == (45, 30, 2 * 105 + 1605)
        assert (reader.position("a"), reader.position("b")) == (15, 15)


def test_a_killed_writer_leaves_the_lake_whole_and_unlocked(numbered: Lake) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(numbered.location.root), "100000", "k"])
    while True:
        with numbered.read() as reader:
            if (reader.position("k") or 0) >= 3:
                break
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    numbers(numbered, [-1])
    with numbered.read() as reader:
        position = reader.position("k")
        assert reader.row("SELECT count(*) FROM numbers WHERE n >= 0") == (position,)
        assert reader.row("SELECT count(*) FROM numbers WHERE n = -1") == (1,)


def test_a_stopped_folder_can_be_moved(numbered: Lake, tmp_path: Path) -> None:
    numbers(numbered, [1, 2, 3])
    numbered.close()
    moved = tmp_path / "elsewhere's folder"
    shutil.move(numbered.location.root, moved)
    with Lake(locate(StorageConfig(data=moved.as_uri())), read_only=True) as lake, lake.read() as reader:
        assert reader.row("SELECT sum(n) FROM numbers") == (6,)


def test_a_lake_of_a_newer_schema_is_refused_unharmed(lake: Lake) -> None:
    with lake.write() as transaction:
        transaction.execute("INSERT INTO schema_version VALUES (?, now()::TIMESTAMP)", [SCHEMA_VERSION + 1])
    lake.close()
    before = lake.location.catalog.read_bytes()
    for read_only in (True, False):
        with pytest.raises(OperatorError, match=f"schema version {SCHEMA_VERSION + 1}.*upgrade"):
            Lake(lake.location, read_only=read_only)
    assert lake.location.catalog.read_bytes() == before


def test_no_lake_is_a_message_for_the_operator(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"no lake at storage\.data"):
        Lake(locate(StorageConfig(data=str(tmp_path / "nothing"))), read_only=True)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (StorageConfig(data="s3://bucket/x"), "does not store to s3://"),
        (StorageConfig(catalog="postgres://user:secret@host/db"), "storage.catalog = 'postgres://host/db'"),
    ],
)
def test_places_of_other_releases_are_refused_without_their_secrets(storage: StorageConfig, message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        locate(storage)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_role_has_one_process(location: Location) -> None:
    first = ProcessLock(location.collector_lock, "collector")
    first.acquire()
    assert holder(location.collector_lock) == os.getpid()
    with pytest.raises(OperatorError, match=rf"another collector \(pid {os.getpid()}\)"):
        ProcessLock(location.collector_lock, "collector").acquire()
    first.release()
    first.release()
    assert holder(location.collector_lock) is None
    again = ProcessLock(location.collector_lock, "collector")
    again.acquire()
    again.release()


def test_a_segment_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    bad = pa.table({"n": pa.array([1])}).append_column("m", pa.array([None], pa.null()))
    folder = tmp_path / "segments"
    write_segment(bad, folder)
    with pytest.raises(AttributeError):
        write_segment(None, folder)  # type: ignore[arg-type]  # wrong on purpose
    assert [path.suffix for path in folder.iterdir()] == [".parquet"]


# Maintenance.


@given(st.lists(st.integers(1, 40 * 2**20), max_size=120))
def test_the_lowest_tier_that_has_enough_files_is_merged(sizes: list[int]) -> None:
    def files(tier: tuple[int, int]) -> int:
        return sum(tier[0] <= size < tier[1] for size in sizes)

    tier = maintain.plan(sizes)
    lower = maintain.TIER_BYTES[: maintain.TIER_BYTES.index(tier)] if tier else maintain.TIER_BYTES
    assert tier is None or files(tier) >= maintain.TIER_FILES
    assert all(files(other) < maintain.TIER_FILES for other in lower)


def test_merging_keeps_rows_insertions_and_order_of_tables(numbered: Lake) -> None:
    with numbered.read() as reader:
        start = reader.snapshot_id()
    for i in range(20):
        numbers(numbered, [i, i])
    with numbered.read() as reader:
        end = reader.snapshot_id()
    merged = 0
    while files := maintain.merge_once(numbered, "numbers"):
        merged += files
    assert merged >= 20
    with numbered.read() as reader:
        assert reader.row("SELECT count(*), sum(n) FROM numbers") == (40, 380)
        files = reader.row("SELECT count(*) FROM ducklake_list_files('lake', 'numbers')")[0]
        assert files < maintain.TIER_FILES
        later = reader.rows(
            "SELECT n FROM ducklake_table_insertions('lake', 'main', 'numbers', ?, ?) ORDER BY n",
            [start + 11, end],
        )
        assert later == [(n,) for n in range(10, 20) for _ in range(2)]


def test_cleaning_removes_orphans_and_merged_files_after_their_grace_only(numbered: Lake) -> None:
    folder = numbered.location.files / "main" / "numbers"
    for i in range(10):
        numbers(numbered, [i])
    with numbered.write() as transaction:
        transaction.advance("reader", None, 2)
    orphan = write_segment(pa.table({"n": [7]}), folder)
    torn = folder / "segment-torn.part"
    torn.write_bytes(b"PAR1")
    while maintain.merge_once(numbered, "numbers"):
        pass
    before = set(folder.iterdir())
    assert maintain.clean(numbered) == 0
    assert set(folder.iterdir()) == before

    assert maintain.clean(numbered, now=time.time() + maintain.FILES_GRACE_SECONDS + 60) == 0
    assert {orphan, torn} < set(folder.iterdir())
    assert len(set(folder.iterdir())) <= len(before) - 8

    assert maintain.clean(numbered, now=time.time() + maintain.ORPHAN_GRACE_SECONDS + 60) == 2
    assert not {orphan, torn} & set(folder.iterdir())
    maintain.clean(numbered, now=time.time() + 4 * 86_400)
    with numbered.read() as reader:
        assert reader.row("SELECT count(*), sum(n) FROM numbers") == (10, 45)


def test_snapshots_that_a_job_still_needs_are_kept(numbered: Lake) -> None:
    for i in range(6):
        numbers(numbered, [i])
        path = write_segment(spans(3, seed=i, start_ns=i), numbered.location.files / "main" / "spans")
        with numbered.write() as transaction:
            transaction.add_files("spans", [path])
    with numbered.read() as reader:
        newest = reader.snapshot_id()
    with numbered.write() as transaction:
        transaction.advance("slow", None, newest - 2)
    maintain.clean(numbered, now=time.time() + maintain.SNAPSHOTS_KEPT_SECONDS + 60)
    with numbered.read() as reader:
        kept = [i for (i,) in reader.rows(f"SELECT snapshot_id FROM {engine.CATALOG}.snapshots() ORDER BY 1")]
        assert min(kept) == newest - 2
        assert len(reader.rows("FROM ducklake_table_insertions('lake', 'main', 'numbers', ?, ?)", [newest - 1, newest]))
        newest = reader.snapshot_id()
    with numbered.write() as transaction:
        transaction.advance("slow", min(kept), newest)
    maintain.clean(numbered, now=time.time() + maintain.SNAPSHOTS_KEPT_SECONDS + 60)
    with numbered.read() as reader:
        kept = reader.row(f"SELECT count(*) FROM {engine.CATALOG}.snapshots()")
    assert kept == (1,), "where nothing waits, nothing is kept"


def test_cleaning_keeps_the_last_mark_of_each_job(numbered: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "PROGRESS_ROWS_MAX", 4)
    for job in ("a", "b"):
        for position in range(3):
            with numbered.write() as transaction:
                transaction.advance(job, position - 1 if position else None, position)
    maintain.clean(numbered)
    with numbered.read() as reader:
        assert reader.rows("SELECT job, position FROM progress ORDER BY job") == [("a", 2), ("b", 2)]
    with numbered.write() as transaction:
        transaction.advance("a", 2, 3)


def advance(lake: Lake, first: int, last: int) -> None:
    for position in range(first, last + 1):
        with lake.write() as transaction:
            transaction.advance("job", position - 1 or None, position)


def inlined_rows(lake: Lake) -> int:
    """How many rows of tables the catalog itself has, whether a snapshot shows them or not."""
    with closing(sqlite3.connect(lake.location.catalog)) as catalog:
        tables = [name for (name,) in catalog.execute("SELECT table_name FROM ducklake_inlined_data_tables")]
        return sum(catalog.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)


def test_marks_that_no_snapshot_shows_leave_the_catalog(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "PROGRESS_ROWS_MAX", 4)
    before, kept = inlined_rows(lake), []
    for first in (1, 21, 41):
        advance(lake, first, first + 19)
        maintain.clean(lake, now=time.time() + maintain.SNAPSHOTS_KEPT_SECONDS + 60)
        kept.append(inlined_rows(lake) - before)
    assert kept == [1, 1, 1], "the last mark"
    with lake.read() as reader:
        assert reader.position("job") == 60
    advance(lake, 61, 62)


def test_who_reads_an_expired_snapshot_has_its_marks_for_the_grace(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintain, "PROGRESS_ROWS_MAX", 4)
    monkeypatch.setattr(maintain, "SNAPSHOTS_KEPT_SECONDS", 0.0)
    advance(lake, 1, 20)
    with lake.read() as reader:
        maintain.clean(lake, now=time.time() + 60)
        assert reader.row("SELECT count(*) FROM progress") == (20,)
        with lake.read() as other:
            assert other.row(f"SELECT count(*) FROM {engine.CATALOG}.snapshots()") == (1,)
    found = inlined_rows(lake)
    maintain.clean(lake, now=time.time() + maintain.FILES_GRACE_SECONDS + 60)
    assert inlined_rows(lake) == found - 19


def test_any_duckdb_of_the_release_attaches_by_the_printed_statement(numbered: Lake) -> None:
    numbers(numbered, [4, 5])
    connection = duckdb.connect()
    for name in engine.EXTENSIONS:
        connection.load_extension(str(engine.extension_path(name)))
    connection.execute(engine.attach_sql(numbered.location, read_only=True))
    assert connection.execute("SELECT sum(n) FROM lake.numbers").fetchone() == (9,)


def test_every_definition_has_its_file_and_every_file_its_definition() -> None:
    folder = Path(engine.__file__).parent / "sql"
    files = {path.stem for path in folder.glob("*.sql")}
    assert files == {d.name for d in COLLECTOR_DEFINITIONS}
    for definition in COLLECTOR_DEFINITIONS:
        assert definition.name in definition.ddl()
    with pytest.raises(FileNotFoundError):
        Definition("nothing", "collector.lake").ddl()
