"""A spool whose files were damaged while the collector was down: kept is what is whole, the rest is named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.carve import Carver
from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.pipeline import Accepted, TraceRequest
from collector.salvage import open_spool
from collector.spool import FILE_NAME, Entry, Spool, digest_of
from collector.wal import is_cut_short, missing_frames

SEALED = 20
REQUESTS = 70
ROWS_ON_A_PAGE_MAX = 20
Damage = Callable[[random.Random, Path], str]


def entry(number: int, size: int) -> Entry:
    content = random.Random(number).randbytes(size)
    request = TraceRequest(content, 1_000 + number, f"tenant-{number % 3}" if number % 2 else None)
    return Entry(digest_of(request), request, Accepted(number % 4, "some" if number % 4 else ""))


SIZES = [random.Random(n).choice([40, 900, 900, 2_000, 40_000]) for n in range(1, REQUESTS + 1)]
ENTRIES = {n: entry(n, SIZES[n - 1]) for n in range(1, REQUESTS + 1)}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool as a killed process leaves it: a part sealed and trimmed, a part in the file, a part in its log."""
    live, copy = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("copy") / "spool"
    spool = Spool(live, 3600)
    for n in range(1, 41, 4):
        spool.append([ENTRIES[i] for i in range(n, n + 4)], 0)
    spool.trim(SEALED)
    checkpoint = sqlite3.connect(live / FILE_NAME)
    checkpoint.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    checkpoint.close()
    for n in range(41, REQUESTS + 1, 3):
        spool.append([ENTRIES[i] for i in range(n, n + 3)], 0)
    shutil.copytree(live, copy)
    spool.close()
    return copy


def flip_bits(rng: random.Random, file: Path, bits: int) -> str:
    content = bytearray(file.read_bytes())
    offsets = [rng.randrange(len(content)) for _ in range(bits)]
    for offset in offsets:
        content[offset] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{file.name}: bits flipped at {offsets}"


def truncate(rng: random.Random, file: Path) -> str:
    size = rng.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"{file.name}: cut to {size}"


def zero_page(rng: random.Random, file: Path) -> str:
    with file.open("r+b") as opened:
        start = rng.randrange(file.stat().st_size)
        opened.seek(start)
        opened.write(b"\0" * min(16_384, file.stat().st_size - start))
    return f"{file.name}: zeros at {start}"


DAMAGES: dict[str, Damage] = {
    "a bit of the file": lambda rng, folder: flip_bits(rng, folder / FILE_NAME, 1),
    "a bit of the head of the file": lambda rng, folder: flip_head(rng, folder / FILE_NAME, 100),
    "a bit of the log": lambda rng, folder: flip_bits(rng, folder / f"{FILE_NAME}-wal", 1),
    "a bit of the head of the log": lambda rng, folder: flip_head(rng, folder / f"{FILE_NAME}-wal", 56),
    "thirty bits of both": lambda rng, folder: (
        flip_bits(rng, folder / FILE_NAME, 15) + flip_bits(rng, folder / f"{FILE_NAME}-wal", 15)
    ),
    "zeros in the file": lambda rng, folder: zero_page(rng, folder / FILE_NAME),
    "zeros in the log": lambda rng, folder: zero_page(rng, folder / f"{FILE_NAME}-wal"),
    "the file cut": lambda rng, folder: truncate(rng, folder / FILE_NAME),
    "the log cut": lambda rng, folder: truncate(rng, folder / f"{FILE_NAME}-wal"),
}


def flip_head(rng: random.Random, file: Path, head_bytes: int) -> str:
    content = bytearray(file.read_bytes())
    offset = rng.randrange(head_bytes)
    content[offset] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{file.name}: bit flipped at {offset}"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(8))
def test_whole_requests_come_back_and_the_others_are_named(
    crashed: Path, tmp_path: Path, damage: str, seed: int
) -> None:
    rng = random.Random(f"{damage} {seed}")
    folder = tmp_path / "spool"
    shutil.copytree(crashed, folder)
    done = DAMAGES[damage](rng, folder)

    spool = open_spool(folder, 3600, "the-id", SEALED)
    found = dict(spool.pending(SEALED, 10**9, 2**40))
    aside = {seq for seq, _ in spool.quarantined()}
    missing = {seq for first, last in spool.missing(SEALED) for seq in range(first, last + 1)}
    behind = set(range(spool.last_seq + 1, REQUESTS + 1))

    assert all(ENTRIES[seq].request == request for seq, request in found.items()), done
    assert set(found) | aside | missing | behind == set(range(SEALED + 1, REQUESTS + 1)), done
    lost = REQUESTS - SEALED - len(found)
    if "bit of" in damage:
        assert lost <= ROWS_ON_A_PAGE_MAX, done
    known = spool.recall(ENTRIES[seq].digest for seq in found)
    assert len(known) == len(found), f"{done}: a request that is kept is recognised when it comes again"
    assert spool.append([entry(10**6, 10)], 10**18) > max([SEALED, *found])
    spool.close()


