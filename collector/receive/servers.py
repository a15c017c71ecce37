"""Both OTLP servers, started and stopped together, in the caller's event loop (uvloop is the faster one)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from collector.config import CollectorConfig
from collector.pipeline import TraceSink
from collector.receive.address import with_port
from collector.receive.connections import ConnectionBounds, default_bounds
from collector.receive.cors import Cors
from collector.receive.grpc_server import GrpcServer
from collector.receive.http_server import HttpApp
from collector.receive.http_transport import HttpServer
from collector.receive.intake import Intake
from collector.receive.memory import Memory
from collector.receive.refusals import Refusals
from collector.receive.tls import Certificates
from collector.tenants.counters import TenantCounters
from collector.tenants.gate import Gate, open_gate


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the servers listen, as HOST:PORT, the port being the real one where 0 was configured."""

    grpc: str
    http: str


class Servers:
    """OTLP/gRPC and OTLP/HTTP in front of one sink, within the bounds of one configuration."""

    def __init__(
        self,
        config: CollectorConfig,
        sink: TraceSink,
        certificates: Certificates | None = None,
        gate: Gate | None = None,
        bounds: ConnectionBounds | None = None,
    ) -> None:
        """With `certificates` both speak TLS and nothing else; without `gate` anybody may send any amount.

        Each server has `bounds`, by default `default_bounds()`.
        """
        bounds = bounds or default_bounds()
        self._config = config
        self._intake = Intake(config, sink, gate or open_gate())
        app = HttpApp(config, self._intake)
        credentials = certificates.grpc_credentials() if certificates else None
        self._grpc = GrpcServer(config, self._intake, bounds, credentials)
        self._http = HttpServer(
            "collector.http",
            config.http,
            Cors(app, config.cors_origins) if config.cors_origins else app,
            bounds,
            certificates.ssl_context() if certificates else None,
        )

    @property
    def refusals(self) -> Refusals:
        """What both servers refused."""
        return self._intake.refusals

    @property
    def memory(self) -> Memory:
        """The limit that both servers keep."""
        return self._intake.memory

    @property
    def tenants(self) -> TenantCounters:
        """What came from each tenant, and what was refused."""
        return self._intake.gate.counters

    async def start(self) -> Endpoints:
        """Listen. Raises OperatorError, and listens nowhere, where one of the addresses cannot be used."""
        http_port = await self._http.start()
        try:
            grpc_port = await self._grpc.start()
        except BaseException:
            await self._http.stop(1.0)
            raise
        return Endpoints(with_port(self._config.grpc, grpc_port), with_port(self._config.http, http_port))

    async def stop(self, grace_seconds: float) -> None:
        """Take no more requests (a client is told to try again, or finds the port closed), answer those that
        arrived, then close. Those not answered after the grace are told to try again. Safe to call twice.
        """
        self._intake.admission.close()
        await asyncio.gather(self._grpc.stop(grace_seconds), self._http.stop(grace_seconds))
        self._intake.close()
