"""What is fuzzed: functions that take any bytes, and fail an assertion where the collector does what it must not.

- `protobuf`: bytes to the decoder; what python-protobuf parses must come out as that many spans
- `json`: bytes to the converter of OTLP/JSON; what it gives must decode
- `http`: bytes to a connection of the HTTP server, as they come from a client, in up to three pieces
- `grpc`: a message to the gRPC method; its first two bytes choose the metadata

The servers hand on to a sink that decodes, so that they see what a decoder raises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

import grpc
import uvicorn
from google.protobuf.message import DecodeError
from grpc import aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from uvicorn.server import ServerState

from collector.config import CollectorConfig, MappingConfig
from collector.decode.decoder import Decoder
from collector.decode.otlp_json import to_protobuf
from collector.errors import InvalidRequestError
from collector.pipeline import Accepted, TraceRequest
from collector.receive.connections import ConnectionBounds
from collector.receive.grpc_server import _Services
from collector.receive.http_server import HttpApp
from collector.receive.http_transport import BoundedProtocol
from collector.receive.intake import Intake
from collector.tenants.gate import open_gate

CONFIG = CollectorConfig(request_bytes_max=64 * 1024)
BOUNDS = ConnectionBounds(10)
TURNS_MAX = 1000
HTTP_STATUSES = {b"100", b"200", b"400", b"404", b"405", b"413", b"415", b"431"}
GRPC_CODES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
TENANTS = ("", "acme", "a" * 300, "..", "größe")

decoder = Decoder(MappingConfig())
loop = asyncio.new_event_loop()
logging.getLogger("collector").setLevel(logging.CRITICAL)


class DecodingSink:
    """Accepts what decodes."""

    async def accept(self, request: TraceRequest) -> Accepted:
        return decoder.decode([request]).answers[0]


def count_of(data: bytes) -> int | None:
    """How many spans python-protobuf finds; None where it finds no request."""
    message = ExportTraceServiceRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return sum(len(scope.spans) for resource in message.resource_spans for scope in resource.scope_spans)


def protobuf(data: bytes) -> None:
    """See the module."""
    expected = count_of(data)
    requests = [TraceRequest(data, 1)]
    try:
        early = decoder.screen_or_decode(requests)
    except InvalidRequestError:
        assert expected is None, "refused what python-protobuf parses"
        return
    found = decoder.decode(requests)
    assert early.answers == found.answers, "answered otherwise than decoded"
    assert early.cuts == found.cuts, "was to be decoded at once: it is cut"
    found.spans.validate(full=True)
    found.resources.validate(full=True)
    if expected is not None:
        assert found.spans.num_rows + found.answers[0].rejected_spans == expected


def json(data: bytes) -> None:
    """See the module."""
    try:
        converted = to_protobuf(data)
    except InvalidRequestError:
        return
    protobuf(converted)


def new_intake() -> Intake:
    """One with nothing on its way."""
    return Intake(CONFIG, DecodingSink(), open_gate())


def settled(intake: Intake) -> None:
    """Nothing was held on to, and no error was one that the collector does not know."""
    assert intake.admission.is_idle
    assert (intake.admission.requests, intake.admission.pending_bytes) == (0, 0)
    assert not [reason for _, reason in intake.refusals.requests if reason == "unexpected"]
    intake.close()


class Transport(asyncio.Transport):
    """A connection without a network: what is written is kept."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """The pieces that are left come all the same: the bounds must hold without it."""

    def resume_reading(self) -> None:
        """See pause_reading."""


def http(data: bytes) -> None:
    """See the module."""
    intake = new_intake()
    config = uvicorn.Config(HttpApp(CONFIG, intake), log_config=None, access_log=False, lifespan="off")
    config.load()
    state, transport = ServerState(), Transport()
    with_bounds = BoundedProtocol(BOUNDS, config=config, server_state=state, app_state={}, _loop=loop)

    async def connection() -> None:
        with_bounds.connection_made(transport)
        third = len(data) // 3 + 1
        for start in range(0, len(data), third):
            if not transport.closed:
                with_bounds.data_received(data[start : start + third])
            await asyncio.sleep(0)
        with_bounds.connection_lost(None)
        for _ in range(TURNS_MAX):
            if not state.tasks and intake.admission.is_idle:
                return
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*state.tasks), 10)

    loop.run_until_complete(connection())
    statuses = [part[:3] for part in transport.written.split(b"HTTP/1.1 ")[1:]]
    assert set(statuses) <= HTTP_STATUSES, statuses
    settled(intake)


class Context:
    """A call with one message, or none."""

    def __init__(self, message: bytes | None, metadata: list[tuple[str, str]]) -> None:
        self._message = message
        self._metadata = metadata
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    async def read(self) -> bytes | None:
        return aio.EOF if self._message is None else self._message

    async def abort(self, code: grpc.StatusCode, details: str, _trailing: object) -> NoReturn:
        assert self.code is None
        assert details
        self.code = code
        raise aio.AbortError


def grpc_call(data: bytes) -> None:
    """See the module."""
    first, second, message = data[:1], data[1:2], data[2:]
    metadata = [("x-scope-orgid", TENANTS[byte[0] % len(TENANTS)]) for byte in (first, second) if byte and byte[0] % 3]
    context = Context(message if second else None, metadata)
    intake = new_intake()
    services = _Services(CONFIG, intake, BOUNDS)

    async def call() -> None:
        try:
            answer = await services._export_traces(None, context)
        except aio.AbortError:
            assert context.code in GRPC_CODES
        else:
            ExportTraceServiceResponse.FromString(answer)
        await asyncio.sleep(0)

    loop.run_until_complete(call())
    settled(intake)


TARGETS: dict[str, Callable[[bytes], None]] = {"protobuf": protobuf, "json": json, "http": http, "grpc": grpc_call}
