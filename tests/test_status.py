"""`spanlake status`, while nothing runs and while a collector does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collector.lake.location import Location
from collector.lake.lock import exclusive
from collector.receive.address import reached
from collector.telemetry.asked import ask_health
from sample_data.emit_files import framed, requests

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
HEADERS = {"Content-Type": "application/x-protobuf"}


def status(folder: Path) -> dict[str, Any]:
    command = [SPANLAKE, "status", "--data", str(folder), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_lake_at_rest(lake_folder: Path) -> None:
    found = status(lake_folder)
    assert found["spans"] == 20_000
    assert found["latest_span"].endswith("Z")
    assert found["collector"] == {"running": False, "pid": None, "grpc": None, "http": None, "health": None}
    assert found["jobs"]["running"] is False
    lags = [(lag["job"], lag["spans_behind"], lag["seconds_behind"]) for lag in found["jobs"]["lag"]]
    assert lags[:2] == [("rollup", 0, 0.0), ("traces", 0, 0.0)]
    (job, spans, seconds), lag = lags[2], found["jobs"]["lag"][2]
    assert (job, spans, lag["position"]) == ("insight", 20_000, None), "findings have not run"
    assert seconds > 0
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["spans"]["files"] >= 1
    assert tables["spans"]["bytes"] == sum(
        path.stat().st_size for path in (lake_folder / "lake").rglob("spans/*.parquet")
    )
    assert found["spool_bytes"] > 0
    assert {"spanlake", "schema", "duckdb", "ducklake", "python"} <= set(found["versions"])


def test_a_copied_folder_opens_elsewhere_and_takes_more(lake_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere's folder"
    shutil.copytree(lake_folder, copy)
    before, found = status(lake_folder), status(copy)
    assert found | {"data": ""} == before | {"data": ""}
    file = tmp_path / "more.pb"
    file.write_bytes(b"".join(map(framed, requests(7, 200))))
    subprocess.run([SPANLAKE, "import", file, "--data", copy], check=True, capture_output=True, timeout=60)
    assert (status(copy)["spans"], status(lake_folder)["spans"]) == (before["spans"] + 200, before["spans"])


def test_the_text_form_says_the_same(lake_folder: Path) -> None:
    done = subprocess.run([SPANLAKE, "status", "--data", str(lake_folder)], capture_output=True, text=True, check=True)
    assert "spans      20,000, the latest started 20" in done.stdout
    assert "collector  not running" in done.stdout
    assert "rollup                 0 spans, 0.0 s behind" in done.stdout
    assert "traces                 0 spans, 0.0 s behind" in done.stdout


def test_a_new_lake_without_jobs_under_a_running_collector(tmp_path: Path) -> None:
    command = [SPANLAKE, "collect", "--data", str(tmp_path), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        found = status(tmp_path)
        process.terminate()
    health = {"status": "ok", "problems": []}
    expected = {"running": True, "pid": process.pid, "grpc": ready["grpc"], "http": ready["http"], "health": health}
    assert found["collector"] == expected
    assert (found["spans"], found["latest_span"]) == (0, None)
    assert found["jobs"]["lag"][0]["spans_behind"] == 0


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """The folder of a collector whose spool is full: more than it may hold waits for a lake that nobody can write."""
    settings = {"SPANLAKE_COLLECTOR_SPOOL_BYTES_MAX": str(2**20), "SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:0"}
    command = [SPANLAKE, "collect", "--data", str(tmp_path), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | settings) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with exclusive(Location(tmp_path).commit_lock):
            for payload in requests(1, 6000):
                send = urllib.request.Request(f"http://{ready['http']}/v1/traces", payload, HEADERS)
                with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(send):
                    pass
            yield tmp_path
        process.terminate()


def test_a_collector_that_refuses_says_why(full: Path) -> None:
    health = status(full)["collector"]["health"]
    assert health["status"] == "unavailable"
    assert ("spool", "unavailable") in [(problem["part"], problem["state"]) for problem in health["problems"]]
    done = subprocess.run([SPANLAKE, "status", "--data", str(full)], capture_output=True, text=True, check=True)
    assert "health     not ready (spool: holds " in done.stdout
    assert "collector.spool_bytes_max = 1048576 is reached" in done.stdout


def test_a_health_address_that_does_not_answer_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert ask_health(address, 0.1)["status"] == "unknown"
    gone = ask_health(address)
    assert gone["status"] == "unknown"
    assert address in gone["problems"][0]["message"]
    assert "telemetry.health is empty" in ask_health(None)["problems"][0]["message"]


@pytest.mark.parametrize(
    ("listens", "expected"),
    [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("lake.example:3", "lake.example:3")],
)
def test_wildcards_are_reached_on_loopback(listens: str, expected: str) -> None:
    assert reached(listens) == expected
