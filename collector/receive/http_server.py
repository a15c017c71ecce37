"""OTLP over HTTP: an ASGI application, and the server that runs it in the caller's event loop.

A bare ASGI callable instead of Starlette's routing, Request and Response: they took 20 to 60 microseconds of CPU
a request more, about a third of the cost of a small one, and three paths need no router.
"""

from __future__ import annotations

import asyncio

import orjson
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope

from collector.config import CollectorConfig
from collector.decode.otlp_json import to_protobuf
from collector.errors import RetryableError
from collector.pipeline import Accepted
from collector.receive.encoding import ACCEPT_ENCODING, Body, decompressor
from collector.receive.intake import Intake, response
from collector.receive.status import (
    MethodNotAllowedError,
    NotFoundError,
    Refusal,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    refusal,
)
from collector.tenants.errors import UnauthenticatedError
from collector.tenants.gate import AUTHORIZATION_HEADER
from collector.tenants.names import TENANT_HEADER

PROTOBUF = "application/x-protobuf"
JSON = "application/json"

_JSON_BYTES = 8
"""What a byte of JSON takes while it is converted: objects of Python, and the message."""

_TRACES = "/v1/traces"
_UNSTORED = {"/v1/metrics": "metrics", "/v1/logs": "logs"}
_TENANT_HEADER = TENANT_HEADER.encode()
_AUTHORIZATION_HEADER = AUTHORIZATION_HEADER.encode()


class DisconnectedError(Exception):
    """The client went away before its request was complete: there is nobody to answer."""


class HttpApp:
    """The ASGI application. Every answer, errors included, has the type of the request."""

    def __init__(self, config: CollectorConfig, intake: Intake) -> None:
        self._config = config
        self._intake = intake

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        media_type = _media_type(headers)
        try:
            body = await self._answer(scope, headers, media_type, receive)
            await _send(send, 200, media_type, body)
        except DisconnectedError:
            return
        except asyncio.CancelledError:  # the grace of a stop is over
            await _refuse(send, media_type, RetryableError("the collector stopped: send the request again"))
        except Exception as error:  # noqa: BLE001 - an escaped exception is a 500, on which clients drop data
            if scope["path"] == _TRACES and scope["method"] == "POST":
                self._intake.refusals.count("http", error)
            await _refuse(send, media_type, error)

    async def _answer(
        self, scope: HTTPScope, headers: dict[bytes, bytes], media_type: str, receive: ASGIReceiveCallable
    ) -> bytes:
        path = scope["path"]
        if path != _TRACES and path not in _UNSTORED:
            raise NotFoundError(f"{path}: OTLP/HTTP traces are taken at {_TRACES}")
        if scope["method"] != "POST":
            raise MethodNotAllowedError(f"{scope['method']} {path}: only POST is allowed")
        if media_type not in (PROTOBUF, JSON):
            raise UnsupportedMediaTypeError(f"Content-Type: {media_type!r}: use {PROTOBUF} or {JSON}")
        if path != _TRACES:
            self._intake.note_unstored(_UNSTORED[path])
            return _success(Accepted(), media_type)
        return _success(await self._take(scope, headers, media_type, receive), media_type)

    async def _take(
        self, scope: HTTPScope, headers: dict[bytes, bytes], media_type: str, receive: ASGIReceiveCallable
    ) -> Accepted:
        sender = self._intake.gate.identify(
            [value for name, value in scope["headers"] if name == _TENANT_HEADER],
            [value for name, value in scope["headers"] if name == _AUTHORIZATION_HEADER],
        )
        encoding = headers.get(b"content-encoding", b"").decode("latin-1")
        with self._intake.receive(sender) as reception:
            self._intake.check_quota(sender)
            body = Body(decompressor(encoding), self._config.request_bytes_max, reception.ticket.hold)
            payload = await self._read(body, receive)
            if media_type == JSON and payload:
                with reception.ticket.holding(_JSON_BYTES * len(payload)):
                    payload = await self._intake.workers.run(len(payload), to_protobuf, payload)
            return await self._intake.deliver(reception, payload, "http")

    async def _read(self, body: Body, receive: ASGIReceiveCallable) -> bytes:
        inflated_bytes = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise DisconnectedError
            chunk = message["body"]
            size_bytes = len(chunk) if body.compressed else 0
            inflated_bytes += size_bytes
            await self._intake.workers.run(size_bytes, body.feed, chunk)
            if not message["more_body"]:
                return await self._intake.workers.run(inflated_bytes, body.finish)


def _media_type(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()


def _success(accepted: Accepted, media_type: str) -> bytes:
    if media_type == PROTOBUF:
        return bytes(response(accepted).SerializeToString())
    partial: dict[str, str] = {}
    if accepted.rejected_spans:
        partial["rejectedSpans"] = str(accepted.rejected_spans)
    if accepted.message:
        partial["errorMessage"] = accepted.message
    return orjson.dumps({"partialSuccess": partial} if partial else {})


async def _refuse(send: ASGISendCallable, media_type: str, error: BaseException) -> None:
    told = refusal(error)
    extra: list[tuple[bytes, bytes]] = []
    if told.retry_after_header is not None:
        extra.append((b"retry-after", told.retry_after_header.encode()))
    if isinstance(error, UnauthenticatedError):
        extra.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowedError):
        extra.append((b"allow", b"POST"))
    if isinstance(error, UnsupportedEncodingError):
        extra.append((b"accept-encoding", ACCEPT_ENCODING.encode()))
    await _send(send, told.http_status, *_status_body(told, media_type), extra)


def _status_body(told: Refusal, media_type: str) -> tuple[str, bytes]:
    return (JSON, told.json()) if media_type == JSON else (PROTOBUF, told.protobuf())


async def _send(
    send: ASGISendCallable,
    status: int,
    media_type: str,
    body: bytes,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *(extra or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})
