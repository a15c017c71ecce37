"""The collector process: everything wired together, from ready to a clean stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvloop

from collector.config import Config
from collector.decode.decoder import Decoder
from collector.errors import OperatorError
from collector.ingest import Ingest
from collector.lake import maintain
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.lake.lock import ProcessLock
from collector.lake.tables import COLLECTOR_DEFINITIONS
from collector.maintenance import Maintenance
from collector.receive import memory
from collector.receive.connections import raise_descriptor_limit
from collector.receive.servers import Servers
from collector.receive.tls import Certificates
from collector.salvage import open_spool
from collector.seal import Sealer, last_spool
from collector.spool import Spool
from collector.telemetry import traces
from collector.telemetry.acknowledged import Acknowledged
from collector.telemetry.health import Health
from collector.telemetry.metrics import Metrics, Sources
from collector.telemetry.server import TelemetryServers
from collector.telemetry.traces import Tracing
from collector.tenants.counters import TenantCounters
from collector.tenants.gate import Gate, exposure_warning

log = logging.getLogger(__name__)

# Commits and small reads are all that the collector itself asks of DuckDB.
_LAKE_THREADS = 1
_LAKE_BYTES_MAX = 128 * 2**20


@dataclass(frozen=True)
class Stages:
    """What a request passes, and what works beside it."""

    ingest: Ingest
    spool: Spool
    sealer: Sealer
    maintenance: Maintenance


@contextmanager
def open_stages(config: Config, location: Location, tracing: Tracing) -> Iterator[Stages]:
    """The stages on one data folder, alone; everything is sealed at the end.

    Call it in an event loop's thread; `Ingest.start` is the caller's. Raises OperatorError.
    """
    location.prepare()
    lock = ProcessLock(location.collector_lock, "collector")
    lock.acquire()
    with ExitStack() as stack:
        stack.callback(lock.release)
        lake = stack.enter_context(
            Lake(location, read_only=False, threads=_LAKE_THREADS, memory_bytes_max=_LAKE_BYTES_MAX)
        )
        lake.ensure(COLLECTOR_DEFINITIONS)
        maintain.configure(lake)
        spool = _open_spool(config, location, lake)
        stack.callback(spool.close)
        sealer = Sealer(config.collector, Decoder(config.mapping, config.limits), spool, lake, tracing)
        ingest = Ingest(config.collector, Decoder(config.mapping, config.limits), spool, sealer, tracing)
        maintenance = Maintenance(
            lake, config.storage, config.collector.merge_interval_seconds, tracing, config.retention, config.sampling
        )
        sealer.start()
        stack.callback(sealer.stop)
        stack.callback(ingest.stop)
        maintenance.start()
        stack.callback(maintenance.stop)
        yield Stages(ingest, spool, sealer, maintenance)


def _open_spool(config: Config, location: Location, lake: Lake) -> Spool:
    try:
        return open_spool(location.spool, config.collector.dedup_window_seconds, *last_spool(lake))
    except (sqlite3.Error, OSError) as error:
        raise OperatorError(
            f"the spool at {str(location.spool)!r} cannot be used: {error}; "
            "expected a folder with free space that no other program locks"
        ) from error


@contextmanager
def open_ingest(config: Config, location: Location) -> Iterator[tuple[Ingest, Sealer]]:
    """As `open_stages`, for those who only put requests in; without traces."""
    with open_stages(config, location, Tracing()) as stages:
        yield stages.ingest, stages.sealer


def run(config: Config) -> int:
    """Collect until SIGTERM or SIGINT; print one line of JSON when ready. Raises OperatorError."""
    return uvloop.run(_run(config))


async def _run(config: Config) -> int:
    location = locate(config.storage)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    raise_descriptor_limit()
    certificates = Certificates(config.tls) if config.tls.certificate else None
    tracing = traces.start(config.telemetry.traces_endpoint)
    if warning := exposure_warning(config):
        log.warning(warning)
    with open_stages(config, location, tracing) as stages:
        stages.ingest.start()
        async with _listening(config, stages, certificates, tracing) as addresses:
            memory.release()  # what the start took and is free now
            with _announced(location, addresses):
                await stop.wait()
            log.info("stopping: answering what was received, then sealing it")
    return 0


@asynccontextmanager
async def _listening(
    config: Config, stages: Stages, certificates: Certificates | None, tracing: Tracing
) -> AsyncIterator[dict[str, str]]:
    """All servers; their addresses by key."""
    acknowledged = Acknowledged(stages.ingest)
    gate = Gate(config.auth, config.quotas, locate(config.storage).root, TenantCounters())
    servers = Servers(config.collector, acknowledged, certificates, gate)
    health = Health(
        config.collector, stages.ingest, stages.spool, stages.sealer, stages.maintenance, memory=servers.memory
    )
    sources = Sources(
        config=config.collector,
        acknowledged=acknowledged,
        refusals=servers.refusals,
        ingest=stages.ingest,
        spool=stages.spool,
        sealer=stages.sealer,
        maintenance=stages.maintenance,
        tenants=servers.tenants.tenants,
    )
    telemetry = TelemetryServers(config.telemetry, Metrics(sources), health)
    addresses = await telemetry.start()
    try:
        endpoints = await servers.start()
        try:
            yield {"grpc": endpoints.grpc, "http": endpoints.http, **addresses}
        finally:
            health.announce_stop()
            await asyncio.to_thread(tracing.stop)
            await servers.stop(config.collector.stop_timeout_seconds)
    finally:
        await telemetry.stop()


@contextmanager
def _announced(location: Location, addresses: dict[str, str]) -> Iterator[None]:
    """Say on standard output, and in collector.json for other processes, where this collector listens."""
    announcement = json.dumps({"ready": True, **addresses, "pid": os.getpid()})
    temporary = location.announcement.with_suffix(".part")
    temporary.write_text(announcement + "\n", encoding="utf-8")
    temporary.rename(location.announcement)
    print(announcement, flush=True)
    try:
        yield
    finally:
        location.announcement.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Announced:
    """Where a collector listens, as HOST:PORT; `health` is None where it has no such address."""

    grpc: str
    http: str
    health: str | None


def announced_by(location: Location) -> Announced | None:
    """What the collector that runs on this lake announced; None where none runs."""
    try:
        found = json.loads(location.announcement.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Announced(found["grpc"], found["http"], found.get("health"))
