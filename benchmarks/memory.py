"""Peak memory of a collector that gets several times what its lake takes, over many large parallel streams.

    python -m benchmarks.memory [SECONDS]

Prints for gRPC, for HTTP, and for both at once: what was sent and acknowledged, how requests were refused, the peak
against the limit, and what is resident ten seconds later.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httptools
import psutil
from grpc import aio

from benchmarks.machine import describe
from benchmarks.receive import EXPORT, request_of

COLLECTOR = Path(__file__).parents[1] / "tests/applications/slow_collector.py"
LIMIT_BYTES = 960 * 2**20
SPOOL_BYTES = 256 * 2**20
COMMIT_SECONDS = 0.1
"""For about a group of 8 MiB, which comes to a fifth of what the clients can send."""
REQUEST_SPANS = 10_000
CONNECTIONS = 4
STREAMS = 25
"""Of a connection, for gRPC; as many connections, for HTTP."""
HEAD = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: "
LOOK_SECONDS = 0.02
CALM_SECONDS = 10.0


@dataclass
class Sent:
    """What came of the requests of a flood."""

    answers: Counter[str] = field(default_factory=Counter)
    acknowledged_bytes: int = 0


@contextmanager
def collector(
    folder: Path, commit_seconds: float, memory_bytes_max: int, spool_bytes_max: int
) -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A collector with a slow lake: its process and its addresses."""
    arguments = [str(folder), str(commit_seconds), str(memory_bytes_max), str(spool_bytes_max)]
    command = [sys.executable, str(COLLECTOR), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), json.loads(process.stdout.readline())
        finally:
            process.kill()


async def flood_grpc(address: str, payload: bytes, until: float, sent: Sent) -> None:
    """CONNECTIONS with STREAMS calls each, at any time."""
    options = [("grpc.use_local_subchannel_pool", 1)]

    async def send(call: aio.UnaryUnaryMultiCallable, number: int) -> None:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            try:
                await call(payload + unique(number, turn), timeout=max(0.1, until - time.monotonic()))
                sent.answers["OK"] += 1
                sent.acknowledged_bytes += len(payload)
            except aio.AioRpcError as error:
                sent.answers[error.code().name] += 1
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.1)

    channels = [aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
    calls = [channel.unary_unary(EXPORT) for channel in channels for _ in range(STREAMS)]
    await asyncio.gather(*(send(call, number) for number, call in enumerate(calls)))
    for channel in channels:
        await channel.close()


async def flood_http(address: str, payload: bytes, until: float, sent: Sent) -> None:
    """CONNECTIONS times STREAMS connections."""
    host, port = address.split(":")

    async def send(number: int) -> None:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    status = await post(host, int(port), payload + unique(number, turn))
                sent.answers[str(status)] += 1
                sent.acknowledged_bytes += len(payload) if status == 200 else 0
            except (OSError, asyncio.IncompleteReadError) as error:
                sent.answers[type(error).__name__] += 1
                await asyncio.sleep(0.1)
            else:
                if status != 200:
                    await asyncio.sleep(0.1)

    await asyncio.gather(*(send(number) for number in range(CONNECTIONS * STREAMS)))


async def post(host: str, port: int, body: bytes) -> int:
    """The status of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(HEAD + str(len(body)).encode() + b"\r\n\r\n")
        writer.write(body)
        answer = await reader.readuntil(b"\r\n\r\n")
        parser = httptools.HttpResponseParser(None)
        parser.feed_data(answer)
        return int(parser.get_status_code())
    finally:
        writer.close()


def unique(number: int, turn: int) -> bytes:
    """An unknown field of a request, which makes it differ from every other one."""
    return b"\xa2\x06\x10" + number.to_bytes(8, "big") + turn.to_bytes(8, "big")


Flood = Callable[[str, bytes, float, Sent], Awaitable[None]]
PROTOCOLS: dict[Flood, str] = {flood_grpc: "grpc", flood_http: "http"}


async def peak_while(process: psutil.Process, flood: asyncio.Future[list[None]]) -> int:
    """The largest resident size in bytes while a flood is on."""
    peak = 0
    while not flood.done():
        peak = max(peak, process.memory_info().rss)
        await asyncio.sleep(LOOK_SECONDS)
    await flood
    return peak


async def measure(seconds: float) -> None:
    """Print one row for each protocol, and one for both at once."""
    payload = request_of(REQUEST_SPANS)
    mebi = 2**20
    print(json.dumps(describe()))
    print(
        f"{CONNECTIONS * STREAMS} parallel requests of {len(payload) / mebi:.1f} MiB, "
        f"limit {LIMIT_BYTES / mebi:.0f} MiB"
    )
    print(f"{'':5} {'start':>6} {'peak':>6} {'later':>6} MiB  acknowledged MiB/s  answers")
    floods: dict[str, tuple[Flood, ...]] = {
        "grpc": (flood_grpc,),
        "http": (flood_http,),
        "both": (flood_grpc, flood_http),
    }
    for name, parts in floods.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            collector(Path(folder) / "data", COMMIT_SECONDS, LIMIT_BYTES, SPOOL_BYTES) as (process, addresses),
        ):
            start, sent = process.memory_info().rss, Sent()
            until = time.monotonic() + seconds
            flooding = (part(addresses[PROTOCOLS[part]], payload, until, sent) for part in parts)
            peak = await peak_while(process, asyncio.gather(*flooding))
            await asyncio.sleep(CALM_SECONDS)
            later = process.memory_info().rss
        print(
            f"{name:5} {start / mebi:6.0f} {peak / mebi:6.0f} {later / mebi:6.0f}      "
            f"{sent.acknowledged_bytes / mebi / seconds:18.1f}  {dict(sent.answers)}"
        )


if __name__ == "__main__":
    asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
