"""Health tells the truth: about a full, slow or broken disk, a broken or locked lake, dead threads, a stop."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.collect import Stages, open_stages
from collector.config import CollectorConfig, Config, StorageConfig
from collector.errors import RetryableError
from collector.lake.location import Location, locate
from collector.lake.lock import exclusive
from collector.lake.maintain import Due
from collector.pipeline import TraceRequest
from collector.telemetry import health as health_module
from collector.telemetry.health import Health, Report, State
from collector.telemetry.pages import health_pages
from collector.telemetry.traces import Tracing

WAIT_SECONDS = 30.0
Work = Callable[[Stages, Health, Location], Awaitable[None]]


def check(folder: Path, work: Work, *, start_ingest: bool = True, **collector: object) -> None:
    """Run `work` on the stages of a collector with an impatient health."""
    config = Config(
        storage=StorageConfig(data=str(folder)),
        collector=CollectorConfig.model_validate({"seal_interval_seconds": 0.02, **collector}),
    )
    location = locate(config.storage)

    async def run() -> None:
        with open_stages(config, location, Tracing()) as stages:
            if start_ingest:
                stages.ingest.start()
            health = Health(
                config.collector,
                stages.ingest,
                stages.spool,
                stages.sealer,
                stages.maintenance,
                stalled_seconds=0.2,
                probe_seconds_max=0.1,
            )
            await work(stages, health, location)

    asyncio.run(run())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No outcome of a write counts for longer than an instant."""
    monkeypatch.setattr(health_module, "PROVEN_SECONDS", 0.0)
    monkeypatch.setattr(health_module, "FAILED_SECONDS", 0.0)


