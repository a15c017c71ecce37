"""uvicorn with bounds: no connection may keep a head or a body open for ever, nor fill the memory with it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from collector.errors import InvalidRequestError, PermanentError
from collector.receive.address import cannot_listen, host_and_port
from collector.receive.connections import ConnectionBounds
from collector.receive.http_server import PROTOBUF
from collector.receive.log import log
from collector.receive.status import HeadersTooLargeError, refusal

HEAD_BYTES_MAX = 64 * 1024
KEEP_ALIVE_SECONDS = 120
"""Longer than the pause between two batches of an SDK, so that none is closed just as it sends."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection, with bounds on head, trailers and time; errors of HTTP itself are told as Status."""

    def __init__(self, bounds: ConnectionBounds, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self.logger = log
        self._in_head = True
        self._head_bytes = 0
        self._receiving_since: float | None = None
        self._fault: PermanentError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio's stub has the base class
        super().connection_made(transport)
        self._receiving_since = self.loop.time()
        if len(self.connections) > self._bounds.connections_max:
            log.warning("Too many HTTP connections are open; a new one was closed")
            transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self._fault = _head_too_large()
                self.send_400_response(str(self._fault))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        self._receiving_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            self._fault = _head_too_large()
            raise self._fault

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._receiving_since = None

    def send_400_response(self, msg: str) -> None:
        told = refusal(self._fault or InvalidRequestError(msg))
        body = told.protobuf()
        head = (
            f"HTTP/1.1 {told.http_status} Refused\r\ncontent-type: {PROTOBUF}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def close_if_overdue(self) -> None:
        """Close where a request, or the first one of a connection, does not arrive in time."""
        since, seconds_max = self._receiving_since, self._bounds.receive_seconds_max
        if since is not None and self.loop.time() - since > seconds_max:
            log.warning("A request was not complete after %g s; its connection was closed", seconds_max)
            self.transport.close()

    def shutdown(self) -> None:
        """Close at once where nothing is to be answered: idle, or the only request is incomplete."""
        if self.cycle is not None and self.cycle.more_body and not self.pipeline:
            self.transport.close()
        else:
            super().shutdown()


class _Uvicorn(uvicorn.Server):
    """Runs in a loop that belongs to somebody else: takes no signals, says when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.close_if_overdue()
        return await super().on_tick(counter)


class HttpServer:
    """One application on one port."""

    def __init__(
        self,
        key: str,
        address: str,
        app: ASGI3Application,
        bounds: ConnectionBounds,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`key` is the setting that says `address`, as HOST:PORT; `tls` turns TLS on."""
        self._bounds = bounds
        self._key = key
        self._address = address
        self._app = app
        self._tls = tls
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen; the port. Raises OperatorError where that is not possible."""
        listener = _listen(self._key, self._address)
        tls = self._tls
        self._server = _Uvicorn(
            uvicorn.Config(
                self._app,
                http=partial(BoundedProtocol, self._bounds),  # type: ignore[arg-type]  # called, nothing else
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        await self._server.ready.wait()
        return int(listener.getsockname()[1])

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new connections, answer requests that arrived; after the grace answer 503."""
        if self._server is None or self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None


def _listen(key: str, address: str) -> socket.socket:
    host, port = host_and_port(key, address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise cannot_listen(key, address, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen()
    except OSError as error:
        listener.close()
        raise cannot_listen(key, address, error) from error
    return listener


def _head_too_large() -> HeadersTooLargeError:
    return HeadersTooLargeError(
        f"the head of the request is over {HEAD_BYTES_MAX} bytes: send fewer or shorter headers"
    )
