"""Cross-origin requests from browsers (https://fetch.spec.whatwg.org/#http-cors-protocol), around an application."""

from __future__ import annotations

from uvicorn._types import (
    ASGI3Application,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    Scope,
)

ALLOWED_HEADERS = "authorization, content-encoding, content-type, x-scope-orgid"
PREFLIGHT_SECONDS = 7200
"""How long browsers may keep the answer to a preflight; the most that any of them does."""

Headers = list[tuple[bytes, bytes]]


class Cors:
    """Answers preflights, and marks answers as readable, for the given origins; others get neither."""

    def __init__(self, app: ASGI3Application, origins: tuple[str, ...]) -> None:
        self._app = app
        self._any = "*" in origins
        self._origins = {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        asked = dict(scope["headers"])
        origin = asked.get(b"origin")
        if origin is None:
            return await self._app(scope, receive, send)
        granted = self._granted(origin)
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            return await _answer_preflight(scope, granted, send)

        async def send_marked(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *granted]
            await send(event)

        return await self._app(scope, receive, send_marked)

    def _granted(self, origin: bytes) -> Headers:
        """The headers that let the origin read an answer. Credentials are what `sendBeacon` always sends."""
        expose = (b"access-control-expose-headers", b"retry-after")
        if origin in self._origins:
            credentials = (b"access-control-allow-credentials", b"true")
            return [(b"access-control-allow-origin", origin), (b"vary", b"origin"), credentials, expose]
        if self._any:
            return [(b"access-control-allow-origin", b"*"), expose]
        return [(b"vary", b"origin")]


async def _answer_preflight(scope: HTTPScope, granted: Headers, send: ASGISendCallable) -> None:
    allowed = any(name == b"access-control-allow-origin" for name, _ in granted)
    headers = [*granted]
    if allowed:
        headers += [
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]
    else:
        headers.append((b"content-length", b"0"))
    status = 204 if allowed else 403
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
