"""Small pages over HTTP, for scrapers and probes: metrics and health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import orjson
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from collector.telemetry.health import Health, Report, State
from collector.telemetry.metrics import Metrics

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    media_type: str
    body: bytes


Make = Callable[[str], Awaitable[Page]]
"""Makes a page for the value of an Accept header."""


class Pages:
    """An ASGI application: pages by path, for GET and HEAD."""

    def __init__(self, pages: Mapping[str, Make]) -> None:
        self._pages = pages

    async def __call__(self, scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """One request; its body is not read."""
        if scope["type"] != "http":
            return
        make = self._pages.get(scope["path"])
        if make is None:
            page = Page(404, JSON, orjson.dumps({"error": f"expected one of {', '.join(self._pages)}"}))
        elif scope["method"] not in ("GET", "HEAD"):
            page = Page(405, JSON, orjson.dumps({"error": "expected GET or HEAD"}))
        else:
            accept = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
            page = await make(accept)
        headers = [
            (b"content-type", page.media_type.encode()),
            (b"content-length", str(len(page.body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        body = b"" if scope["method"] == "HEAD" else page.body
        await send({"type": "http.response.start", "status": page.status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def metrics_pages(metrics: Metrics) -> Pages:
    """/metrics, in the format that the scraper prefers.

    Rendered in a thread, one at a time: with hundreds of tenants it takes too long for an event loop.
    """
    one_at_a_time = asyncio.Lock()

    async def show(accept: str) -> Page:
        async with one_at_a_time:
            media_type, body = await asyncio.to_thread(metrics.render, accept)
        return Page(200, media_type, body)

    return Pages({"/metrics": show})


def health_pages(health: Health) -> Pages:
    """/ and /ready: whether requests are acknowledged; /live: whether only a restart would help. 200 or 503."""

    async def ready(_accept: str) -> Page:
        return _health_page(await health.ready())

    async def live(_accept: str) -> Page:
        return _health_page(health.live())

    return Pages({"/": ready, "/ready": ready, "/live": live})


def _health_page(report: Report) -> Page:
    problems = [{"part": p.part, "state": p.state, "message": p.message} for p in report.problems]
    body = orjson.dumps({"status": report.state, "problems": problems}) + b"\n"
    return Page(503 if report.state is State.UNAVAILABLE else 200, JSON, body)
