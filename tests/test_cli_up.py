"""`spanlake up`: everything starts, stops in good order, and dies together."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from collector.errors import OperatorError
from dashboard.supervise import Supervisor
from sample_data.emit_files import requests

SPANLAKE = Path(sys.executable).with_name("spanlake")
SPANS = 500


@contextmanager
def started(command: str, data: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A running `spanlake up` or `demo` and the addresses it printed; its standard error is in the file `errors`."""
    ports = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--port", "0"]
    with (data.with_name("errors")).open("w") as errors:
        process = subprocess.Popen(
            [SPANLAKE, command, "--data", data, *ports, *flags], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        yield process, addresses(process.stdout)
    finally:
        for child in descendants(process):
            child.kill()
        process.kill()
        process.wait()


def addresses(output: IO[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in output:
        if match := re.match(r"  (dashboard|OTLP/gRPC|OTLP/HTTP|data|query|in DuckDB) +(.*)", line):
            found[match[1]] = match[2]
        if "in DuckDB" in found:
            break
    return found


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def child(process: subprocess.Popen[str], word: str) -> psutil.Process:
    (found,) = (child for child in descendants(process) if word in child.cmdline())
    return found


def send(address: str, payload: bytes) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.request("POST", "/v1/traces", payload, {"Content-Type": "application/x-protobuf"})
    assert connection.getresponse().status == 200
    connection.close()


def query(data: Path, sql: str) -> list[dict[str, Any]]:
    command = [SPANLAKE, "sql", "--data", data, "--format", "json", sql]
    found: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def test_a_stop_stores_and_rolls_up_what_was_acknowledged_last(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with started("up", data) as (process, at):
        assert set(at) == {"dashboard", "OTLP/gRPC", "OTLP/HTTP", "data", "query", "in DuckDB"}
        page = http.client.HTTPConnection(at["dashboard"].removeprefix("http://"), timeout=20)
        page.request("GET", "/")
        assert page.getresponse().status == 200
        page.close()
        for payload in requests(1, SPANS, 100, start_second=int(time.time()) - 60):
            send(at["OTLP/HTTP"], payload)
        children = descendants(process)
        assert len({os.getpgid(each.pid) for each in [*children, psutil.Process(process.pid)]}) == 4
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert psutil.wait_procs(children, 0)[1] == []
    assert query(data, "SELECT count(*) AS n FROM spans") == [{"n": SPANS}]
    assert query(data, "SELECT sum(count) AS n FROM rollup_1m") == [{"n": SPANS}]
    assert "Traceback" not in (tmp_path / "errors").read_text()


def test_a_child_that_dies_stops_the_rest(tmp_path: Path) -> None:
    with started("up", tmp_path / "data") as (process, _):
        children = descendants(process)
        child(process, "collect").kill()
        assert process.wait(60) == 1
        assert psutil.wait_procs(children, 0)[1] == []
    assert "Error: the collector was killed by signal 9" in (tmp_path / "errors").read_text()


def test_no_child_survives_a_killed_parent(tmp_path: Path) -> None:
    with started("up", tmp_path / "data") as (process, _):
        children = descendants(process)
        process.kill()
        process.wait()
        assert psutil.wait_procs(children, 30)[1] == []


def test_a_folder_in_use_is_told(tmp_path: Path) -> None:
    command = [SPANLAKE, "collect", "--data", tmp_path, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        collector.stdout.readline()
        up = [SPANLAKE, "up", "--data", tmp_path, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--port", "0"]
        done = subprocess.run(up, capture_output=True, text=True, timeout=60, check=False)
        collector.terminate()
    assert done.returncode == 1
    assert f"another collector (pid {collector.pid})" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_has_history_and_goes_on_live(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with started("demo", data, "--rate", "2") as (process, _):
        deadline = time.monotonic() + 60
        sql = "SELECT count(*) AS n, date_diff('minute', min(start_time), max(start_time)) AS m FROM spans"
        while (found := query(data, sql)[0])["n"] == 0 or found["m"] < 34:
            assert process.poll() is None
            assert time.monotonic() < deadline, found
        process.terminate()
        assert process.wait(60) == 0
    (tenants,) = query(data, "SELECT count(DISTINCT region) AS n FROM spans")
    assert tenants["n"] == 4


IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(99)
"""


def test_a_child_that_does_not_stop_in_time_is_killed() -> None:
    with Supervisor().running() as supervisor:
        process = supervisor.start("sleeper", [sys.executable, "-c", IGNORES_SIGTERM], announces=True)
        assert supervisor.first_line("sleeper", 30) == b"1\n"
        supervisor.stop("sleeper", 0.1)
        assert supervisor.killed == ("sleeper",)
        assert process.returncode == -signal.SIGKILL


def test_a_second_signal_kills_at_once() -> None:
    with Supervisor().running() as supervisor:
        process = supervisor.start("sleeper", [sys.executable, "-c", IGNORES_SIGTERM], announces=True)
        supervisor.first_line("sleeper", 30)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        supervisor.wait()
        supervisor.stop("sleeper", 1000)
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "pass"])
def test_a_child_that_ends_before_it_is_ready_is_told(code: str) -> None:
    with Supervisor().running() as supervisor:
        supervisor.start("worker", [sys.executable, "-c", code], announces=True)
        with pytest.raises(OperatorError, match=r"the worker ended with exit code [03]: expected it to run on"):
            supervisor.first_line("worker", 30)
