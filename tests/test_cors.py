"""CORS of OTLP/HTTP: preflights, marked answers, refused origins, and off by default."""

from __future__ import annotations

import asyncio
import http.client

import pytest
from pydantic import ValidationError

from collector.config import CollectorConfig
from collector.errors import OverloadedError
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Servers

APP = "https://app.example:8443"
EVIL = "https://evil.example"
PROTOBUF = {"content-type": "application/x-protobuf"}
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


class Sink:
    """Accepts, or raises `error`."""

    error: Exception | None = None
    requests = 0

    async def accept(self, request: TraceRequest) -> Accepted:
        self.requests += 1
        if self.error:
            raise self.error
        return Accepted()


def ask(
    origins: list[str], method: str, headers: dict[str, str], path: str = "/v1/traces", sink: Sink | None = None
) -> http.client.HTTPResponse:
    """One request to servers that run for its time."""

    def request(endpoint: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(endpoint, timeout=10)
        connection.request(method, path, b"\x0a\x00" if method == "POST" else None, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    async def run() -> http.client.HTTPResponse:
        settings = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "cors_origins": origins}
        servers = Servers(CollectorConfig.model_validate(settings), sink or Sink())
        endpoints = await servers.start()
        try:
            return await asyncio.to_thread(request, endpoints.http)
        finally:
            await servers.stop(1)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("origins", "origin", "granted"),
    [([APP], APP, APP), ([EVIL, APP], APP, APP), (["*"], EVIL, "*"), (["*", APP], APP, APP)],
)
def test_preflight_of_an_allowed_origin(origins: list[str], origin: str, granted: str) -> None:
    answer = ask(origins, "OPTIONS", PREFLIGHT | {"origin": origin})
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == granted
    assert answer.headers["access-control-allow-methods"] == "POST"
    allowed = {name.strip() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert allowed >= {"content-type", "content-encoding", "x-scope-orgid", "authorization"}
    assert int(answer.headers["access-control-max-age"]) > 0
    assert answer.headers["access-control-allow-credentials"] == (None if granted == "*" else "true")
    assert answer.headers["vary"] == (None if granted == "*" else "origin")


@pytest.mark.parametrize("origin", [EVIL, "null", APP.replace("https", "http"), APP + "0", APP.upper(), "*"])
def test_preflight_of_another_origin_grants_nothing(origin: str) -> None:
    answer = ask([APP], "OPTIONS", PREFLIGHT | {"origin": origin})
    assert answer.status == 403
    assert answer.headers["vary"] == "origin"
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_answers_to_an_allowed_origin_are_readable_refusals_too() -> None:
    sink = Sink()
    answer = ask([APP], "POST", PROTOBUF | {"origin": APP}, sink=sink)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, APP)
    sink.error = OverloadedError("full", 2)
    answer = ask([APP], "POST", PROTOBUF | {"origin": APP}, sink=sink)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (503, APP)
    assert answer.headers["access-control-expose-headers"] == "retry-after"
    assert answer.headers["retry-after"] == "2"
    assert sink.requests == 2


def test_answers_to_another_origin_or_none_are_not_marked() -> None:
    for headers in (PROTOBUF | {"origin": EVIL}, PROTOBUF):
        answer = ask([APP], "POST", headers)
        assert answer.status == 200
        assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_off_by_default() -> None:
    answer = ask([], "OPTIONS", PREFLIGHT | {"origin": APP})
    assert answer.status == 405
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_a_plain_options_is_no_preflight() -> None:
    assert ask([APP], "OPTIONS", {"origin": APP}).status == 405


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://a/b", "https://*.example", ""])
def test_only_origins_are_taken(origin: str) -> None:
    with pytest.raises(ValidationError):
        CollectorConfig.model_validate({"cors_origins": (origin,)})


@pytest.mark.parametrize("origin", ["*", "http://localhost:3000", "https://[::1]:8080", "app://x.y-z"])
def test_origins_that_are_taken(origin: str) -> None:
    assert CollectorConfig.model_validate({"cors_origins": (origin,)}).cors_origins == (origin,)
