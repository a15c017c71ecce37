"""Clients that are slow, that stop halfway or that are many: bounded, cut off in time, and nobody else is harmed."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import grpc
import pytest
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import CollectorConfig
from collector.pipeline import Accepted, TraceRequest
from collector.receive.connections import DESCRIPTORS, ConnectionBounds, default_bounds, raise_descriptor_limit
from collector.receive.servers import Endpoints, Servers

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
RECEIVE_SECONDS = 0.5
CONNECTIONS = 2000
CONNECTIONS_MAX = 1500
POST = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
END_HEADERS = 4


@dataclass
class Recorder:
    """A sink that accepts everything."""

    requests: list[TraceRequest] = field(default_factory=list)

    async def accept(self, request: TraceRequest) -> Accepted:
        self.requests.append(request)
        return Accepted()


class Running:
    """Servers in an event loop of their own thread."""

    def __init__(self, bounds: ConnectionBounds) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.sink = Recorder()
        self.servers = Servers(CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0"), self.sink, bounds=bounds)
        self.endpoints: Endpoints = self.run(self.servers.start())

    def run(self, work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.run(self.servers.stop(1.0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def connect(self, protocol: str) -> socket.socket:
        host, port = getattr(self.endpoints, protocol).split(":")
        return socket.create_connection((host, int(port)), timeout=20)


@pytest.fixture(scope="module")
def servers() -> Iterator[Running]:
    raise_descriptor_limit()
    running = Running(ConnectionBounds(CONNECTIONS_MAX, RECEIVE_SECONDS))
    yield running
    running.close()


def request_of(name: str) -> bytes:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name=name)
    return request.SerializeToString()


class Exporter:
    """Well-behaved: sends over both protocols, one request after the other, while the `with` block lasts."""

    def __init__(self, servers: Running) -> None:
        self._servers = servers
        self._stop = threading.Event()
        self.slowest_seconds = 0.0
        self.answers: list[object] = []
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with grpc.insecure_channel(self._servers.endpoints.grpc) as channel, self._servers.connect("http") as http:
            export = channel.unary_unary(EXPORT)
            while not self._stop.is_set():
                began = time.monotonic()
                export(request_of(f"grpc {len(self.answers)}"), timeout=20)
                body = request_of(f"http {len(self.answers)}")
                http.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                self.answers.append(http.recv(65536).split(b"\r\n")[0])
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)

    def __enter__(self) -> Exporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert set(self.answers) == {b"HTTP/1.1 200 OK"}


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field of HPACK (RFC 7541, 6.2.2), neither indexed nor Huffman-coded."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


CALL = frame(
    HEADERS,
    END_HEADERS,
    1,
    b"".join(
        literal(*item)
        for item in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", EXPORT),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
    ),
)
SLOW_HTTP = {
    "says nothing": b"",
    "stops in the request line": b"POST /v1/tra",
    "stops in the headers": POST,
    "stops before the body": POST + b"Content-Length: 100\r\n\r\n",
    "stops in the body": POST + b"Content-Length: 100\r\n\r\n\x0a",
    "stops in a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n10\r\n\x0a",
    "stops in compressed bytes": POST + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b\x08",
    "pauses in the second request": POST + b"Content-Length: 0\r\n\r\n" + POST,
}
SLOW_GRPC = {
    "says nothing": b"",
    "stops in the preface": PREFACE[:10],
    "sends no settings": PREFACE,
}
STOPPED_CALLS = {
    "before the message": b"",
    "in the length": frame(DATA, 0, 1, b"\x00\x00"),
    "in the message": frame(DATA, 0, 1, b"\x00\x00\x00\x10\x00" + b"\x0a" * 100),
}


def test_slow_http_clients_are_cut_off(servers: Running) -> None:
    with ExitStack() as stack, Exporter(servers):
        slow = {name: stack.enter_context(servers.connect("http")) for name in SLOW_HTTP}
        for name, connection in slow.items():
            connection.sendall(SLOW_HTTP[name])
        answers = {name: read_to_end(connection) for name, connection in slow.items()}
    assert answers.pop("pauses in the second request").count(b"HTTP/1.1") == 1
    assert set(answers.values()) == {b""}


def test_a_client_that_sends_byte_by_byte_is_cut_off_too(servers: Running) -> None:
    with Exporter(servers), servers.connect("http") as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever byte it is
            for byte in POST + b"Content-Length: 100000\r\n\r\n" + b"\x0a" * 100_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
        assert time.monotonic() - began >= RECEIVE_SECONDS


def test_connections_that_never_become_http2_are_closed(servers: Running) -> None:
    with ExitStack() as stack, Exporter(servers):
        slow = [(stack.enter_context(servers.connect("grpc")), start) for start in SLOW_GRPC.values()]
        for connection, start in slow:
            connection.sendall(start)
        for connection, _ in slow:
            read_to_end(connection)


def test_grpc_calls_that_stop_are_told_to_come_again(servers: Running) -> None:
    stored = len(servers.sink.requests)
    with ExitStack() as stack, Exporter(servers) as exporter:
        slow = [(stack.enter_context(servers.connect("grpc")), rest) for rest in STOPPED_CALLS.values()]
        for connection, rest in slow:
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + CALL + rest)
        for connection, _ in slow:
            received = b""
            while b"grpc-status" not in received:
                part = connection.recv(65536)
                assert part, "closed without an answer"
                received += part
            assert b"grpc-status\x0214" in received
            assert b"was not complete" in received
    assert len(servers.sink.requests) - stored == 2 * len(exporter.answers)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_two_thousand_connections_are_bounded_and_harm_nobody(servers: Running, protocol: str) -> None:
    with ExitStack() as stack, Exporter(servers) as exporter:
        while not exporter.answers:
            time.sleep(0.001)
        before = len(exporter.answers)
        for connection in [stack.enter_context(servers.connect(protocol)) for _ in range(CONNECTIONS)]:
            read_to_end(connection)
    assert len(exporter.answers) > before


def test_beyond_the_bound_the_newest_are_closed_at_once() -> None:
    running = Running(ConnectionBounds(20, 60.0))
    try:
        for protocol in ("http", "grpc"):
            with ExitStack() as stack:
                many = [stack.enter_context(running.connect(protocol)) for _ in range(50)]
                for connection in many[20:]:
                    read_to_end(connection)
                many[0].sendall(POST + b"Content-Length: 0\r\n\r\n" if protocol == "http" else PREFACE)
                assert many[0].recv(65536)
    finally:
        running.close()


def test_half_open_connections_of_calls_that_are_answered_leave_nothing_behind(servers: Running) -> None:
    """Clients that vanish amid a call: its place and its bytes are free again."""
    admission = servers.servers._intake.admission
    for _ in range(50):
        with servers.connect("grpc") as connection:
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + CALL + STOPPED_CALLS["in the message"])
            connection.recv(9)
        with servers.connect("http") as connection:
            connection.sendall(SLOW_HTTP["stops in the body"])
    deadline = time.monotonic() + 10
    while not admission.is_idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (admission.requests, admission.pending_bytes) == (0, 0)


def test_the_limit_of_descriptors_is_raised(servers: Running) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= min(hard, DESCRIPTORS)
    assert default_bounds().connections_max == soft // 4
