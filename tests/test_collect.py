"""`spanlake collect` as a process: ready line, clean stop, kill, second copy, full disk, bad folders, bad input."""

from __future__ import annotations

import http.client
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.lake.tables import SCHEMA_VERSION

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Collector:
    """A running `spanlake collect`, stopped by its pid at the end of the test."""

    def __init__(self, data: Path, grpc_address: str = "127.0.0.1:0", http_address: str = "127.0.0.1:0") -> None:
        command = [SPANLAKE, "collect", "--data", str(data), "--grpc", grpc_address, "--http", http_address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.ready = json.loads(line)

    def post(self, body: bytes, headers: dict[str, str] = PROTOBUF) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.ready["http"], timeout=30)
        try:
            connection.request("POST", "/v1/traces", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Collector] = []

    def start(**arguments: str) -> Collector:
        started.append(Collector(tmp_path / "data", **arguments))
        return started[-1]

    yield start
    for collector in started:
        if collector.process.poll() is None:
            collector.process.kill()
        collector.process.communicate()


def payload(name: str, spans: int = 1) -> bytes:
    message = ExportTraceServiceRequest()
    scope_spans = message.resource_spans.add().scope_spans.add()
    for i in range(spans):
        now = time.time_ns()
        scope_spans.spans.add(
            trace_id=os.urandom(16),
            span_id=(i + 1).to_bytes(8, "big"),
            name=name,
            start_time_unix_nano=now,
            end_time_unix_nano=now + 5,
        )
    return message.SerializeToString()


