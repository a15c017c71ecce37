"""Faults of the lake and of the machine below a running ingest: a locked catalog, lost files, a clock that jumps."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import ingest as ingesting
from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, StorageConfig
from collector.errors import RetryableError
from collector.ingest import Ingest
from collector.lake import maintain
from collector.lake.lake import Lake, Transaction
from collector.lake.location import Location, locate
from collector.lake.segments import write_segment
from collector.lake.status import damaged_files
from collector.pipeline import Accepted, TraceRequest
from collector.seal import Sealer
from collector.spool import FILE_NAME, Entry, Spool, digest_of

HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS


def request(name: str) -> TraceRequest:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name=name)
    return TraceRequest(message.SerializeToString(), time.time_ns())


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return locate(StorageConfig(data=str(tmp_path / "data")))


def ingest(location: Location, scenario: Callable[[Ingest, Sealer], Awaitable[None]]) -> None:
    config = Config(
        storage=StorageConfig(data=str(location.root)),
        collector=CollectorConfig(seal_interval_seconds=0.02, merge_interval_seconds=0.05),
    )

    async def run() -> None:
        with open_ingest(config, location) as (ingest, sealer):
            ingest.start()
            await scenario(ingest, sealer)

    asyncio.run(run())


async def sealed(sealer: Sealer) -> None:
    while sealer.unsealed_requests:
        await asyncio.sleep(0.005)


async def a_seal_failed(sealer: Sealer) -> None:
    while not sealer.consecutive_failures:
        await asyncio.sleep(0.005)


def stored(location: Location) -> list[str]:
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        return [name for (name,) in reader.rows("SELECT name FROM spans ORDER BY name")]


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked_by_another_program(catalog: Path) -> Iterator[None]:
    """A process of its own: a second SQLite library in this one would drop the locks of DuckDB's."""
    command = [sys.executable, "-c", LOCKER, str(catalog)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        yield
        assert locker.stdin is not None
        locker.stdin.close()


def test_a_catalog_locked_by_another_program_delays_seals_and_no_answer(location: Location) -> None:
    async def scenario(ingest: Ingest, sealer: Sealer) -> None:
        assert await ingest.accept(request("before")) == Accepted()
        await sealed(sealer)
        with locked_by_another_program(location.catalog):
            for i in range(5):
                assert await ingest.accept(request(f"locked {i}")) == Accepted()
            while not is_held(location.commit_lock):  # by a seal that waits
                await asyncio.sleep(0.005)
            assert sealer.unsealed_requests == 5
        await sealed(sealer)

    ingest(location, scenario)
    assert stored(location) == ["before", *(f"locked {i}" for i in range(5))]


def files_of_spans(location: Location) -> list[Path]:
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        rows = reader.rows("SELECT data_file FROM ducklake_list_files('lake', 'spans') ORDER BY data_file")
        return [Path(path) for (path,) in rows]


@pytest.mark.parametrize("fault", ["deleted", "moved", "moved and back"])
def test_nothing_is_acknowledged_from_a_folder_that_is_gone(location: Location, tmp_path: Path, fault: str) -> None:
    async def work(ingest: Ingest, sealer: Sealer) -> None:
        await ingest.accept(request("before"))
        await sealed(sealer)
        location.root.rename(tmp_path / "elsewhere")
        if fault == "deleted":  # from its new place, where nothing that still works writes new files meanwhile
            shutil.rmtree(tmp_path / "elsewhere")
        with pytest.raises(RetryableError, match="deleted or moved"):
            await ingest.accept(request("after"))
        if fault == "moved and back":
            (tmp_path / "elsewhere").rename(location.root)
            await ingest.accept(request("after"))
            await sealed(sealer)

    ingest(location, work)
    if fault == "moved and back":
        assert stored(location) == ["after", "before"]


@pytest.mark.parametrize("fault", ["deleted", "cut"])
def test_a_lost_data_file_is_named_and_ingest_goes_on(location: Location, fault: str) -> None:
    async def first(ingest: Ingest, sealer: Sealer) -> None:
        for name in ("a", "b"):
            await ingest.accept(request(name))
            await sealed(sealer)

    ingest(location, first)
    lost, kept = files_of_spans(location)
    if fault == "deleted":
        lost.unlink()
    else:
        os.truncate(lost, lost.stat().st_size // 2)

    async def second(ingest: Ingest, sealer: Sealer) -> None:
        for i in range(12):  # enough for a merge, which must not take the others down with it
            await ingest.accept(request(f"later {i:02}"))
            await sealed(sealer)

    ingest(location, second)
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        assert damaged_files(reader) == [lost]
        with pytest.raises(duckdb.Error, match=lost.name):
            reader.rows("SELECT name FROM spans")
    later = sum(pq.ParquetFile(path).metadata.num_rows for path in files_of_spans(location) if path != lost)
    assert later == 13
    assert kept.exists()


def test_a_folder_of_files_that_cannot_be_written_delays_seals_and_no_answer(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(ingest: Ingest, sealer: Sealer) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("collector.seal.write_segment", _read_only)
            for i in range(3):
                assert await ingest.accept(request(f"span {i}")) == Accepted()
            await a_seal_failed(sealer)
            assert sealer.unsealed_requests == 3
        await sealed(sealer)

    ingest(location, scenario)
    assert stored(location) == ["span 0", "span 1", "span 2"]


def _read_only(*_: object) -> Path:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("step_ns", [-DAY_NS * 365, DAY_NS * 365], ids=["back", "forward"])
def test_a_clock_that_jumps_neither_loses_nor_doubles(
    location: Location, monkeypatch: pytest.MonkeyPatch, step_ns: int
) -> None:
    real = time.time_ns

    async def scenario(ingest: Ingest, sealer: Sealer) -> None:
        first = request("before")
        await ingest.accept(first)
        monkeypatch.setattr(ingesting.time, "time_ns", lambda: real() + step_ns)
        assert (await ingest.accept(first)).spans == 0
        await ingest.accept(request("after"))
        await sealed(sealer)
        assert (await ingest.accept(first)).spans == 0

    ingest(location, scenario)
    assert stored(location) == ["after", "before"]


def entry(name: str) -> Entry:
    one = TraceRequest(name.encode(), 1)
    return Entry(digest_of(one), one, Accepted())


def test_after_a_clock_was_set_back_digests_are_forgotten_again_and_not_too_early(tmp_path: Path) -> None:
    spool = Spool(tmp_path, dedup_window_seconds=3600)
    old = entry("old")
    spool.append([old], DAY_NS * 400)
    spool.append([entry("set back")], DAY_NS)
    spool.close()
    spool = Spool(tmp_path, dedup_window_seconds=3600)
    for hours in (0.5, 1.1, 2.3):
        assert spool.recall([old.digest]), hours
        spool.append([entry(f"{hours}")], DAY_NS + int(hours * HOUR_NS))
    assert not spool.recall([old.digest])
    spool.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT max(started_at_ns) FROM generations").fetchone()[0] < 2 * DAY_NS


def test_a_clock_set_forward_between_segment_and_commit_takes_no_file_that_is_registered(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cleaning that takes the new segment for an old orphan makes the seal fail, which is then done again."""
    cleaned: list[int] = []
    original = Transaction.add_files

    def clean_before(transaction: Transaction, table: str, paths: list[Path]) -> None:
        if not cleaned:
            for path in paths:  # as a clean does that runs just before this transaction begins
                path.unlink()
            cleaned.append(1)
        original(transaction, table, paths)

    monkeypatch.setattr(Transaction, "add_files", clean_before)

    async def scenario(ingest: Ingest, sealer: Sealer) -> None:
        await ingest.accept(request("kept"))
        await sealed(sealer)

    ingest(location, scenario)
    assert cleaned
    assert stored(location) == ["kept"]


def test_orphans_are_looked_for_under_the_commit_lock(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(_ingest: Ingest, _sealer: Sealer) -> None:
        pass

    ingest(location, nothing)
    orphan = write_segment(pa.table({"n": [1]}), location.files / "main" / "spans")
    held: list[bool] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path == orphan:
            held.append(is_held(location.commit_lock))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    with Lake(location, read_only=False) as lake:
        assert maintain.clean(lake, time.time() + 86_400) == 1
    assert held == [True]


def is_held(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
