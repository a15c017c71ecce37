"""OTLP over gRPC: raw request bytes in, raw response bytes out.

Compressed messages are inflated here and not by gRPC: that took a quarter less CPU for 512 spans, counts the
bytes against the bounds while they appear, and tells of a corrupt message with INVALID_ARGUMENT. gRPC does not
say how a message was compressed, so its first bytes must. An encoding other than identity, gzip and deflate is
answered by gRPC itself, with INTERNAL: clients do not send such data again, which is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol

import grpc
from grpc import aio

from collector.config import CollectorConfig
from collector.errors import SpanlakeError
from collector.receive.address import cannot_listen, host_and_port
from collector.receive.admission import Ticket
from collector.receive.connections import ConnectionBounds
from collector.receive.encoding import Body, decompressor, sniff
from collector.receive.intake import Intake, response
from collector.receive.reading import Call, GivenUpError, Readings
from collector.receive.status import refusal
from collector.tenants.gate import AUTHORIZATION_HEADER
from collector.tenants.names import TENANT_HEADER

_PREFIX = "/opentelemetry.proto.collector."
STREAMS_PER_CONNECTION_MAX = 128
"""More than clients have under way: a call beyond it waits in its client. Unread, a call costs some kilobytes here."""
WINDOW_BYTES = 64 * 1024
"""What the client of a connection may send before anything of it is read; a call that reads gets its whole message."""


class _Context(Call, Protocol):
    """What is used of grpc.aio.ServicerContext."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...


_Method = Callable[[object, _Context], Awaitable[bytes]]


class GrpcServer:
    """The three OTLP services on one port."""

    def __init__(
        self,
        config: CollectorConfig,
        intake: Intake,
        bounds: ConnectionBounds,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`credentials` turn TLS on."""
        self._config = config
        self._bounds = bounds
        self._intake = intake
        self._credentials = credentials
        self._server: aio.Server | None = None

    async def start(self) -> int:
        """Listen on `collector.grpc`; the port. Raises OperatorError where that is not possible."""
        host_and_port("collector.grpc", self._config.grpc)
        server = aio.server(options=_options(self._config, self._bounds))
        server.add_generic_rpc_handlers((_Services(self._config, self._intake, self._bounds),))
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self._config.grpc)
            else:
                port = server.add_secure_port(self._config.grpc, self._credentials)
        except RuntimeError as error:
            raise cannot_listen("collector.grpc", self._config.grpc, error) from error
        await server.start()
        self._server = server
        return int(port)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new requests, answer those that arrived; after the grace clients are told to try again."""
        if self._server is not None:
            await self._server.stop(grace_seconds)
            self._server = None


class _Services(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc is untyped
    """Picks the method by its full name; anything else is UNIMPLEMENTED.

    To gRPC the methods take streams, which on the wire is the same: so a call is known before its message is read.
    """

    def __init__(self, config: CollectorConfig, intake: Intake, bounds: ConnectionBounds) -> None:
        self._request_bytes_max = config.request_bytes_max
        self._intake = intake
        self._readings = Readings(intake.memory, bounds.receive_seconds_max, _abort)
        methods: dict[str, _Method] = {
            "trace.v1.TraceService/Export": self._export_traces,
            "metrics.v1.MetricsService/Export": self._drop("metrics"),
            "logs.v1.LogsService/Export": self._drop("logs"),
        }
        self._methods = {
            _PREFIX + name: grpc.stream_unary_rpc_method_handler(method) for name, method in methods.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._methods.get(handler_call_details.method)

    async def _export_traces(self, _messages: object, context: _Context) -> bytes:
        try:
            metadata = context.invocation_metadata() or ()
            sender = self._intake.gate.identify(
                [value for key, value in metadata if key == TENANT_HEADER],
                [value for key, value in metadata if key == AUTHORIZATION_HEADER],
            )
            with self._intake.receive(sender) as reception:
                reception.message = await self._readings.read(context)
                self._intake.check_quota(sender)  # late: so the refusals of a tenant have their spans counted
                payload = await self._inflate(reception.message, reception.ticket)
                accepted = await self._intake.deliver(reception, payload, "grpc")
            return bytes(response(accepted).SerializeToString())
        except asyncio.CancelledError:
            raise
        except GivenUpError as error:
            self._intake.refusals.count("grpc", error.reason)
            raise aio.AbortError from error
        except Exception as error:  # an escaped one is UNKNOWN, on which clients drop data
            self._intake.refusals.count("grpc", error)
            await _abort(context, error)
            raise

    async def _inflate(self, message: bytes, ticket: Ticket) -> bytes:
        body = Body(decompressor(sniff(message)), self._request_bytes_max, ticket.hold)

        def inflate() -> bytes:
            body.feed(message)
            return body.finish()

        return await self._intake.workers.run(len(message) if body.compressed else 0, inflate)

    def _drop(self, signal: str) -> _Method:
        async def export(_messages: object, context: _Context) -> bytes:
            try:
                await self._readings.read(context)
            except GivenUpError as error:
                raise aio.AbortError from error
            except SpanlakeError as error:
                await _abort(context, error)
            self._intake.note_unstored(signal)
            return b""

        return export


async def _abort(context: Call, error: Exception) -> NoReturn:
    told = refusal(error)
    await context.abort(told.grpc_code, told.message, told.trailing_metadata())


def _options(config: CollectorConfig, bounds: ConnectionBounds) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.request_bytes_max),
        ("grpc.per_message_decompression", 0),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
        # the window stays as it is: gRPC would widen it to megabytes for whoever sends fast
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_allowed_incoming_connections", bounds.connections_max),
        ("grpc.server_handshake_timeout_ms", round(1000 * bounds.receive_seconds_max)),
        ("grpc.so_reuseport", 0),  # else a second collector would share the port unnoticed
        # exporters behind proxies ping every 10 s, also while idle: never answer with too_many_pings
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        # find peers that vanished without a word
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