def names(data: Path) -> list[str]:
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake, lake.read() as reader:
        return [name for (name,) in reader.rows("SELECT name FROM spans ORDER BY name")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_line_and_clean_stop(start, tmp_path: Path, number: int) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    collector = start()
    assert collector.ready["ready"] is True
    assert collector.ready["pid"] == collector.process.pid
    assert json.loads((tmp_path / "data" / "collector.json").read_text()) == collector.ready
    for i in range(5):
        assert collector.post(payload(f"span-{i}"))[0] == 200
    assert collector.stop(number) == 0
    assert names(tmp_path / "data") == [f"span-{i}" for i in range(5)]
    assert not (tmp_path / "data" / "collector.json").exists()
    assert "Traceback" not in collector.errors


def test_what_is_acknowledged_is_soon_in_the_answers_of_queries(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    collector = start()
    assert collector.post(payload("soon"))[0] == 200
    with Lake(locate(StorageConfig(data=str(tmp_path / "data"))), read_only=True) as lake:
        while True:
            with lake.read() as reader:
                if reader.row("SELECT count(*) FROM spans WHERE name = 'soon'")[0] == 1:
                    break
    assert collector.stop() == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kill_under_load_keeps_every_acknowledged_span_once(start, tmp_path: Path, seed: int) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    rng = random.Random(seed)
    collector = start()
    addresses = {"grpc_address": collector.ready["grpc"], "http_address": collector.ready["http"]}
    requests = [[payload(f"{seed}-{client}-{i}", 3) for i in range(40)] for client in range(4)]
    acknowledged = [0] * 4
    refusals: set[grpc.StatusCode] = set()

    def client(number: int) -> None:
        with grpc.insecure_channel(collector.ready["grpc"]) as channel:
            export = channel.unary_unary(EXPORT)
            for request in requests[number]:
                while True:
                    try:
                        export(request, timeout=20, wait_for_ready=True)
                        break
                    except grpc.RpcError as error:
                        refusals.add(error.code())
                acknowledged[number] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        target = sum(acknowledged) + rng.randrange(5, 50)
        while sum(acknowledged) < target:
            time.sleep(0.001)
        collector.stop(signal.SIGKILL)
        collector = start(**addresses)
    for thread in threads:
        thread.join(60)
    assert acknowledged == [40] * 4
    assert refusals <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert collector.stop() == 0
    expected = [f"{seed}-{c}-{i}" for c in range(4) for i in range(40) for _ in range(3)]
    assert names(tmp_path / "data") == sorted(expected)


def test_a_second_collector_on_the_same_folder_says_who_has_it(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    collector = start()
    second = run("collect", "--data", str(tmp_path / "data"), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert second.returncode == 1
    assert f"another collector (pid {collector.process.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert collector.post(payload("still here"))[0] == 200
    assert collector.stop() == 0
    assert names(tmp_path / "data") == ["still here"]


def test_a_port_in_use_is_named(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    collector = start()
    second = run(
        "collect", "--data", str(tmp_path / "other"), "--grpc", collector.ready["grpc"], "--http", "127.0.0.1:0"
    )
    assert second.returncode == 1
    assert "collector.grpc" in second.stderr
    assert collector.ready["grpc"] in second.stderr
    assert "Traceback" not in second.stderr


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for data in (tmp_path / "file" / "data", Path("/proc/spanlake")):
        refused = run("collect", "--data", str(data))
        assert refused.returncode == 1
        assert f"storage.data = '{data}' cannot be written" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_folder_of_a_newer_schema_is_refused(start, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]  # of a fixture
    start().stop()
    with Lake(locate(StorageConfig(data=str(tmp_path / "data"))), read_only=False) as lake, lake.write() as transaction:
        transaction.execute("INSERT INTO schema_version VALUES (?, now()::TIMESTAMP)", [SCHEMA_VERSION + 7])
    for command in ("collect", "sql"):
        arguments = ["SELECT 1"] if command == "sql" else []
        refused = run(command, "--data", str(tmp_path / "data"), *arguments)
        assert refused.returncode == 1
        assert f"schema version {SCHEMA_VERSION + 7}" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_full_disk_refuses_retryably_keeps_what_was_acknowledged_and_recovers(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).parent / "applications" / "full_disk.py"), str(tmp_path)]
    inner = f"mount -t tmpfs -o size=32m none {shlex.quote(str(tmp_path))} && exec {shlex.join(program)}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["statuses"] == [200, 503]
    assert result["alive"]
    assert result["recovered"]
    assert result["exit_code"] == 0
    assert result["stored"] == result["acknowledged"]
    assert len(result["acknowledged"]) > 3


@pytest.mark.parametrize("free_bytes", [0, 100_000, 1_000_000])
def test_a_start_on_a_full_disk_is_a_message(tmp_path: Path, free_bytes: int) -> None:
    ballast = f"fallocate --length {4 * 2**20 - free_bytes} {shlex.quote(str(tmp_path / 'ballast'))}"
    program = [SPANLAKE, "collect", "--data", str(tmp_path / "data"), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    inner = f"mount -t tmpfs -o size=4m none {shlex.quote(str(tmp_path))} && {ballast} && exec {shlex.join(program)}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inner]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "storage.data" in refused.stderr
    assert "No space left" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"\xff\xff\xff garbage", PROTOBUF, 400, b"ExportTraceServiceRequest"),
        (payload("truncated")[:-7], PROTOBUF, 400, b"ExportTraceServiceRequest"),
        (b"{}", {"Content-Type": "text/plain"}, 415, b"text/plain"),
        (b"x", PROTOBUF | {"Content-Encoding": "br"}, 415, b"br"),
        (b"not gzip", PROTOBUF | {"Content-Encoding": "gzip"}, 400, b"gzip"),
        (b"{broken", {"Content-Type": "application/json"}, 400, b"JSON"),
    ],
    ids=["garbage", "truncated", "content type", "encoding", "not gzip", "broken JSON"],
)
def test_bad_input_is_told_and_harms_nobody(  # type: ignore[no-untyped-def]  # of a fixture
    start, tmp_path: Path, body: bytes, headers: dict[str, str], status: int, message: bytes
) -> None:
    collector = start()
    assert collector.post(payload("before"))[0] == 200
    answer = collector.post(body, headers)
    assert answer[0] == status
    assert message in answer[1]
    assert collector.post(payload("behind"))[0] == 200
    assert collector.stop() == 0
    assert names(tmp_path / "data") == ["before", "behind"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SPANLAKE, *arguments], capture_output=True, text=True, timeout=60, check=False)
