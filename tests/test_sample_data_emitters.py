"""What the simulator sends is what it counts, through the SDK, straight over OTLP, and as captured files."""

import base64
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent import futures
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

import sample_data
from sample_data.__main__ import main
from sample_data.capture import PRIVATE_PREFIXES, capture_redis, to_json, without_private
from sample_data.emit_files import read_framed
from sample_data.emit_otlp import OtlpEmitter, open_transport, parse_endpoint, traces_path
from sample_data.encoding import protobuf_request
from sample_data.otlp_receiver import OtlpReceiver
from sample_data.simulator import Settings, run, simulate
from sample_data.stream import Stream
from sample_data.truth import Truth

START = 1_790_000_000
CAPTURED = Path(sample_data.__file__).parent / "captured"


class GrpcReceiver:
    """OTLP/gRPC on a free port; answers with the status codes given, then with success."""

    def __init__(self, *failures: grpc.StatusCode, rejected_spans: int = 0):
        self.requests: list[bytes] = []
        self._failures = list(failures)
        self._rejected_spans = rejected_spans
        self._lock = threading.Lock()

    def _export(self, payload: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            failure = self._failures.pop(0) if self._failures else None
            if failure is None:
                self.requests.append(payload)
        if failure is not None:
            context.abort(failure, "as told")
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = self._rejected_spans
        return response.SerializeToString()

    def __enter__(self):
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Export": handler})])
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()


RECEIVERS = {"grpc": GrpcReceiver, "http/protobuf": OtlpReceiver}


def settings(endpoint: str, **more) -> Settings:
    fixed = {"operations_per_second": 40.0, "start_second": START, "duration_seconds": 4, "speed": 0.0, "seed": 2}
    return Settings(endpoint=endpoint, **fixed | more)


def received_spans(requests: list[bytes]) -> list[tuple[dict, object]]:
    """(resource attributes, span) of every span."""
    spans = []
    for request in requests:
        for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
            resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            spans += [(resource, span) for scope in resource_spans.scope_spans for span in scope.spans]
    return spans


def by_tenant_region(requests: list[bytes]) -> Counter:
    counts: Counter = Counter()
    for resource, span in received_spans(requests):
        tenant = next(a.value.string_value for a in span.attributes if a.key == "tenant.id")
        counts[tenant, resource["cloud.region"]] += 1
    return counts


def told(truth: Truth) -> dict[tuple[str, str], int]:
    return {key: counts.spans for key, counts in truth.by_tenant_region.items()}


@pytest.mark.parametrize("protocol", RECEIVERS)
def test_receiver_gets_exactly_what_truth_counts(protocol):
    with RECEIVERS[protocol]() as receiver:
        truth = simulate(settings(receiver.endpoint, protocol=protocol, history_seconds=6), threading.Event())
    assert by_tenant_region(receiver.requests) == told(truth)
    ids = [(span.trace_id, span.span_id) for _, span in received_spans(receiver.requests)]
    assert len(set(ids)) == len(ids) == truth.total.spans > 500
    assert truth.unacknowledged_spans == 0
    assert truth.total.deliveries > 0 < truth.total.hits


def test_sdk_and_direct_encoding_describe_the_same_spans():
    with OtlpReceiver() as receiver:
        simulate(settings(receiver.endpoint, protocol="http/protobuf"), threading.Event())
    source = Stream(seed=2, operations_per_second=40.0, tenants=48, start_second=START)
    spans = [span for _ in range(4) for span in source.advance()] + source.rest()
    direct = [protobuf_request(source.topology.instances[span.instance], [span]) for span in spans]

    def described(requests):
        found = {}
        for resource, span in received_spans(requests):
            # The SDK writes an empty status where the other form writes none: the same message on reading.
            span.status.SetInParent()
            found[span.span_id] = (resource, span.SerializeToString(deterministic=True))
        return found

    assert described(receiver.requests) == described(direct)


def test_more_spans_than_the_queue_holds_are_not_dropped():
    with GrpcReceiver() as receiver:
        truth = simulate(
            settings(receiver.endpoint, operations_per_second=3000.0, duration_seconds=1), threading.Event()
        )
    assert truth.total.spans == len(received_spans(receiver.requests)) > 8192


@pytest.mark.parametrize(
    ("failures", "lost_requests"),
    [([], 0), ([grpc.StatusCode.UNAVAILABLE] * 3, 0), ([grpc.StatusCode.INVALID_ARGUMENT], 1)],
)
def test_direct_emitter_tries_again_what_may_pass_and_counts_what_cannot(failures, lost_requests):
    source = Stream(seed=2, operations_per_second=40.0, tenants=48, start_second=START)
    spans = source.advance()
    with GrpcReceiver(*failures) as receiver:
        with OtlpEmitter(open_transport(receiver.endpoint, "grpc"), threading.Event()) as emitter:
            for span in spans:
                emitter.send(protobuf_request(source.topology.instances[span.instance], [span]), 1)
        assert emitter.unacknowledged_spans == lost_requests
        assert len(received_spans(receiver.requests)) == len(spans) - lost_requests


def test_rejected_spans_and_dead_endpoints_are_unacknowledged():
    source = Stream(seed=2, operations_per_second=40.0, tenants=48, start_second=START)
    span = source.advance()[0]
    payload = protobuf_request(source.topology.instances[span.instance], [span])
    with (
        GrpcReceiver(rejected_spans=1) as receiver,
        OtlpEmitter(open_transport(receiver.endpoint, "grpc"), threading.Event()) as emitter,
    ):
        emitter.send(payload, 1)
    assert emitter.unacknowledged_spans == 1
    for protocol in RECEIVERS:
        transport = open_transport(receiver.endpoint, protocol)
        with OtlpEmitter(transport, threading.Event(), give_up_seconds=0.0) as emitter:
            emitter.send(payload, 1)
        assert emitter.unacknowledged_spans == 1


def test_run_goes_on_in_real_time_until_stopped():
    stop = threading.Event()
    with GrpcReceiver() as receiver, futures.ThreadPoolExecutor(1) as pool:
        before_ns = time.time_ns()
        running = pool.submit(
            run, receiver.endpoint, "grpc", rate_per_second=60.0, seed=4, history_seconds=20, stop=stop
        )
        wait_until(lambda: any(s.start_time_unix_nano > before_ns for _, s in received_spans(receiver.requests)))
        stop.set()
        truth = running.result(timeout=30)
        after_ns = time.time_ns()
    assert by_tenant_region(receiver.requests) == told(truth)
    starts = sorted(span.start_time_unix_nano for _, span in received_spans(receiver.requests))
    assert before_ns - 21 * 10**9 <= starts[0] < before_ns - 18 * 10**9
    assert before_ns < starts[-1] < after_ns + 2 * 10**9
    gaps = [later - sooner for sooner, later in pairwise(starts)]
    assert max(gaps) < 1.5 * 10**9, "history and live traffic join without a hole"


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def test_command_line_stops_cleanly_on_a_signal(tmp_path):
    truth_file = tmp_path / "truth.json"
    with OtlpReceiver() as receiver:
        command = [sys.executable, "-m", "sample_data", "--endpoint", receiver.endpoint, "--rate", "40"]
        command += ["--protocol", "http/protobuf", "--history", "2s", "--truth", str(truth_file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            wait_until(lambda: receiver.requests)
            process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    report = json.loads(printed)
    assert report == json.loads(truth_file.read_text())
    assert report["total"]["spans"] == len(received_spans(receiver.requests)) > 0


def test_command_line_writes_files_and_tells_the_truth(tmp_path, capsys):
    common = ["--seed", "7", "--tenants", "5", "--rate", "20", "--start", "2026-09-01T12:00:00Z"]
    assert main([*common, "--output", str(tmp_path / "a.pb"), "--spans", "700"]) == 0
    report = json.loads(capsys.readouterr().out)
    spans = received_spans(list(read_framed(tmp_path / "a.pb")))
    assert report["total"]["spans"] == len(spans) == 700
    assert min(s.start_time_unix_nano for _, s in spans) // 10**9 == 1_788_264_000
    assert report["first_start_time_unix_nano"] == min(s.start_time_unix_nano for _, s in spans)
    assert main([*common, "--output", str(tmp_path / "a.jsonl"), "--hours", "0.01"]) == 0
    report = json.loads(capsys.readouterr().out)
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert len(received_spans([from_json(line) for line in lines])) == report["total"]["spans"]
    assert report["last_start_time_unix_nano"] - report["first_start_time_unix_nano"] > 30 * 10**9


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--protocol", "carrier-pigeon"], 2, "invalid choice"),
        (["--history", "soon"], 2, "'soon' is no duration"),
        (["--start", "yesterday"], 2, "'yesterday' is no ISO 8601 time"),
        (["--spans", "5"], 2, "--output"),
        (["--spans", "5", "--hours", "1", "--output", "x.pb"], 2, "exclude each other"),
        (["--endpoint", "127.0.0.1:4317"], 1, "endpoint is '127.0.0.1:4317'"),
        (["--tenants", "0"], 1, "tenants is 0"),
        (["--speed", "-1"], 1, "speed is -1"),
        (["--output", "x.csv"], 1, "output is x.csv"),
        (["--output", "/nowhere/x.pb"], 1, "/nowhere/x.pb"),
    ],
)
def test_command_line_says_what_is_wrong(arguments, code, named, capsys):
    result = None
    with contextlib.suppress(SystemExit):
        result = main(arguments)
    assert result in {None, code}
    assert (result is None) == (code == 2)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("http://127.0.0.1:4318", "/v1/traces"),
        ("http://127.0.0.1:4318/", "/v1/traces"),
        ("http://127.0.0.1:4318/otlp", "/otlp/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces", "/v1/traces"),
    ],
)
def test_traces_path_follows_the_base_url(endpoint, path):
    assert traces_path(parse_endpoint(endpoint)) == path


