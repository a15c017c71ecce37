"""The collector process: everything wired together, from ready to a clean stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import duckdb
import uvloop

from collector.config import Config
from collector.decode.decoder import Decoder
from collector.ingest import Ingest
from collector.lake import maintain
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.lake.lock import ProcessLock
from collector.lake.tables import COLLECTOR_DEFINITIONS
from collector.receive.servers import Endpoints, Servers
from collector.seal import Sealer
from collector.spool import Spool

log = logging.getLogger(__name__)

_CLEAN_EVERY_MERGES = 30


@contextmanager
def open_ingest(config: Config, location: Location) -> Iterator[tuple[Ingest, Sealer]]:
    """Lake, spool, sealer and ingest of one data folder, alone; everything is sealed at the end.

    Call it in an event loop's thread; `Ingest.start` is the caller's. Raises OperatorError.
    """
    location.prepare()
    lock = ProcessLock(location.collector_lock, "collector")
    lock.acquire()
    with ExitStack() as stack:
        stack.callback(lock.release)
        lake = stack.enter_context(Lake(location, read_only=False))
        lake.ensure(COLLECTOR_DEFINITIONS)
        maintain.configure(lake)
        spool = Spool(location.spool, config.collector.dedup_window_seconds)
        stack.callback(spool.close)
        sealer = Sealer(config.collector, Decoder(config.mapping), spool, lake)
        ingest = Ingest(config.collector, Decoder(config.mapping), spool, sealer)
        sealer.start()
        stack.callback(sealer.stop)
        stack.callback(ingest.stop)
        stack.enter_context(_maintained(config, lake))
        yield ingest, sealer


def run(config: Config) -> int:
    """Collect until SIGTERM or SIGINT; print one line of JSON when ready. Raises OperatorError."""
    return uvloop.run(_run(config))


async def _run(config: Config) -> int:
    location = locate(config.storage)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with open_ingest(config, location) as (ingest, _sealer):
        ingest.start()
        servers = Servers(config.collector, ingest)
        endpoints = await servers.start()
        with _announced(location, endpoints):
            await stop.wait()
            log.info("stopping: answering what was received, then sealing it")
            await servers.stop(config.collector.stop_timeout_seconds)
    return 0


@contextmanager
def _announced(location: Location, endpoints: Endpoints) -> Iterator[None]:
    """Say on standard output, and in collector.json for other processes, where this collector listens."""
    announcement = json.dumps({"ready": True, "grpc": endpoints.grpc, "http": endpoints.http, "pid": os.getpid()})
    temporary = location.announcement.with_suffix(".part")
    temporary.write_text(announcement + "\n", encoding="utf-8")
    temporary.rename(location.announcement)
    print(announcement, flush=True)
    try:
        yield
    finally:
        location.announcement.unlink(missing_ok=True)


@contextmanager
def _maintained(config: Config, lake: Lake) -> Iterator[None]:
    stop = threading.Event()

    def work() -> None:
        rounds = 0
        merger = maintain.Merger(lake, "spans")
        while not stop.wait(config.collector.merge_interval_seconds):
            try:
                while not stop.is_set() and merger.step():
                    pass
                if rounds % _CLEAN_EVERY_MERGES == 0:
                    maintain.clean(lake)
            except (duckdb.Error, OSError):
                log.exception("maintenance failed; it is tried again")
            rounds += 1

    thread = threading.Thread(target=work, name="maintain", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def endpoints_of(location: Location) -> Endpoints | None:
    """Where the collector that runs on this lake listens; None where none runs."""
    try:
        announcement = json.loads(location.announcement.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Endpoints(announcement["grpc"], announcement["http"])
