"""The limit on memory: when it refuses, that it holds under a flood, and that a client that retries loses nothing."""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc import aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import memory as benchmark
from collector.config import CollectorConfig, StorageConfig
from collector.decode.otlp_json import OBJECTS_MAX, to_protobuf
from collector.errors import InvalidRequestError
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.receive.intake import Intake
from collector.receive.memory import RESERVE_BYTES, Memory, MemoryLimitError, release, resident_bytes
from collector.tenants.gate import open_gate

LIMIT_BYTES = 960 * 2**20
FLOOD_SECONDS = 1.5
CALM_SECONDS = 20.0


class Machine:
    """A clock and a resident size that a test sets; counts looks and releases."""

    def __init__(self) -> None:
        self.now = 0.0
        self.resident = 0
        self.counts: Counter[str] = Counter()
        self.memory = Memory(LIMIT_BYTES, self.read, lambda: self.now, lambda: self.counts.update(["release"]))

    def read(self) -> int:
        self.counts["look"] += 1
        return self.resident


def test_it_refuses_from_the_reserve_below_the_limit() -> None:
    machine = Machine()
    machine.resident = LIMIT_BYTES - RESERVE_BYTES
    assert not machine.memory.is_over()
    machine.now, machine.resident = 1.0, machine.resident + 1
    assert machine.memory.is_over()
    assert str(machine.resident) in str(machine.memory.error())


def test_it_looks_ten_times_a_second_and_hands_memory_back_once_a_second() -> None:
    machine = Machine()
    machine.resident = LIMIT_BYTES
    for step in range(3000):
        machine.now = step / 1000
        assert machine.memory.is_over()
    assert machine.counts["look"] in range(28, 32)
    assert machine.counts["release"] == 3


def test_where_the_system_does_not_tell_nothing_is_refused() -> None:
    assert not Memory(LIMIT_BYTES, lambda: 0).is_over()


def test_memory_that_is_free_is_handed_back() -> None:
    size_bytes, pieces = 100_000, 2000
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    held = [libc.malloc(size_bytes) for _ in range(pieces)]
    for address in held:
        ctypes.memset(address, 1, size_bytes)
    full = resident_bytes()
    for address in held[:-1]:  # the last one keeps the top of the heap in its place
        libc.free(address)
    release()
    assert resident_bytes() < full - size_bytes * pieces // 2
    libc.free(held[-1])


class Slow:
    """A sink that answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def accept(self, _request: TraceRequest) -> Accepted:
        await self.go.wait()
        return Accepted()


def test_a_request_that_is_alone_passes_and_others_are_refused() -> None:
    async def scenario() -> None:
        sink = Slow()
        intake = Intake(CollectorConfig(), sink, open_gate())
        intake.memory = Memory(LIMIT_BYTES, lambda: LIMIT_BYTES)
        sender = intake.gate.identify([], [])
        with intake.receive(sender) as first:
            with pytest.raises(MemoryLimitError), intake.receive(sender):
                pass
            delivery = asyncio.create_task(intake.deliver(first, b"\x0a\x00", "http"))
            await asyncio.sleep(0)
        with pytest.raises(MemoryLimitError), intake.receive(sender):  # it is still on its way to the disk
            pass
        sink.go.set()
        await delivery
        with intake.receive(sender):
            pass
        intake.close()

    asyncio.run(scenario())


def test_json_that_would_swell_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidRequestError, match="smaller batches"):
        to_protobuf(b'{"resourceSpans":[' + b"{}," * OBJECTS_MAX + b"{}]}")


@dataclass
class Exporter:
    """Sends one request after the other, each until it is acknowledged."""

    acknowledged: int = 0
    refused: int = 0

    async def run(self, address: str, flood: asyncio.Task[None]) -> None:
        async with aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(benchmark.EXPORT)
            while not flood.done():
                await self._export(call, f"kept {self.acknowledged}")
                self.acknowledged += 1

    async def _export(self, call: aio.UnaryUnaryMultiCallable, name: str) -> None:
        request = ExportTraceServiceRequest()
        span = request.resource_spans.add().scope_spans.add().spans.add(name=name)
        span.trace_id, span.span_id = b"\1" * 16, b"\2" * 8
        while True:
            try:
                await call(request.SerializeToString(), timeout=20)
            except aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                self.refused += 1
                await asyncio.sleep(0.02)
            else:
                return


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/ready", timeout=10) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except urllib.error.HTTPError:
        return False


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_under_a_flood_memory_stays_below_the_limit_and_nothing_is_lost(tmp_path: Path, protocol: str) -> None:
    payload = benchmark.request_of(benchmark.REQUEST_SPANS)
    sent, exporter = benchmark.Sent(), Exporter()

    async def flood() -> None:
        send = benchmark.flood_grpc if protocol == "grpc" else benchmark.flood_http
        give_up = time.monotonic() + CALM_SECONDS
        while not exporter.refused and time.monotonic() < give_up:
            await send(addresses[protocol], payload, time.monotonic() + FLOOD_SECONDS, sent)

    async def scenario() -> int:
        task = asyncio.create_task(flood())
        peak, _ = await asyncio.gather(benchmark.peak_while(process, task), exporter.run(addresses["grpc"], task))
        return peak

    with benchmark.collector(tmp_path, 0.05, LIMIT_BYTES, 2**30) as (process, addresses):
        peak = asyncio.run(scenario())
        deadline = time.monotonic() + CALM_SECONDS
        while not is_ready(addresses["health"]):
            assert time.monotonic() < deadline, "it refuses for ever"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert peak < LIMIT_BYTES
    assert exporter.refused
    lost = {"TimeoutError", "DEADLINE_EXCEEDED", "ConnectionResetError", "BrokenPipeError", "IncompleteReadError"}
    assert set(sent.answers) - lost <= {"OK", "UNAVAILABLE", "200", "503"}
    with Lake(locate(StorageConfig(data=str(tmp_path))), read_only=True) as lake, lake.read() as reader:
        stored = reader.rows("SELECT name FROM spans WHERE starts_with(name, 'kept ')")
    assert Counter(name for (name,) in stored) == Counter(f"kept {i}" for i in range(exporter.acknowledged))