def from_json(line: bytes) -> bytes:
    """OTLP's JSON as a serialized request, by protobuf's own JSON reader, which wants ids in base64."""

    def with_base64(value):
        if isinstance(value, list):
            return [with_base64(v) for v in value]
        if not isinstance(value, dict):
            return value
        return {
            k: base64.b64encode(bytes.fromhex(v)).decode()
            if k in {"traceId", "spanId", "parentSpanId"}
            else with_base64(v)
            for k, v in value.items()
        }

    return ParseDict(with_base64(json.loads(line)), ExportTraceServiceRequest()).SerializeToString()


CAPTURES = {"redis": 36, "redis_stable": 36, "nats": 90}


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_forms_agree_and_are_free_of_the_machine(name):
    requests = list(read_framed(CAPTURED / f"{name}.pb"))
    lines = (CAPTURED / f"{name}.jsonl").read_bytes().splitlines()
    parsed = [ExportTraceServiceRequest.FromString(r) for r in requests]
    assert parsed == [ExportTraceServiceRequest.FromString(from_json(line)) for line in lines]
    assert [to_json(r) for r in requests] == lines
    assert [ExportTraceServiceRequest.FromString(without_private(r)) for r in requests] == parsed
    assert not any(f'"{prefix}'.encode() in line for prefix in PRIVATE_PREFIXES for line in lines)
    assert len(received_spans(requests)) == CAPTURES[name]
    assert all((CAPTURED / f"{name}.{form}").stat().st_size < 300_000 for form in ("pb", "jsonl"))


def test_captured_topic_spans_are_joined_to_their_producers():
    spans = [span for _, span in received_spans(list(read_framed(CAPTURED / "nats.pb")))]
    producers = {(s.trace_id, s.span_id) for s in spans if s.kind == 4}
    consumers = [s for s in spans if s.kind == 5]
    assert len(consumers) == 2 * len(producers) == 60
    assert {(link.trace_id, link.span_id) for s in consumers for link in s.links} == producers
    children = [s for s in consumers if s.parent_span_id]
    assert {(s.trace_id, s.parent_span_id) for s in children} < producers
    assert len(children) == 30


@pytest.mark.needs_redis
def test_a_real_application_can_be_captured():
    spans = received_spans([without_private(request) for request in capture_redis("database")])
    captured = received_spans(list(read_framed(CAPTURED / "redis_stable.pb")))
    assert [span.name for _, span in spans] == [span.name for _, span in captured]
    assert {a.key for _, s in spans for a in s.attributes} == {a.key for _, s in captured for a in s.attributes}