async def awaited(health: Health, state: State) -> Report:
    """The first report of this state."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (report := await health.ready()).state is not state:
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.01)
    return report


def request() -> TraceRequest:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(trace_id=os.urandom(16), span_id=os.urandom(8), name="x")
    return TraceRequest(message.SerializeToString(), time.time_ns())


def test_all_is_well(tmp_path: Path) -> None:
    async def work(stages: Stages, health: Health, _location: Location) -> None:
        assert await health.ready() == health.live() == Report(())
        await stages.ingest.accept(request())
        assert (await health.ready()).state is State.OK

    check(tmp_path, work)


def test_a_fresh_write_is_proof_enough_and_a_probe_serves_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "PROVEN_SECONDS", 60.0)

    async def work(stages: Stages, health: Health, _location: Location) -> None:
        probes = []
        monkeypatch.setattr(stages.spool, "probe", probes.append)
        for _ in range(3):
            assert (await health.ready()).state is State.OK
        assert len(probes) == 1
        await stages.ingest.accept(request())
        await health.ready()
        assert len(probes) == 1

    check(tmp_path, work)


def test_a_failed_write_counts_until_one_of_its_size_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(stages: Stages, health: Health, _location: Location) -> None:
        probes: list[int] = []
        full = sqlite3.OperationalError("database or disk is full")

        def refuse(*_: object) -> int:
            raise full

        def probe(size_bytes: int) -> None:
            probes.append(size_bytes)
            raise full

        with monkeypatch.context() as patched:
            patched.setattr(stages.spool, "append", refuse)
            patched.setattr(stages.spool, "probe", probe)
            patched.setattr(health_module, "PROBE_BYTES", 1)
            failing = request()
            with pytest.raises(RetryableError) as raised:
                await stages.ingest.accept(failing)
            assert raised.value.refused_spans == 1
            report = await health.ready()
            assert report.state is State.UNAVAILABLE
            assert [(p.part, p.message) for p in report.problems] == [
                ("spool", "cannot be written: database or disk is full")
            ]
            assert probes[-1] == len(failing.payload)
            assert health.live().state is State.OK
        assert (await health.ready()).state is State.OK

    check(tmp_path, work)


def test_a_disk_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    asked = []

    async def work(stages: Stages, health: Health, _location: Location) -> None:
        def probe(size_bytes: int) -> None:
            asked.append(size_bytes)
            assert answers.wait(WAIT_SECONDS)

        monkeypatch.setattr(stages.spool, "probe", probe)
        for _ in range(3):
            report = await health.ready()
            assert report.state is State.UNAVAILABLE
            assert "the disk has not answered for 0.1 s" in report.problems[0].message
        assert len(asked) == 1
        answers.set()
        await awaited(health, State.OK)

    check(tmp_path, work)


def test_a_spool_over_its_bound(tmp_path: Path) -> None:
    async def work(stages: Stages, health: Health, location: Location) -> None:
        with exclusive(location.commit_lock):
            unknown_field = b"\x7a\x80\x80\x40" + bytes(2**20)
            await stages.ingest.accept(TraceRequest(request().payload + unknown_field, time.time_ns()))
            report = await health.ready()
            assert report.state is State.UNAVAILABLE
            assert "collector.spool_bytes_max = 1048576 is reached" in report.problems[0].message
        await awaited(health, State.OK)

    check(tmp_path, work, spool_bytes_max=2**20)


def test_a_broken_lake_degrades_and_heals(tmp_path: Path) -> None:
    async def work(stages: Stages, health: Health, location: Location) -> None:
        await stages.ingest.accept(request())
        while stages.sealer.unsealed_requests:
            await asyncio.sleep(0.01)
        segments = location.files / "main"
        segments.rename(tmp_path / "aside")
        segments.write_text("no folder")
        await stages.ingest.accept(request())
        report = await awaited(health, State.DEGRADED)
        assert report.problems[0].part == "lake"
        assert "seals failed: [Errno" in report.problems[0].message
        assert "1 requests wait in the spool" in report.problems[0].message
        while not stages.sealer.failed_spans:
            await asyncio.sleep(0.01)
        assert health.live().state is State.OK
        segments.unlink()
        (tmp_path / "aside").rename(segments)
        await awaited(health, State.OK)
        assert stages.sealer.sealed_spans == 2

    check(tmp_path, work)


def test_a_locked_lake_degrades_and_heals(tmp_path: Path) -> None:
    async def work(stages: Stages, health: Health, location: Location) -> None:
        with exclusive(location.commit_lock):
            await stages.ingest.accept(request())
            report = await awaited(health, State.DEGRADED)
            assert "no seal has succeeded for" in report.problems[0].message
        await awaited(health, State.OK)

    check(tmp_path, work)


@pytest.mark.parametrize("due", [Due(60, 1), Due(60, 2**30)], ids=["in the thread", "in a process"])
def test_merges_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, due: Due) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError("the disk is full")

    monkeypatch.setattr("collector.maintenance.maintain.due", lambda *_: due)
    monkeypatch.setattr("collector.maintenance.maintain.merge_once", fail)
    monkeypatch.setattr("collector.maintenance.bound_to_this_process", lambda _: ["false"])

    async def work(_stages: Stages, health: Health, _location: Location) -> None:
        report = await awaited(health, State.DEGRADED)
        assert report.problems[0].part == "maintenance"

    check(tmp_path, work, merge_interval_seconds=0.01)


def test_a_dead_thread_is_for_a_restart(tmp_path: Path) -> None:
    async def work(_stages: Stages, health: Health, _location: Location) -> None:
        report = health.live()
        assert (report.state, report.problems[0].part) == (State.UNAVAILABLE, "ingest")
        assert (await health.ready()).state is State.UNAVAILABLE

    check(tmp_path, work, start_ingest=False)


def test_pages(tmp_path: Path) -> None:
    async def work(_stages: Stages, health: Health, location: Location) -> None:
        pages = health_pages(health)

        async def get(path: str) -> tuple[int, dict[str, object]]:
            events: list[dict[str, object]] = []

            async def send(event: object) -> None:
                events.append(event)  # type: ignore[arg-type]  # an ASGI message is a dict

            scope = {"type": "http", "path": path, "method": "GET", "headers": []}
            await pages(scope, None, send)  # type: ignore[arg-type]  # nothing is received
            return events[0]["status"], json.loads(events[1]["body"])  # type: ignore[arg-type, return-value]  # the fields of ASGI's messages

        well = {"status": "ok", "problems": []}
        assert [await get(path) for path in ("/", "/ready", "/live")] == [(200, well)] * 3
        with exclusive(location.commit_lock):
            await _stages.ingest.accept(request())
            await awaited(health, State.DEGRADED)
            status, body = await get("/")
            assert (status, body["status"]) == (200, "degraded")
        health.announce_stop()
        stopping = {"part": "collector", "state": "unavailable", "message": "stopping"}
        assert await get("/") == (503, {"status": "unavailable", "problems": [stopping]})
        assert (await get("/live"))[0] == 200
        assert (await get("/elsewhere"))[0] == 404

    check(tmp_path, work)


def test_a_full_disk_is_unready_and_a_freed_one_ready_before_anybody_sends(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parent / "applications" / "full_disk_health.py"), str(tmp_path)]
    inner = f"mount -t tmpfs -o size=32m none {shlex.quote(str(tmp_path))} && exec {shlex.join(program)}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    report = result.pop("report")
    assert result == {"before": 200, "full": 503, "live": 200, "freed": 200, "accepted": 200, "exit_code": 0}
    assert report["status"] == "unavailable"
    messages = [problem["message"] for problem in report["problems"] if problem["part"] == "spool"]
    assert messages == ["cannot be written: database or disk is full"]
