"""Both servers together: real SDK exporters, bounds shared by both, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
import uvloop
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from collector.config import CollectorConfig
from collector.errors import OperatorError, OverloadedError
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Endpoints, Servers

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOBUF = "application/x-protobuf"


@dataclass
class Recorder:
    """A sink that keeps what it accepts; `answer` may raise; while `gate` is closed nobody is answered."""

    requests: list[TraceRequest] = field(default_factory=list)
    answer: Callable[[], Accepted] = Accepted
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def accept(self, request: TraceRequest) -> Accepted:
        self.arrived.release()
        await self.gate.wait()
        accepted = self.answer()
        self.requests.append(request)
        return accepted

    def await_arrivals(self, count: int) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=10)

    def span_names(self) -> list[str]:
        requests = [ExportTraceServiceRequest.FromString(request.payload) for request in self.requests]
        return [
            span.name
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Running:
    """Servers in an event loop of their own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **config: object) -> None:
        self.loop = loop
        self.sink = Recorder()
        self.threads = ThreadPoolExecutor(16)
        settings = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", **config}
        self.servers = Servers(CollectorConfig.model_validate(settings), self.sink)
        self.endpoints: Endpoints = self.submit(self.servers.start()).result(10)
        self.set_gate(True)

    def submit(self, work: object) -> Future[Endpoints]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def set_gate(self, is_open: bool) -> None:
        self.loop.call_soon_threadsafe(self.sink.gate.set if is_open else self.sink.gate.clear)

    def post(self, body: bytes) -> Future[int]:
        return self.threads.submit(post, self.endpoints.http, body)

    def export(self, payload: bytes, timeout: float = 10) -> Future[str]:
        return self.threads.submit(export, self.endpoints.grpc, payload, timeout)


