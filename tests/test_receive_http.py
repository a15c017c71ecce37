"""OTLP/HTTP: the contract line by line, bad input, neighbours. Real server, raw HTTP clients."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
import uvloop
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector.config import CollectorConfig
from collector.errors import InvalidRequestError, OperatorError, OverloadedError, RetryableError
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Endpoints, Servers
from collector.telemetry.logs import Sparse

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
LIMIT = 256 * 1024
Headers = dict[str, str]


@dataclass
class Recorder:
    """A sink that keeps what it accepts; `answer` may raise; while `gate` is closed nobody is answered."""

    requests: list[TraceRequest] = field(default_factory=list)
    answer: Callable[[], Accepted] = Accepted
    gate: asyncio.Event | None = None
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def accept(self, request: TraceRequest) -> Accepted:
        if self.gate is not None:
            self.waiting.release()
            await self.gate.wait()
        accepted = self.answer()
        self.requests.append(request)
        return accepted


class Running:
    """Servers in an event loop of their own thread."""

    def __init__(self, sink: Recorder, **config: object) -> None:
        self.sink = sink
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        settings = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "request_bytes_max": LIMIT, **config}
        self.servers = Servers(CollectorConfig.model_validate(settings), sink)
        self.endpoints: Endpoints = self.run(self.servers.start())

    def run(self, work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.run(self.servers.stop(1.0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def post(self, body: object = b"", headers: Headers | None = None, path: str = "/v1/traces") -> Answer:
        return self.ask("POST", path, body, {"Content-Type": PROTOBUF, **(headers or {})})

    def ask(self, method: str, path: str, body: object, headers: Headers) -> Answer:
        connection = http.client.HTTPConnection(self.endpoints.http, timeout=10)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Headers
    body: bytes

    def told(self) -> Status:
        """The google.rpc.Status of the body, in the type that the headers say."""
        if self.headers["content-type"] == JSON:
            return Status(**json.loads(self.body))
        assert self.headers["content-type"] == PROTOBUF
        return Status.FromString(self.body)


@contextmanager
def running(**config: object) -> Iterator[Running]:
    servers = Running(Recorder(), **config)
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture(scope="module")
def module_servers() -> Iterator[Running]:
    with running() as servers:
        yield servers


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
JSON_REQUEST = json.dumps(
    {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "GET", "kind": 3, "traceId": "5b" * 16}]}]}]}
).encode()
zstd = pa.Codec("zstd")


def refuse(error: Exception) -> Callable[[], Accepted]:
    def answer() -> Accepted:
        raise error

    return answer


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, REQUEST, id="protobuf"),
        pytest.param({"Content-Type": f"{PROTOBUF}; charset=utf-8"}, REQUEST, id="charset"),
        pytest.param({"Content-Type": PROTOBUF.upper()}, REQUEST, id="upper case"),
        pytest.param({"Content-Encoding": "identity"}, REQUEST, id="identity"),
        pytest.param({"Content-Encoding": "gzip"}, gzip.compress(REQUEST), id="gzip"),
        pytest.param(
            {"Content-Encoding": "gzip"},
            gzip.compress(REQUEST[:9]) + gzip.compress(REQUEST[9:]),
            id="members",
        ),
        pytest.param({"Content-Encoding": "deflate"}, zlib.compress(REQUEST), id="deflate"),
        pytest.param({"Content-Encoding": "zstd"}, zstd.compress(REQUEST, asbytes=True), id="zstd"),
        pytest.param({}, iter([REQUEST[:5], REQUEST[5:]]), id="chunked"),
        pytest.param({"Expect": "100-continue"}, REQUEST, id="expect"),
    ],
)
def test_success(servers: Running, headers: Headers, body: object) -> None:
    answer = servers.post(body, headers)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, PROTOBUF, b"")
    assert [request.payload for request in servers.sink.requests] == [REQUEST]


@pytest.mark.parametrize("content_type", [JSON, f"{JSON}; charset=utf-8"])
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_json(servers: Running, content_type: str, encoding: str) -> None:
    body = gzip.compress(JSON_REQUEST) if encoding else JSON_REQUEST
    answer = servers.post(body, {"Content-Type": content_type, "Content-Encoding": encoding})
    assert (answer.status, answer.headers["content-type"], json.loads(answer.body)) == (200, JSON, {})
    (request,) = servers.sink.requests
    span = ExportTraceServiceRequest.FromString(request.payload).resource_spans[0].scope_spans[0].spans[0]
    assert (span.name, span.trace_id) == ("GET", b"\x5b" * 16)


def test_large_bodies_of_every_kind(servers: Running) -> None:
    payload = request_bytes(6000)
    assert 200_000 < len(payload) <= LIMIT
    servers.post(payload)
    servers.post(gzip.compress(payload), {"Content-Encoding": "gzip"})
    servers.post(zstd.compress(payload, asbytes=True), {"Content-Encoding": "zstd"})
    assert [request.payload for request in servers.sink.requests] == [payload] * 3


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_an_empty_request_is_success(servers: Running, content_type: str) -> None:
    assert servers.post(b"", {"Content-Type": content_type}).status == 200


@pytest.mark.parametrize("rejected", [0, 7])
def test_partial_success(servers: Running, rejected: int) -> None:
    servers.sink.answer = lambda: Accepted(rejected, "span ids are empty")
    partial = ExportTraceServiceResponse.FromString(servers.post(REQUEST).body).partial_success
    assert (partial.rejected_spans, partial.error_message) == (rejected, "span ids are empty")
    told = json.loads(servers.post(JSON_REQUEST, {"Content-Type": JSON}).body)["partialSuccess"]
    assert told == {"errorMessage": "span ids are empty"} | ({"rejectedSpans": "7"} if rejected else {})


BOMB = bytes(50_000_000)


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        pytest.param({"Content-Type": "text/plain"}, REQUEST, (415, 3, "text/plain"), id="type"),
        pytest.param({"Content-Type": ""}, REQUEST, (415, 3, PROTOBUF), id="no type"),
        pytest.param({"Content-Encoding": "br"}, REQUEST, (415, 12, "br"), id="encoding"),
        pytest.param({"Content-Encoding": "gzip"}, REQUEST, (400, 3, "corrupt"), id="not gzip"),
        pytest.param(
            {"Content-Encoding": "gzip"}, gzip.compress(REQUEST)[:-5], (400, 3, "short"), id="gzip short"
        ),
        pytest.param(
            {"Content-Encoding": "zstd"},
            zstd.compress(REQUEST, asbytes=True)[:-5],
            (400, 3, "short"),
            id="zstd",
        ),
        pytest.param(
            {"Content-Encoding": "deflate"}, zlib.compress(REQUEST) + b"x", (400, 3, "after"), id="tail"
        ),
        pytest.param({}, b"\x0a" * (LIMIT + 1), (413, 8, "request_bytes_max"), id="too large"),
        pytest.param(
            {}, iter([b"\x0a" * 50_000] * 6), (413, 8, "request_bytes_max"), id="too large, chunked"
        ),
        pytest.param(
            {"Content-Encoding": "gzip"}, gzip.compress(BOMB), (413, 8, "request_bytes_max"), id="bomb"
        ),
        pytest.param(
            {"Content-Encoding": "deflate"}, zlib.compress(BOMB), (413, 8, "bytes_max"), id="zlib bomb"
        ),
        pytest.param(
            {"Content-Encoding": "zstd"}, zstd.compress(BOMB, asbytes=True), (413, 8, "max"), id="zstd bomb"
        ),
        pytest.param({"Content-Type": JSON}, b"{", (400, 3, ""), id="JSON cut"),
        pytest.param({"Content-Type": JSON}, b"\xff\x00", (400, 3, ""), id="JSON garbage"),
        pytest.param({"X-Scope-OrgID": "\xff"}, REQUEST, (400, 3, "X-Scope-OrgID"), id="tenant"),
        pytest.param({"X-Scope-OrgID": "é"}, REQUEST, (400, 3, "X-Scope-OrgID"), id="tenant in UTF-8"),
    ],
)
def test_permanent_refusals(
    servers: Running, headers: Headers, body: object, expected: tuple[int, int, str]
) -> None:
    status, code, word = expected
    answer = servers.post(body, headers)
    told = answer.told()
    assert (answer.status, told.code) == (status, code)
    assert word in told.message
    assert "retry-after" not in answer.headers
    assert answer.headers["content-type"] == (JSON if headers.get("Content-Type") == JSON else PROTOBUF)
    assert servers.sink.requests == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods(servers: Running, method: str) -> None:
    answer = servers.ask(method, "/v1/traces", b"", {})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert "only POST" in answer.told().message


@pytest.mark.parametrize("path", ["/", "/v1/trace", "/v1/traces/", "/v1/%74races%20", "/v1/profiles"])
def test_other_paths(servers: Running, path: str) -> None:
    answer = servers.post(REQUEST, path=path)
    assert (answer.status, answer.told().code) == (404, 5)


def test_unknown_encodings_are_told_the_known_ones(servers: Running) -> None:
    assert "gzip" in servers.post(REQUEST, {"Content-Encoding": "br"}).headers["accept-encoding"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OverloadedError("the disk is full", 2.2), (503, 14, "3")),
        (RetryableError("the lake is away", 0.0), (503, 14, "1")),
        (InvalidRequestError("field 3"), (400, 3, None)),
        (OperatorError("the disk is broken"), (503, 14, "1")),
        (MemoryError(), (503, 14, "1")),
        (KeyError("oops"), (503, 14, "1")),
    ],
)
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_what_the_sink_raises(
    servers: Running, error: Exception, expected: tuple[int, int, str | None], content_type: str
) -> None:
    servers.sink.answer = refuse(error)
    body = REQUEST if content_type == PROTOBUF else JSON_REQUEST
    answer = servers.post(body, {"Content-Type": content_type})
    assert (answer.status, answer.told().code, answer.headers.get("retry-after")) == expected
    assert answer.headers["content-type"] == content_type
    assert "oops" not in answer.told().message


def test_unexpected_faults_are_logged_once(servers: Running, caplog: pytest.LogCaptureFixture) -> None:
    servers.sink.answer = refuse(ZeroDivisionError("nobody saw this coming"))
    with caplog.filtering(Sparse()):
        for _ in range(5):
            assert servers.post(REQUEST).status == 503
    logged = [
        record for record in caplog.records if record.exc_info and record.exc_info[0] is ZeroDivisionError
    ]
    assert len(logged) == 1
    assert logged[0].levelno == logging.ERROR


@pytest.mark.parametrize(("value", "tenant"), [(None, None), ("", None), ("acme", "acme"), (" acme ", "acme")])
def test_tenant(servers: Running, value: str | None, tenant: str | None) -> None:
    headers = {} if value is None else {"x-scope-orgid": value.encode().decode("latin-1")}
    servers.post(REQUEST, headers)
    assert [request.tenant for request in servers.sink.requests] == [tenant]


def test_two_tenants_in_one_request_are_refused(servers: Running) -> None:
    lines = "X-Scope-OrgID: a\r\nX-Scope-OrgID: b\r\n"
    assert raw(servers, head(lines, len(REQUEST)) + REQUEST).startswith(b"HTTP/1.1 400")
    assert servers.sink.requests == []


@pytest.mark.parametrize("path", ["/v1/metrics", "/v1/logs"])
@pytest.mark.parametrize(("content_type", "body"), [(PROTOBUF, b""), (JSON, b"{}")])
def test_other_signals_are_quietly_accepted(
    servers: Running, path: str, content_type: str, body: bytes
) -> None:
    answer = servers.post(REQUEST, {"Content-Type": content_type}, path)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, content_type, body)
    assert servers.sink.requests == []


def head(lines: str, length: int) -> bytes:
    return (
        f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: {PROTOBUF}\r\n{lines}Content-Length: {length}\r\n\r\n"
    ).encode()


def connect(servers: Running) -> socket.socket:
    host, port = servers.endpoints.http.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def read_to_end(connection: socket.socket) -> bytes:
    """All until the server closes; a reset counts as closing."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    return received


