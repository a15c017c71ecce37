"""Servers and folders that several test files use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from collector.config import StorageConfig
from collector.lake import maintain
from collector.lake.lake import Lake, Reader
from collector.lake.location import locate
from collector.lake.tables import COLLECTOR_DEFINITIONS

START_SECONDS = 20.0

# How long an example takes says more about the machine than about the code.
settings.register_profile("unhurried", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("unhurried")


@contextmanager
def _system_server(program: str, *arguments: str, port: int, folder: Path) -> Iterator[int]:
    """A server of the system on a loopback port. Where it is not installed: skip, in CI fail."""
    path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        missing = f"{program} is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([path, *arguments], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _await_listening(process, port, folder)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_listening(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server does not listen: {(folder / 'server.log').read_text()}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port on 127.0.0.1 of a real, empty Redis."""
    folder, port = tmp_path_factory.mktemp("redis"), _free_port()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with _system_server("redis-server", *flags, port=port, folder=folder):
        yield port


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port on 127.0.0.1 of a real NATS server."""
    folder, port = tmp_path_factory.mktemp("nats"), _free_port()
    with _system_server("nats-server", "--addr", "127.0.0.1", "--port", str(port), port=port, folder=folder):
        yield port


@pytest.fixture(autouse=True)
def _tests_weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers inside of the tests' process would refuse requests for what other tests left in its memory."""
    monkeypatch.setattr("collector.receive.memory.resident_bytes", lambda: 0)


LAKE_SPANS = 20_000
"""Traffic follows the clock, errors come in clumps: half a minute of it has some at any time, five seconds may not."""


@pytest.fixture(scope="session")
def lake_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with LAKE_SPANS simulated spans of the last minutes, rolled up. For reading only."""
    from analytics import jobs
    from collector.collect import open_ingest
    from collector.config import Config, StorageConfig
    from collector.importing import import_files
    from collector.lake.lake import Lake
    from collector.lake.location import locate
    from sample_data.emit_files import framed, requests

    folder = tmp_path_factory.mktemp("lake")
    config = Config(storage=StorageConfig(data=str(folder / "data")))
    file = folder / "spans.pb"
    file.write_bytes(b"".join(map(framed, requests(1, LAKE_SPANS, start_second=int(time.time()) - 120))))

    async def fill() -> None:
        with open_ingest(config, locate(config.storage)) as (ingest, _sealer):
            ingest.start()
            (report,) = await import_files([file], ingest, config.collector.request_bytes_max, lambda *_: None)
            assert report.spans == LAKE_SPANS

    asyncio.run(fill())
    with Lake(locate(config.storage), read_only=False) as lake:
        jobs.prepare(lake)
        jobs.run_once(lake, config)
    return folder / "data"


@pytest.fixture(scope="module")
def lake_of_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a lake with all that collector and jobs define, empty: to copy, it takes long to make."""
    from analytics import jobs

    location = locate(StorageConfig(data=str(tmp_path_factory.mktemp("lake") / "data")))
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake)
    return location.root


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A lake with the collector's tables, empty."""
    location = locate(StorageConfig(data=str(tmp_path / "data")))
    location.prepare()
    with Lake(location, read_only=False) as lake:
        lake.ensure(COLLECTOR_DEFINITIONS)
        maintain.configure(lake)
        yield lake


@pytest.fixture(scope="module")
def lake_of_rollups(lake_of_jobs: Path) -> Iterator[Lake]:
    """That lake, open; each test puts into it the rollups that it needs."""
    with Lake(locate(StorageConfig(data=str(lake_of_jobs))), read_only=False) as opened:
        yield opened


@pytest.fixture
def rollups(lake_of_rollups: Lake, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """A reader of a lake with the rollups of just the frames of spans that the test is marked with."""
    from tests.reference.rollups import store

    store(lake_of_rollups, *request.param)
    with lake_of_rollups.read() as opened:
        yield opened