def post(endpoint: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(endpoint, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
        return connection.getresponse().status


def export(endpoint: str, payload: bytes, timeout: float = 10) -> str:
    with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            channel.unary_unary(EXPORT)(payload, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


@contextmanager
def event_loop(make: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[asyncio.AbstractEventLoop]:
    loop = make()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def running(
    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop, **config: object
) -> Iterator[Running]:
    with event_loop(make) as loop:
        servers = Running(loop, **config)
        try:
            yield servers
        finally:
            servers.set_gate(True)
            servers.submit(servers.servers.stop(1.0)).result(15)
            servers.threads.shutdown()


@pytest.fixture(
    scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def module_servers(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(request.param) as servers:
        yield servers


@pytest.fixture
def servers(module_servers: Running) -> Running:
    module_servers.sink.requests.clear()
    module_servers.sink.answer = Accepted
    return module_servers


SPAN_EXPORTERS: dict[str, Callable[[Endpoints], SpanExporter]] = {
    "grpc": lambda at: GrpcSpanExporter(f"http://{at.grpc}", insecure=True),
    "grpc gzip": lambda at: GrpcSpanExporter(at.grpc, insecure=True, compression=grpc.Compression.Gzip),
    "http": lambda at: HttpSpanExporter(f"http://{at.http}/v1/traces"),
    "http gzip": lambda at: HttpSpanExporter(f"http://{at.http}/v1/traces", compression=Compression.Gzip),
    "http deflate": lambda at: HttpSpanExporter(
        f"http://{at.http}/v1/traces", compression=Compression.Deflate
    ),
}


def send_spans(exporter: SpanExporter, count: int) -> list[str]:
    """Send spans through a batch processor; their names."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=100))
    tracer = provider.get_tracer("test")
    names = [f"span {number}" for number in range(count)]
    for name in names:
        tracer.start_span(name).end()
    provider.shutdown()
    return names


@pytest.mark.parametrize("exporter", SPAN_EXPORTERS)
def test_sdk_exporters(servers: Running, exporter: str, caplog: pytest.LogCaptureFixture) -> None:
    names = send_spans(SPAN_EXPORTERS[exporter](servers.endpoints), 250)
    assert sorted(servers.sink.span_names()) == sorted(names)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("exporter", ["grpc", "http gzip"])
def test_sdk_exporters_send_again_after_an_overload(exporter: str) -> None:
    refusals = [OverloadedError("full", 0.05), OverloadedError("still full", 0.05)]

    def answer() -> Accepted:
        if refusals:
            raise refusals.pop()
        return Accepted()

    with running() as servers:
        servers.sink.answer = answer
        assert send_spans(SPAN_EXPORTERS[exporter](servers.endpoints), 3) == servers.sink.span_names()
    assert refusals == []


def test_sdk_exporters_of_other_signals_stay_quiet(
    servers: Running, caplog: pytest.LogCaptureFixture
) -> None:
    at = servers.endpoints
    metrics = [GrpcMetricExporter(at.grpc, insecure=True), HttpMetricExporter(f"http://{at.http}/v1/metrics")]
    meters = MeterProvider([PeriodicExportingMetricReader(exporter) for exporter in metrics])
    meters.get_meter("test").create_counter("requests").add(1)
    assert meters.force_flush()
    meters.shutdown()
    logs = LoggerProvider()
    for exporter in (GrpcLogExporter(at.grpc, insecure=True), HttpLogExporter(f"http://{at.http}/v1/logs")):
        logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    LoggingHandler(logger_provider=logs).emit(
        logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    )
    assert logs.force_flush()
    logs.shutdown()
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_requests_in_flight_are_bounded_over_both() -> None:
    with running(requests_in_flight_max=2) as servers:
        servers.set_gate(False)
        first, second = servers.post(b"\x0a\x00"), servers.export(b"\x0a\x00")
        servers.sink.await_arrivals(2)
        assert servers.post(b"\x0a\x00").result() == 503
        assert servers.export(b"\x0a\x00").result() == "UNAVAILABLE"
        servers.set_gate(True)
        assert (first.result(), second.result()) == (200, "OK")
        assert servers.post(b"\x0a\x00").result() == 200


def test_pending_bytes_are_bounded_over_both() -> None:
    with running(pending_bytes_max=2**20) as servers:
        servers.set_gate(False)
        first, second = servers.post(b"x" * 600_000), servers.export(b"x" * 400_000)
        servers.sink.await_arrivals(2)
        assert servers.post(b"x" * 100_000).result() == 503
        assert servers.export(b"x" * 100_000).result() == "UNAVAILABLE"
        small = servers.post(b"x" * 10_000)
        servers.sink.await_arrivals(1)
        servers.set_gate(True)
        assert (first.result(), second.result(), small.result()) == (200, "OK", 200)
        assert servers.export(b"x" * 100_000).result() == "OK"


def test_a_request_over_the_whole_bound_passes_alone() -> None:
    with running(pending_bytes_max=2**20) as servers:
        assert servers.post(b"x" * 3_000_000).result() == 200
        servers.set_gate(False)
        large = servers.export(b"x" * 6_000_000)
        servers.sink.await_arrivals(2)
        assert servers.post(b"x").result() == 503
        servers.set_gate(True)
        assert large.result() == "OK"


def test_bytes_of_a_client_that_gave_up_are_pending_until_the_sink_is_done() -> None:
    with running(pending_bytes_max=2**20) as servers:
        servers.set_gate(False)
        assert servers.export(b"x" * 2**20, timeout=0.2).result() == "DEADLINE_EXCEEDED"
        servers.sink.await_arrivals(1)
        assert servers.post(b"x").result() == 503
        servers.set_gate(True)
        while servers.post(b"x").result() == 503:
            pass
        assert len(servers.sink.requests) == 2


INCOMPLETE = (
    f"POST /v1/traces HTTP/1.1\r\nContent-Type: {PROTOBUF}\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
)


def test_stop_answers_what_arrived_and_takes_no_more() -> None:
    with running() as servers:
        late = http.client.HTTPConnection(servers.endpoints.http, timeout=10)
        late.connect()
        servers.set_gate(False)
        posted = [servers.post(b"\x0a\x00") for _ in range(5)]
        exported = [servers.export(b"\x0a\x00") for _ in range(5)]
        servers.sink.await_arrivals(10)
        stopping = servers.submit(servers.servers.stop(10.0))
        servers.submit(asyncio.sleep(0)).result(10)  # the stop has begun
        with contextlib.suppress(ConnectionError), contextlib.closing(late):
            late.request("POST", "/v1/traces", b"\x0a\x00", {"Content-Type": PROTOBUF})
            assert late.getresponse().status == 503
        assert servers.export(b"\x0a\x00").result() == "UNAVAILABLE"
        with contextlib.suppress(ConnectionError):
            assert servers.post(b"\x0a\x00").result() == 503
        assert not stopping.done()
        servers.set_gate(True)
        assert [answer.result() for answer in posted] == [200] * 5
        assert [answer.result() for answer in exported] == ["OK"] * 5
        stopping.result(10)
        assert len(servers.sink.requests) == 10


def test_stop_does_not_wait_for_what_has_not_arrived() -> None:
    with running() as servers, connect(servers) as idle, connect(servers) as incomplete:
        incomplete.sendall(INCOMPLETE.encode())
        assert incomplete.recv(12) == b"HTTP/1.1 100"
        incomplete.recv(1000)
        incomplete.sendall(b"x")
        stopping = servers.submit(servers.servers.stop(60.0))
        assert (idle.recv(1), incomplete.recv(1)) == (b"", b"")
        stopping.result(10)


def test_after_the_grace_clients_are_told_to_try_again() -> None:
    with running() as servers:
        servers.set_gate(False)
        posted, exported = servers.post(b"\x0a\x00"), servers.export(b"\x0a\x00")
        servers.sink.await_arrivals(2)
        servers.submit(servers.servers.stop(0.2)).result(10)
        assert posted.result() == 503
        assert exported.result() in ("UNAVAILABLE", "CANCELLED")


def test_stop_twice_and_unstarted() -> None:
    async def stop() -> None:
        servers = Servers(CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0"), Recorder())
        await servers.stop(1.0)
        await servers.stop(1.0)

    asyncio.run(stop())


def connect(servers: Running) -> socket.socket:
    host, port = servers.endpoints.http.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def start(**config: str) -> Endpoints:
    async def up_and_down() -> Endpoints:
        settings = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", **config}
        servers = Servers(CollectorConfig.model_validate(settings), Recorder())
        try:
            return await servers.start()
        finally:
            await servers.stop(1.0)

    return asyncio.run(up_and_down())


@pytest.mark.parametrize("key", ["grpc", "http"])
def test_an_address_in_use(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OperatorError, match=rf"collector\.{key} = '{address}'.*Stop it, or set another"):
            start(**{key: address})
    assert start(**{key: address}) is not None


def test_two_collectors_do_not_share_a_port(servers: Running) -> None:
    for key, address in (("grpc", servers.endpoints.grpc), ("http", servers.endpoints.http)):
        with pytest.raises(OperatorError, match=address):
            start(**{key: address})


@pytest.mark.parametrize("key", ["grpc", "http"])
@pytest.mark.parametrize(
    "address", ["", "nonsense", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "192.0.2.1:1"]
)
def test_addresses_that_cannot_be_used(key: str, address: str) -> None:
    with pytest.raises(OperatorError, match=rf"collector\.{key} = '{address}'"):
        start(**{key: address})


def test_ipv6() -> None:
    endpoints = start(grpc="[::1]:0", http="[::1]:0")
    assert endpoints.grpc.startswith("[::1]:")
    assert endpoints.http.startswith("[::1]:")


def test_logging_is_left_alone() -> None:
    names = ("uvicorn", "uvicorn.error")
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    start(grpc="127.0.0.1:0", http="127.0.0.1:0")
    assert {name: list(logging.getLogger(name).handlers) for name in names} == before


def test_times_of_receipt_are_now(servers: Running) -> None:
    before_ns = time.time_ns()
    servers.post(b"\x0a\x00").result()
    assert before_ns <= servers.sink.requests[0].received_at_ns <= time.time_ns()
