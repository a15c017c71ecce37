"""OTLP/gRPC: the contract line by line and bad input. Real server, real channels, and raw HTTP/2 where those cannot."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
import pytest
import uvloop
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector.config import CollectorConfig
from collector.errors import (
    InvalidRequestError,
    OperatorError,
    OverloadedError,
    RequestTooLargeError,
    RetryableError,
)
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Servers

LIMIT = 256 * 1024
PREFIX = "/opentelemetry.proto.collector."
EXPORT = PREFIX + "trace.v1.TraceService/Export"
Code = grpc.StatusCode
COMPRESSIONS = [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate]


@dataclass
class Recorder:
    """A sink that keeps what it accepts; `answer` may raise."""

    requests: list[TraceRequest] = field(default_factory=list)
    answer: Callable[[], Accepted] = Accepted

    async def accept(self, request: TraceRequest) -> Accepted:
        accepted = self.answer()
        self.requests.append(request)
        return accepted


@dataclass
class Running:
    sink: Recorder
    endpoint: str
    channel: grpc.Channel

    def export(self, payload: bytes, method: str = EXPORT, **options: object) -> bytes:
        return self.channel.unary_unary(method)(payload, timeout=10, **options)

    def refused(self, payload: bytes, **options: object) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.export(payload, **options)
        return caught.value


@pytest.fixture(scope="module")
def module_servers() -> Iterator[Running]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sink = Recorder()
    config = CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0", request_bytes_max=LIMIT)
    servers = Servers(config, sink)
    endpoint = asyncio.run_coroutine_threadsafe(servers.start(), loop).result(10).grpc
    with grpc.insecure_channel(endpoint) as channel:
        yield Running(sink, endpoint, channel)
    asyncio.run_coroutine_threadsafe(servers.stop(1.0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def servers(module_servers: Running) -> Running:
    module_servers.sink.requests.clear()
    module_servers.sink.answer = Accepted
    return module_servers


def request_bytes(spans: int = 3) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(1, spans + 1):
        scope.spans.add(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"), name="GET")
    return request.SerializeToString()


REQUEST = request_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("spans", [3, 6000])
def test_success(servers: Running, compression: grpc.Compression, spans: int) -> None:
    payload = request_bytes(spans)
    assert servers.export(payload, compression=compression) == b""
    assert [request.payload for request in servers.sink.requests] == [payload]


def test_an_empty_request_is_success(servers: Running) -> None:
    assert servers.export(b"") == b""


@pytest.mark.parametrize("rejected", [0, 7])
def test_partial_success(servers: Running, rejected: int) -> None:
    servers.sink.answer = lambda: Accepted(rejected, "span ids are empty")
    partial = ExportTraceServiceResponse.FromString(servers.export(REQUEST)).partial_success
    assert (partial.rejected_spans, partial.error_message) == (rejected, "span ids are empty")


@pytest.mark.parametrize(
    ("metadata", "tenant"),
    [
        ([], None),
        ([("x-scope-orgid", "")], None),
        ([("x-scope-orgid", "acme")], "acme"),
        ([("x-scope-orgid", "acme"), ("x-scope-orgid", "acme")], "acme"),
    ],
)
def test_tenant(servers: Running, metadata: list[tuple[str, str]], tenant: str | None) -> None:
    servers.export(REQUEST, metadata=metadata)
    assert [request.tenant for request in servers.sink.requests] == [tenant]


def test_two_tenants_in_one_request_are_refused(servers: Running) -> None:
    error = servers.refused(REQUEST, metadata=[("x-scope-orgid", "a"), ("x-scope-orgid", "b")])
    assert error.code() is Code.INVALID_ARGUMENT
    assert servers.sink.requests == []


@pytest.mark.parametrize(
    ("error", "code", "retry_seconds"),
    [
        (OverloadedError("the disk is full", 2.25), Code.UNAVAILABLE, 2.25),
        (RetryableError("the lake is away", 0.5), Code.UNAVAILABLE, 0.5),
        (InvalidRequestError("field 3"), Code.INVALID_ARGUMENT, None),
        (RequestTooLargeError("too large"), Code.RESOURCE_EXHAUSTED, None),
        (OperatorError("the disk is broken"), Code.UNAVAILABLE, 1.0),
        (KeyError("oops"), Code.UNAVAILABLE, 1.0),
        (MemoryError(), Code.UNAVAILABLE, 1.0),
        (InvalidRequestError("long " * 10_000), Code.INVALID_ARGUMENT, None),
        (RetryableError("lang\u00e9 " * 10_000), Code.UNAVAILABLE, 1.0),
    ],
)
def test_what_the_sink_raises(
    servers: Running, error: Exception, code: grpc.StatusCode, retry_seconds: float | None
) -> None:
    def answer() -> Accepted:
        raise error

    servers.sink.answer = answer
    told = servers.refused(REQUEST)
    assert told.code() is code
    assert "oops" not in told.details()
    trailers = dict(told.trailing_metadata())
    if retry_seconds is None:
        assert "grpc-status-details-bin" not in trailers
        return
    status, info, bare = Status.FromString(trailers["grpc-status-details-bin"]), RetryInfo(), RetryInfo()
    assert (status.code, status.message) == (code.value[0], told.details())
    assert status.details[0].Unpack(info)
    bare.ParseFromString(trailers["google.rpc.retryinfo-bin"])
    assert info == bare
    assert info.retry_delay.ToNanoseconds() == retry_seconds * 1e9


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_too_large_is_permanent(servers: Running, compression: grpc.Compression) -> None:
    error = servers.refused(b"\x0a" * (LIMIT + 1), compression=compression)
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert not dict(error.trailing_metadata())
    assert servers.export(REQUEST) == b""


@pytest.mark.parametrize("method", ["metrics.v1.MetricsService/Export", "logs.v1.LogsService/Export"])
def test_other_signals_are_quietly_accepted(
    servers: Running, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert servers.export(REQUEST, PREFIX + method) == b""
    assert len([record for record in caplog.records if "not stored" in record.message]) == 1
    assert servers.sink.requests == []


@pytest.mark.parametrize("method", ["/a/b", PREFIX + "trace.v1.TraceService/Import"])
def test_unknown_methods(servers: Running, method: str) -> None:
    assert servers.refused(REQUEST, method=method).code() is Code.UNIMPLEMENTED


# -- raw HTTP/2 (RFC 9113), for what grpcio's client does not send

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field of HPACK (RFC 7541, 6.2.2), neither indexed nor Huffman-coded."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def connect(servers: Running) -> socket.socket:
    host, port = servers.endpoint.split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b""))
    return connection


def frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    stream = connection.makefile("rb")
    while len(head := stream.read(9)) == 9:
        yield head[3], head[4], stream.read(int.from_bytes(head[:3], "big"))


def raw_export(servers: Running, encoding: str, message: bytes) -> bytes:
    """The header blocks of the answer, in which the server writes names and values as they are."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", EXPORT),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-encoding", encoding),
    ]
    block = b"".join(literal(name, value) for name, value in headers)
    body = b"\x01" + struct.pack(">I", len(message)) + message
    with connect(servers) as connection:
        connection.sendall(frame(HEADERS, END_HEADERS, 1, block))
        while body:
            part, body = body[:16384], body[16384:]
            connection.sendall(frame(DATA, 0 if body else END_STREAM, 1, part))
        blocks = b""
        for kind, flags, payload in frames(connection):
            blocks += payload if kind == HEADERS else b""
            if kind == HEADERS and flags & END_STREAM:
                break
        return blocks


