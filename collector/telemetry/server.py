"""The servers of metrics and health, in the collector's event loop."""

from __future__ import annotations

import logging

from uvicorn._types import ASGI3Application

from collector.config import TelemetryConfig
from collector.errors import OperatorError
from collector.receive.address import with_port
from collector.receive.connections import ConnectionBounds
from collector.receive.http_transport import HttpServer
from collector.telemetry.health import Health
from collector.telemetry.metrics import Metrics
from collector.telemetry.pages import health_pages, metrics_pages

log = logging.getLogger(__name__)

_STOP_SECONDS = 1.0
_CONNECTIONS_MAX = 64


class TelemetryServers:
    """Metrics and health, each on its address; an empty address switches one off."""

    def __init__(self, config: TelemetryConfig, metrics: Metrics, health: Health) -> None:
        self._config = config
        self._apps = {"metrics": metrics_pages(metrics), "health": health_pages(health)}
        self._servers: list[HttpServer] = []

    async def start(self) -> dict[str, str]:
        """Listen; the real addresses by key. Raises OperatorError where a configured address cannot be used.

        A default address that is in use must not keep spans out: a free port is taken instead, with a warning.
        """
        endpoints = {}
        try:
            for key, app in self._apps.items():
                if getattr(self._config, key):
                    endpoints[key] = await self._listen(key, app)
        except BaseException:
            await self.stop()
            raise
        return endpoints

    async def _listen(self, key: str, app: ASGI3Application) -> str:
        address: str = getattr(self._config, key)
        try:
            return await self._serve(key, address, app)
        except OperatorError as error:
            if key in self._config.model_fields_set:
                raise
            log.warning("%s; a free port is used instead", error)
            return await self._serve(key, with_port(address, 0), app)

    async def _serve(self, key: str, address: str, app: ASGI3Application) -> str:
        server = HttpServer(f"telemetry.{key}", address, app, ConnectionBounds(_CONNECTIONS_MAX))
        port = await server.start()
        self._servers.append(server)
        return with_port(address, port)

    async def stop(self) -> None:
        """Close. Safe to call twice."""
        while self._servers:
            await self._servers.pop().stop(_STOP_SECONDS)