def raw(servers: Running, data: bytes) -> bytes:
    with connect(servers) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(65536)


def test_pipelined_requests_are_answered_in_order(servers: Running) -> None:
    with connect(servers) as connection:
        connection.sendall((head("", len(REQUEST)) + REQUEST) * 3 + head("Connection: close\r\n", 0))
        assert read_to_end(connection).count(b"HTTP/1.1 200") == 4
    assert len(servers.sink.requests) == 3


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST\r\n\r\n"]
)
def test_what_is_no_http(servers: Running, data: bytes) -> None:
    answer = raw(servers, data)
    assert answer.startswith(b"HTTP/1.1 400")
    assert Status.FromString(answer.partition(b"\r\n\r\n")[2]).code == 3
    assert servers.post(REQUEST).status == 200


@pytest.mark.parametrize(
    "lines",
    [b"X-Long: " + b"x" * 300_000, b"".join(b"X-%d: y\r\n" % number for number in range(30_000))],
    ids=["one header", "many headers"],
)
def test_a_huge_head_is_refused(servers: Running, lines: bytes) -> None:
    with connect(servers) as connection:
        try:
            connection.sendall(b"POST /v1/traces HTTP/1.1\r\n" + lines)
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b"HTTP/1.1 431"
        assert answer.startswith(b"HTTP/1.1 431")
    assert servers.post(REQUEST).status == 200


def test_a_client_that_leaves_amid_its_body_harms_nobody(servers: Running) -> None:
    for _ in range(20):
        with connect(servers) as connection:
            connection.sendall(head("", 50_000) + b"\x0a" * 20_000)
    assert servers.post(REQUEST).status == 200
    assert len(servers.sink.requests) == 1


def test_the_connection_survives_a_refusal(servers: Running) -> None:
    connection = http.client.HTTPConnection(servers.endpoints.http, timeout=10)
    for body, status in [(b"\x0a" * (2 * LIMIT), 413), (REQUEST, 200)]:
        connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
        response = connection.getresponse()
        assert (response.status, response.read() == b"") == (status, status == 200)
    connection.close()
