"""The collector's own spans: what they tell, where they go, and that they never feed on themselves."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from collector.collect import open_stages
from collector.config import CollectorConfig, Config, StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.lake.segments import write_segment
from collector.pipeline import TraceRequest
from collector.telemetry import traces
from collector.telemetry.traces import Tracing

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
FREE = {"SPANLAKE_TELEMETRY_METRICS": "", "SPANLAKE_TELEMETRY_HEALTH": ""}
WAIT_SECONDS = 30.0
MARKER = b"5ca1ab1e"


def request(name: str = "work") -> TraceRequest:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add().spans.add(trace_id=os.urandom(16), span_id=os.urandom(8), name=name)
    return TraceRequest(message.SerializeToString(), time.time_ns())


def spans_of_work(folder: Path, *requests: TraceRequest) -> list[ReadableSpan]:
    """What a collector makes while it takes the requests one after another, each up to its seal."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    config = Config(
        storage=StorageConfig(data=str(folder)),
        collector=CollectorConfig.model_validate({"seal_interval_seconds": 0.01, "merge_interval_seconds": 0.05}),
    )

    async def run() -> None:
        with open_stages(config, locate(config.storage), Tracing(provider, MARKER)) as stages:
            stages.ingest.start()
            for one in requests:
                await stages.ingest.accept(one)
                while stages.sealer.unsealed_requests:
                    await asyncio.sleep(0.005)

    asyncio.run(run())
    return list(memory.get_finished_spans())


def test_seals_have_their_commits_and_writes_are_sampled(tmp_path: Path) -> None:
    spans = spans_of_work(tmp_path, *(request() for _ in range(5)))
    seals = [span for span in spans if span.name == "seal"]
    commits = [span for span in spans if span.name == "commit"]
    assert len(seals) == len(commits) == 5
    assert {span.parent.span_id for span in commits if span.parent} == {span.context.span_id for span in seals}
    assert [dict(span.attributes or {}) for span in seals] == [{"spanlake.requests": 1, "spanlake.spans": 1}] * 5
    writes = [span for span in spans if span.name == "spool"]
    assert 1 <= len(writes) < 5
    assert all(span.start_time and span.end_time and span.start_time < span.end_time for span in writes)


def test_work_for_own_exports_alone_makes_no_spans(tmp_path: Path) -> None:
    own = request(f"own {MARKER.decode()}")
    assert spans_of_work(tmp_path / "own", own) == []
    names = [span.name for span in spans_of_work(tmp_path / "mixed", own, request())]
    assert sorted(names) == ["commit", "seal", "spool"]


def test_a_failed_seal_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("no space left")]

    def fail_once(spans: pa.Table, folder: Path, compression: str) -> Path:
        if failures:
            raise failures.pop()
        return write_segment(spans, folder, compression)

    monkeypatch.setattr("collector.seal.write_segment", fail_once)
    failed, sealed = [span for span in spans_of_work(tmp_path, request()) if span.name == "seal"]
    assert not failed.status.is_ok
    assert "no space left" in (failed.status.description or "")
    assert sealed.status.is_unset


def test_without_an_endpoint_nothing_is_made() -> None:
    tracing = traces.start("")
    assert not tracing.is_sampled()
    assert not tracing.is_own([request()])
    with tracing.span("seal", {}):
        pass
    tracing.stop()


class Recorder(http.server.BaseHTTPRequestHandler):
    """An OTLP/HTTP endpoint that keeps paths, headers and requests."""

    protocol_version = "HTTP/1.1"
    taken: list[tuple[str, dict[str, str], ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.taken.append((self.path, headers, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Recorder]]]:
    class Own(Recorder):
        taken = []  # noqa: RUF012 - a class for each test

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Own
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("path", "expected"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/x", "/otlp/x")])
def test_the_variables_of_otlp_keep_their_meaning(
    endpoint: tuple[str, type[Recorder]], monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    url, recorder = endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-scope-orgid=ops")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-collector")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=me")
    tracing = traces.start(url + path)
    with tracing.span("seal", {"spanlake.spans": 3}):
        pass
    tracing.stop()
    ((taken_path, headers, message),) = recorder.taken
    assert taken_path == expected
    assert headers["authorization"] == "Bearer abc"
    assert headers["x-scope-orgid"] == "ops"
    attributes = {a.key: a.value.string_value for a in message.resource_spans[0].resource.attributes}
    assert attributes["service.name"] == "my-collector"
    assert attributes["service.instance.id"] == "me"
    assert attributes["deployment.environment.name"] == "test"


def test_own_exports_are_known_from_those_of_others(
    endpoint: tuple[str, type[Recorder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, recorder = endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    tracing, other = traces.start(url), traces.start(url)
    with tracing.span("seal", {}):
        pass
    await_that(lambda: bool(recorder.taken))
    own = TraceRequest(recorder.taken[0][2].SerializeToString(), 0)
    assert tracing.is_own([own])
    assert tracing.is_own([own, own])
    assert not tracing.is_own([own, request()])
    assert not other.is_own([own])
    tracing.stop()
    other.stop()


def test_a_dead_endpoint_does_not_hold_up_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_LAST_EXPORT_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        tracing = traces.start(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with tracing.span("seal", {}):
            pass
        stopping = threading.Thread(target=tracing.stop, daemon=True)
        stopping.start()
        stopping.join(WAIT_SECONDS)
        assert not stopping.is_alive()


class Collector:
    """A running `spanlake collect` that exports to itself; exporters batch for 50 ms instead of 5 s."""

    def __init__(self, data: Path, address: str) -> None:
        command = [SPANLAKE, "collect", "--data", str(data), "--grpc", address, "--http", "127.0.0.1:0"]
        environment = (
            os.environ
            | FREE
            | {
                "SPANLAKE_TELEMETRY_TRACES_ENDPOINT": f"http://{address}",
                "SPANLAKE_COLLECTOR_SEAL_INTERVAL_SECONDS": "0.05",
                "OTEL_BSP_SCHEDULE_DELAY": "50",
            }
        )
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        assert self.process.stdout is not None
        self.ready: dict[str, str] = json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


@pytest.fixture
def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_collector_that_traces_itself_falls_silent(tmp_path: Path, free_address: str) -> None:
    data = tmp_path / "data"
    collector = Collector(data, free_address)
    with grpc.insecure_channel(free_address) as channel:
        for _ in range(3):
            answer = channel.unary_unary(EXPORT)(request().payload)
            assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake:

        def names() -> list[str]:
            with lake.read() as reader:
                return [name for (name,) in reader.rows("SELECT name FROM spans ORDER BY start_time")]

        def snapshot() -> int:
            with lake.read() as reader:
                return reader.snapshot_id()

        await_that(lambda: {"seal", "commit", "spool"} <= set(names()))
        settled = [0, -1]

        def is_settled() -> bool:
            settled.append(snapshot())
            return len(settled) > 50 and len(set(settled[-50:])) == 1

        await_that(is_settled)
        stored = names()
    collector.stop()
    assert stored.count("work") == 3
    assert 1 <= stored.count("seal") == stored.count("commit") <= 3
    assert stored.count("spool") <= 3