def status_field(code: grpc.StatusCode) -> bytes:
    number = str(code.value[0]).encode()
    return b"grpc-status" + bytes([len(number)]) + number


@pytest.mark.parametrize(
    ("encoding", "message", "code"),
    [
        ("snappy", b"\x00\x01\x02", Code.INTERNAL),
        ("gzip", gzip.compress(REQUEST, mtime=0)[:-3], Code.INVALID_ARGUMENT),
        ("gzip", b"\x1f\x8b\x08\x00 corrupt from here on", Code.INVALID_ARGUMENT),
        ("deflate", zlib.compress(REQUEST)[:-3], Code.INVALID_ARGUMENT),
    ],
)
def test_bad_encodings_are_permanent_and_harm_nobody(
    servers: Running, encoding: str, message: bytes, code: grpc.StatusCode
) -> None:
    blocks = raw_export(servers, encoding, message)
    assert status_field(code) in blocks
    assert servers.sink.requests == []
    assert servers.export(REQUEST) == b""


@pytest.mark.parametrize(("encoding", "window_bits"), [("gzip", 31), ("deflate", 15)])
def test_a_bomb_is_not_inflated(servers: Running, encoding: str, window_bits: int) -> None:
    compressor = zlib.compressobj(wbits=window_bits)
    bomb = b"".join(compressor.compress(bytes(1_000_000)) for _ in range(60)) + compressor.flush()
    memory_before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert status_field(Code.RESOURCE_EXHAUSTED) in raw_export(servers, encoding, bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before_kib < 20_000


def test_pings_on_an_idle_connection_are_answered(servers: Running) -> None:
    pings = 30
    with connect(servers) as connection:
        answers = 0
        connection.sendall(frame(PING, 0, 0, bytes(8)))
        for kind, flags, _ in frames(connection):
            assert kind != GOAWAY
            if kind == PING and flags & ACK:
                answers += 1
                if answers == pings:
                    break
                connection.sendall(frame(PING, 0, 0, bytes(8)))
        assert answers == pings


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff"]
)
def test_what_is_no_grpc_harms_nobody(servers: Running, data: bytes) -> None:
    host, port = servers.endpoint.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(data)
        assert servers.export(REQUEST) == b""
