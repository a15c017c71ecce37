"""The health of a collector that runs in another process, asked of its health address."""

from __future__ import annotations

import http.client
from typing import Any

import orjson

from collector.receive.address import host_and_port, reached

UNKNOWN = "unknown"
ASK_SECONDS = 8.0
"""Longer than the collector waits for a disk that does not answer."""


def ask_health(address: str | None, timeout_seconds: float = ASK_SECONDS) -> dict[str, Any]:
    """What `GET /ready` answers: `status` (ok, degraded, unavailable) and `problems` (part, state, message).

    `address` is HOST:PORT, None where the collector has no health address. Where it does not answer, the status
    is `unknown` and the problem says why.
    """
    if not address:
        return _unknown("telemetry.health is empty: the collector does not tell")
    host, port = host_and_port("telemetry.health", reached(address))
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/ready")
        told = orjson.loads(connection.getresponse().read())
        return {"status": told["status"], "problems": told["problems"]}
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError, KeyError, TypeError) as error:
        return _unknown(f"{address} does not tell: {error or type(error).__name__}")
    finally:
        connection.close()


def _unknown(message: str) -> dict[str, Any]:
    return {"status": UNKNOWN, "problems": [{"part": "health", "state": UNKNOWN, "message": message}]}