def test_an_undamaged_spool_is_opened_as_it_is(crashed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    shutil.copytree(crashed, folder)
    identity = sqlite3.connect(folder / FILE_NAME).execute("SELECT spool_id FROM identity").fetchone()[0]
    spool = open_spool(folder, 3600, "another", 0)
    assert spool.spool_id == identity
    assert [seq for seq, _ in spool.pending(0, 10**9, 2**40)] == list(range(SEALED + 1, REQUESTS + 1))
    assert not list(folder.glob("*damaged*"))


def test_damaged_files_are_kept_and_the_rebuilt_spool_has_the_name_that_the_lake_knows(
    crashed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "spool"
    shutil.copytree(crashed, folder)
    connection = sqlite3.connect(folder / FILE_NAME)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    damaged = b"no database" + (folder / FILE_NAME).read_bytes()[11:]
    (folder / FILE_NAME).write_bytes(damaged)
    spool = open_spool(folder, 3600, "known", SEALED)
    assert spool.spool_id == "known"
    assert [seq for seq, _ in spool.pending(0, 10**9, 2**40)] == list(range(SEALED + 1, REQUESTS + 1))
    kept = [path for path in folder.glob(f"{FILE_NAME}.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    assert [path.read_bytes() for path in kept] == [damaged]
    assert "is damaged (file is not a database): it is rebuilt" in caplog.text
    assert f"{REQUESTS - SEALED} requests that are not in the lake yet were found whole" in caplog.text
    known = spool.recall(e.digest for e in ENTRIES.values())
    assert known == {e.digest: e.answer for e in ENTRIES.values()}


@pytest.mark.parametrize("step", range(1, 12))
def test_a_crash_while_rebuilding_is_made_good(
    crashed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "spool"
    shutil.copytree(crashed, folder)
    flip_bits(random.Random(1), folder / FILE_NAME, 3000)
    steps = iter(range(1, 1000))

    def crashing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            if next(steps) == step:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)

        return call

    whole = Carver((folder / FILE_NAME).read_bytes(), (folder / f"{FILE_NAME}-wal").read_bytes()).requests()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing(Path.rename))
        patch.setattr(shutil, "rmtree", crashing(shutil.rmtree))
        patch.setattr(os, "fsync", crashing(os.fsync))
        with contextlib.suppress(KeyboardInterrupt):
            open_spool(folder, 3600, "known", SEALED).close()
    spool = open_spool(folder, 3600, "known", SEALED)
    assert [seq for seq, _ in spool.pending(SEALED, 10**9, 2**40)] == sorted(s for s in whole if s > SEALED)
    assert not (folder / "rebuilt").exists()


@given(st.binary(max_size=40_000), st.binary(max_size=40_000))
def test_carving_garbage_finds_nothing_and_raises_nothing(database: bytes, wal: bytes) -> None:
    carver = Carver(b"\x0d" + database, wal)
    assert carver.requests() == {}
    carver.digests()
    is_cut_short(wal)


def test_a_log_that_was_cut_is_said_to_be_cut(crashed: Path) -> None:
    wal, index = ((crashed / f"{FILE_NAME}{suffix}").read_bytes() for suffix in ("-wal", "-shm"))
    assert missing_frames(wal, index) == 0
    assert missing_frames(wal[: -2 * 16_408], index) == 2
    assert missing_frames(wal[:-1], index[:10]) == 0


def test_the_checksum_of_the_log_is_that_of_sqlite(crashed: Path) -> None:
    wal = (crashed / f"{FILE_NAME}-wal").read_bytes()
    assert not is_cut_short(wal)
    assert not is_cut_short(wal[:-1000])
    assert is_cut_short(wal[:30_000] + bytes([wal[30_000] ^ 1]) + wal[30_001:])


# The whole collector.


def payload(name: str) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    span = spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name=name, start_time_unix_nano=1, end_time_unix_nano=2)
    span.attributes.add(key="filler").value.string_value = "x" * (sum(name.encode()) * 37 % 3000)
    return message.SerializeToString()


NAMES = [f"span-{n:03}" for n in range(120)]


@pytest.fixture(scope="module")
def unsealed(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """A data folder with a lake, whose collector died with all of NAMES acknowledged and half of them sealed."""
    location = locate(StorageConfig(data=str(tmp_path_factory.mktemp("unsealed") / "data")))
    fill(location, NAMES[:60])
    original = Lake.write
    try:
        Lake.write = fail  # type: ignore[method-assign, assignment]  # the method is replaced
        fill(location, NAMES[60:], snapshot_to=location.root.with_name("crashed"))
    finally:
        Lake.write = original  # type: ignore[method-assign]  # and put back
    return Location(location.root.with_name("crashed"))


def fail(_: Lake) -> None:
    raise duckdb.IOException("the lake is out")


def config_of(location: Location) -> Config:
    return Config(storage=StorageConfig(data=str(location.root)), collector=CollectorConfig(seal_interval_seconds=0.02))


def fill(location: Location, names: list[str], snapshot_to: Path | None = None) -> None:
    async def scenario() -> None:
        with open_ingest(config_of(location), location) as opened:
            opened[0].start()
            for name in names:
                assert await opened[0].accept(TraceRequest(payload(name), 5)) == Accepted()
            if snapshot_to is not None:
                shutil.copytree(location.root, snapshot_to)

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["a bit of the head of the file", "zeros in the log", "the log cut"])
def test_the_collector_starts_seals_what_is_whole_and_says_what_is_lost(
    unsealed: Location, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    location = Location(tmp_path / "data")
    shutil.copytree(unsealed.root, location.root)
    if not (location.spool / f"{FILE_NAME}-wal").exists():
        pytest.fail("there is no log to damage")
    done = DAMAGES[damage](random.Random(damage), location.spool)
    fill(location, ["afterwards"])
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        names = [name for (name,) in reader.rows("SELECT name FROM spans ORDER BY name")]
    assert len(names) == len(set(names)), done
    assert set(NAMES[:60]) | {"afterwards"} <= set(names), done
    assert set(names) <= {*NAMES, "afterwards"}, done
    if set(names) != {*NAMES, "afterwards"}:
        assert any(r.levelno >= logging.WARNING and r.name.startswith("collector.s") for r in caplog.records), done
