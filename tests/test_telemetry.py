"""The collector's metrics, compared with what was sent; its addresses, its log."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from collector.config import LimitsConfig, TelemetryConfig
from collector.errors import InvalidRequestError, OperatorError, OverloadedError, RetryableError
from collector.receive.refusals import Refusals
from collector.telemetry.health import Health
from collector.telemetry.latency import BOUNDS_SECONDS, Latencies
from collector.telemetry.logs import Sparse, configure
from collector.telemetry.metrics import Metrics
from collector.telemetry.server import TelemetryServers

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOBUF = {"Content-Type": "application/x-protobuf"}
FREE = {"SPANLAKE_TELEMETRY_METRICS": "127.0.0.1:0", "SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:0"}
WAIT_SECONDS = 30.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Collector:
    """A running `spanlake collect`."""

    def __init__(self, data: Path, environment: dict[str, str]) -> None:
        self.data = data
        command = [SPANLAKE, "collect", "--data", str(data), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.ready: dict[str, str] = json.loads(line)

    def get(self, path: str = "/metrics", key: str = "metrics", **headers: str) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection(self.ready[key], timeout=10)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, response.headers["content-type"], body

    def scrape(self) -> Samples:
        families = text_string_to_metric_families(self.get()[2])
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().get((name, frozenset(labels.items())), 0.0)

    def await_value(self, expected: float, name: str, **labels: str) -> None:
        await_that(lambda: self.value(name, **labels) == expected, lambda: f"{name} = {self.value(name, **labels)}")

    def post(self, body: bytes, headers: dict[str, str] = PROTOBUF) -> int:
        connection = http.client.HTTPConnection(self.ready["http"], timeout=10)
        connection.request("POST", "/v1/traces", body, headers)
        status = connection.getresponse().status
        connection.close()
        return status

    def stop(self) -> str:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[1]


def await_that(condition: Callable[[], bool], problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    started: list[Collector] = []

    def start(data: Path = tmp_path / "data", **environment: str) -> Collector:
        started.append(Collector(data, FREE | environment))
        return started[-1]

    yield start
    for collector in started:
        collector.stop()


def payload(spans: int, invalid: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    scope_spans = message.resource_spans.add().scope_spans.add()
    for i in range(spans + invalid):
        scope_spans.spans.add(
            trace_id=os.urandom(16),
            span_id=b"" if i < invalid else os.urandom(8),
            name="work",
            start_time_unix_nano=time.time_ns(),
            end_time_unix_nano=time.time_ns() + 5,
        )
    return message.SerializeToString()


def payload_over_a_limit() -> bytes:
    """One span with one attribute too many."""
    message = ExportTraceServiceRequest.FromString(payload(1))
    for i in range(LimitsConfig().attributes_max + 1):
        message.resource_spans[0].scope_spans[0].spans[0].attributes.add(key=f"key-{i}").value.int_value = i
    return message.SerializeToString()


def test_metrics_are_what_was_sent(start: Callable[..., Collector]) -> None:
    collector = start()
    over_http = [payload(spans) for spans in (1, 20, 299)]
    over_http.append(payload_over_a_limit())
    assert [collector.post(body) for body in over_http] == [200] * 4
    assert collector.post(over_http[1]) == 200
    assert collector.post(payload(5, invalid=2)) == 200
    with grpc.insecure_channel(collector.ready["grpc"]) as channel:
        for spans in (7, 70):
            channel.unary_unary(EXPORT)(payload(spans))
    assert collector.post(b"\xff garbage") == 400
    assert collector.post(payload(1), PROTOBUF | {"content-encoding": "br"}) == 415
    assert collector.post(b"", {"Content-Type": "text/plain"}) == 415
    collector.await_value(403, "otelcol_exporter_sent_spans_total", exporter="lake")
    samples = collector.scrape()

    def value(name: str, **labels: str) -> float:
        return samples[name, frozenset(labels.items())]

    receiver = {"receiver": "otlp"}
    assert value("otelcol_receiver_accepted_spans_total", transport="http", **receiver) == 326
    assert value("otelcol_receiver_accepted_spans_total", transport="grpc", **receiver) == 77
    assert value("otelcol_receiver_refused_spans_total", transport="http", **receiver) == 3
    assert value("otelcol_receiver_refused_spans_total", transport="grpc", **receiver) == 0
    assert value("otelcol_exporter_send_failed_spans_total", exporter="lake") == 0
    assert value("otelcol_exporter_queue_capacity", exporter="lake") == 8 * 2**30
    assert 2**25 < value("otelcol_process_memory_rss") < 2**31
    assert 0 < value("otelcol_process_uptime_total") < 120
    assert value("spanlake_refused_requests_total", transport="http", reason="invalid_request") == 1
    assert value("spanlake_refused_requests_total", transport="http", reason="unsupported_encoding") == 1
    assert value("spanlake_refused_requests_total", transport="http", reason="unsupported_media_type") == 1
    assert value("spanlake_deduplicated_requests_total") == 1
    assert value("spanlake_rejected_spans_total") == 2
    assert value("spanlake_acknowledge_duration_seconds_count", transport="http") == 6
    assert value("spanlake_acknowledge_duration_seconds_count", transport="grpc") == 2
    assert value("spanlake_acknowledge_duration_seconds_bucket", transport="grpc", le="+Inf") == 2
    assert 0 < value("spanlake_acknowledge_duration_seconds_sum", transport="grpc") < 60
    assert value("spanlake_commit_duration_seconds_count") == value("spanlake_seal_duration_seconds_count") >= 1
    assert value("spanlake_quarantined_requests") == 0
    assert value("spanlake_tenant_spans_total", tenant="default") == 403
    assert value("spanlake_cuts_total", part="attributes") == 1
    check_formats_and_paths(collector)
    check_log(collector.stop())


def check_formats_and_paths(collector: Collector) -> None:
    assert collector.get()[1].startswith("text/plain; version=")
    status, media_type, body = collector.get(accept="application/openmetrics-text; version=1.0.0")
    assert (status, media_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith("# EOF\n")
    assert collector.get("/")[0] == 404
    connection = http.client.HTTPConnection(collector.ready["metrics"], timeout=10)
    for method, expected in (("POST", 405), ("HEAD", 200)):
        connection.request(method, "/metrics")
        response = connection.getresponse()
        response.read()
        assert response.status == expected
    connection.close()


def check_log(errors: str) -> None:
    """JSON lines where nobody looks."""
    (line,) = [line for line in map(json.loads, errors.splitlines()) if line["message"].startswith("stopping")]
    assert line["level"] == "info"
    assert line["logger"] == "collector.collect"
    assert line["time"].endswith("+00:00")


def test_backlog_refusals_of_a_full_spool_and_what_is_left_for_the_next_process(
    start: Callable[..., Collector],
) -> None:
    first = start(SPANLAKE_COLLECTOR_SEAL_INTERVAL_SECONDS="60", SPANLAKE_COLLECTOR_SPOOL_BYTES_MAX=str(2**20))
    body = payload(20_000)
    assert first.post(body) == 200
    assert first.value("spanlake_unsealed_requests") == 1
    assert first.value("spanlake_spool_bytes") == len(body) > 2**20
    assert first.value("otelcol_exporter_queue_size", exporter="lake") == len(body)
    assert first.value("spanlake_seal_stalled_seconds") > 0
    assert first.post(payload(1)) == 503
    assert first.value("spanlake_refused_requests_total", transport="http", reason="overloaded") == 1
    assert first.value("otelcol_receiver_refused_spans_total", receiver="otlp", transport="http") == 1
    status, _, report = first.get("/", "health")
    assert status == 503
    assert "collector.spool_bytes_max = 1048576 is reached" in report
    first.process.kill()
    first.process.wait()
    second = start(data=first.data, SPANLAKE_TELEMETRY_METRICS="127.0.0.1:0", SPANLAKE_TELEMETRY_HEALTH="")
    assert "health" not in second.ready
    second.await_value(20_000, "otelcol_exporter_sent_spans_total", exporter="lake")
    assert second.value("otelcol_receiver_accepted_spans_total", receiver="otlp", transport="http") == 0
    assert second.value("spanlake_spool_bytes") == 0


def listening(config: TelemetryConfig) -> dict[str, str]:
    """The addresses that metrics and health take."""

    async def run() -> dict[str, str]:
        servers = TelemetryServers(config, cast(Metrics, None), cast(Health, None))
        try:
            return await servers.start()
        finally:
            await servers.stop()

    return asyncio.run(run())


def test_a_configured_address_in_use_is_named_a_default_one_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OperatorError, match=rf"telemetry\.metrics = '{address}': cannot listen there"):
            listening(TelemetryConfig(metrics=address, health="127.0.0.1:0"))
        default = TelemetryConfig.model_construct(metrics=address, health="", _fields_set=set())
        (given,) = listening(default).values()
    assert given != address
    assert f"telemetry.metrics = '{address}': cannot listen there" in caplog.text


def logged(config: TelemetryConfig, log: Callable[[logging.Logger], None]) -> str:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    root.handlers = []
    try:
        configure(config, stream)
        log(logging.getLogger("test"))
    finally:
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)
    return stream.getvalue()


def fail(log: logging.Logger) -> None:
    try:
        int("oops\nsecond line")
    except ValueError:
        log.exception("it failed for %s", "a\nb")


def test_json_lines_stay_lines() -> None:
    (line,) = logged(TelemetryConfig(log_format="json"), fail).splitlines()
    record = json.loads(line)
    assert record["message"] == "it failed for a\nb"
    assert record["exception"].endswith("'oops\\nsecond line'")


def test_text_is_for_readers() -> None:
    assert "Z ERROR test: it failed for a\nb\nTraceback" in logged(TelemetryConfig(log_format="text"), fail)


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_level(level: str, count: int) -> None:
    def log(logger: logging.Logger) -> None:
        logger.debug("d")
        logger.info("i")
        logger.warning("w")

    config = TelemetryConfig.model_validate({"log_level": level})
    assert len(logged(config, log).splitlines()) == count


def test_what_repeats_is_left_out_by_template_and_counted() -> None:
    def log(logger: logging.Logger) -> None:
        for i in range(100):
            logger.warning("refused %d", i)
        logger.warning("something else")

    lines = logged(TelemetryConfig(log_format="json"), log).splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["refused 0", "something else"]
    sparse = Sparse(repeat_seconds=0.0)
    record = logging.LogRecord("x", logging.INFO, "", 0, "again", None, None)
    assert sparse.filter(record)
    assert sparse.filter(record)


def test_the_next_one_says_how_many_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("collector.telemetry.logs.time.monotonic", lambda: now[0])

    def log(logger: logging.Logger) -> None:
        for _ in range(5):
            logger.warning("again")
        now[0] += 11
        logger.warning("again")

    first, second = logged(TelemetryConfig(log_format="json"), log).splitlines()
    assert "left_out" not in json.loads(first)
    assert json.loads(second)["left_out"] == 4


def test_templates_without_end_take_no_memory_without_end() -> None:
    sparse = Sparse()
    for i in range(5000):
        sparse.filter(logging.LogRecord("x", logging.INFO, "", 0, f"template {i}", None, None))
    assert len(sparse._last) <= 1000


@given(st.lists(st.floats(0, 100)))
def test_latencies_count_each_duration_once_at_its_bound(durations: list[float]) -> None:
    latencies = Latencies()
    for duration in durations:
        latencies.record(duration)
    assert sum(latencies.counts) == len(durations)
    for i, bound in enumerate(BOUNDS_SECONDS):
        assert sum(latencies.counts[: i + 1]) == sum(duration <= bound for duration in durations)
    assert latencies.sum_seconds == pytest.approx(sum(durations))


def test_refusals_are_counted_by_reason() -> None:
    refusals = Refusals()
    for error in (OverloadedError("x"), RetryableError("x", refused_spans=40), InvalidRequestError("x"), KeyError("x")):
        refusals.count("grpc", error)
    assert refusals.requests == {
        ("grpc", "overloaded"): 1,
        ("grpc", "retryable"): 1,
        ("grpc", "invalid_request"): 1,
        ("grpc", "unexpected"): 1,
    }
    assert refusals.spans == {"grpc": 43}
