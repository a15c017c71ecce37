"""What one tenant's overload does to the others: refusals and acknowledgement latency, quiet against noisy.

    python -m benchmarks.tenants [--scenario quota|shares|flood] [--rate SPANS_PER_SECOND] [--seconds 5] [--rounds 3]

A real collector over gRPC, tenants by header. Quiet tenants send at a steady pace throughout; in every second phase
one more tenant joins, from a process of its own:
- quota: it sends 20 times the pace of each of the others without waiting for answers, where 1.5 times is its quota;
- shares: the same without any quota;
- flood: as much as is answered, without any quota, where 8 MiB may be pending.
It has 64 workers, as the sending queue of an exporter has. After a refusal a worker waits for as long as the RetryInfo
says; what is due while all of them wait or send is dropped, as by a full queue. Its requests are encoded in advance.
Phases alternate, so that what else the machine does falls on both alike. Senders and collector share the machine: the
CPU of each is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.rpc.error_details_pb2 import RetryInfo

from benchmarks.ingest import percentile
from benchmarks.machine import describe
from benchmarks.process import collecting
from benchmarks.senders import EXPORT
from benchmarks.traffic import Traffic

QUIET_TENANTS = 7
FACTOR = 20
QUOTA_FACTOR = 1.5
WORKERS = 64
FLOOD_BOUNDS = {"SPANLAKE_COLLECTOR_PENDING_BYTES_MAX": str(8 * 2**20)}


class Results:
    """Latencies of acknowledgements in milliseconds, and refusals by code."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []
        self.refusals: dict[str, int] = {}

    def refuse(self, code: str, count: int = 1) -> None:
        self.refusals[code] = self.refusals.get(code, 0) + count


class Quiet(threading.Thread):
    """A tenant at a steady pace, one request after the other."""

    def __init__(self, number: int, endpoint: str, arguments: argparse.Namespace, phase: list[str]) -> None:
        super().__init__(daemon=True)
        self._tenant = f"quiet-{number}"
        self._endpoint = endpoint
        self._pause = arguments.spans_per_request / arguments.rate
        self._offset = self._pause * number / QUIET_TENANTS
        self._traffic = Traffic(arguments.spans_per_request, arguments.spans_per_request * 8, number)
        self._phase = phase
        self.results = {"quiet": Results(), "noisy": Results()}

    def run(self) -> None:
        channel = grpc.insecure_channel(self._endpoint, [("grpc.use_local_subchannel_pool", 1)])
        send = channel.unary_unary(EXPORT)
        due = time.monotonic() + self._offset
        for payload in self._traffic:
            time.sleep(max(0.0, due - time.monotonic()))
            due += self._pause
            phase = self._phase[0]
            if phase == "end":
                return
            started = time.monotonic()
            try:
                send(payload, metadata=[("x-scope-orgid", self._tenant)], timeout=30)
            except grpc.RpcError as error:
                if phase in self.results:
                    self.results[phase].refuse(error.code().name)
            else:
                if phase in self.results:
                    self.results[phase].latencies_ms.append((time.monotonic() - started) * 1e3)


async def make_noise(arguments: argparse.Namespace) -> None:
    """The noisy tenant's process: for each line of standard input one phase, and a line of JSON about it."""
    traffic = iter(Traffic(arguments.spans_per_request, arguments.spans_per_request * 8, 99))
    results = Results()
    async with grpc.aio.insecure_channel(arguments.endpoint) as channel:
        send = channel.unary_unary(EXPORT)

        async def one() -> None:
            started = time.monotonic()
            try:
                await send(next(traffic), metadata=[("x-scope-orgid", "noisy")], timeout=30)
            except grpc.aio.AioRpcError as error:
                results.refuse(error.code().name)
                await asyncio.sleep(retry_delay_seconds(error))
            else:
                results.latencies_ms.append((time.monotonic() - started) * 1e3)

        async def repeat(until: float) -> None:
            while time.monotonic() < until:
                await one()

        print("ready", flush=True)
        while sys.stdin.readline():
            until = time.monotonic() + arguments.seconds
            if arguments.scenario == "flood":
                await asyncio.wait([asyncio.create_task(repeat(until)) for _ in range(WORKERS)])
            else:
                await pace(one, arguments.spans_per_request / (FACTOR * arguments.rate), until, results)
            print(json.dumps({"latencies_ms": results.latencies_ms, "refusals": results.refusals}), flush=True)
            results.latencies_ms, results.refusals = [], {}


def retry_delay_seconds(error: grpc.aio.AioRpcError) -> float:
    """What the refusal asks to wait, a second where it does not say."""
    told = dict(error.trailing_metadata() or ()).get("google.rpc.retryinfo-bin")
    return RetryInfo.FromString(told).retry_delay.ToTimedelta().total_seconds() if told else 1.0


async def pace(one: Callable[[], Coroutine[Any, Any, None]], pause: float, until: float, results: Results) -> None:
    """Begin `one` each `pause` seconds, and no more of them at a time than there are workers."""
    tasks: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due += pause
        if len(tasks) >= WORKERS:
            results.refuse("dropped by the sender")
            continue
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Noise:
    """The process of the noisy tenant, and what came of its requests."""

    def __init__(self, endpoint: str) -> None:
        command = [sys.executable, "-m", "benchmarks.tenants", *sys.argv[1:], "--endpoint", endpoint]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._reports = self._process.stdin, self._process.stdout
        self._reports.readline()
        self.pid = self._process.pid
        self.results = Results()

    def begin(self) -> None:
        """Let it send for one phase."""
        self._commands.write("go\n")
        self._commands.flush()

    def end(self) -> None:
        """Wait for the end of its phase."""
        found = json.loads(self._reports.readline())
        self.results.latencies_ms += found["latencies_ms"]
        for code, count in found["refusals"].items():
            self.results.refuse(code, count)

    def stop(self) -> None:
        """Let it end."""
        self._commands.close()
        self._process.wait()


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    if arguments.scenario == "quota":
        quota = str(QUOTA_FACTOR * arguments.rate)
        return {"SPANLAKE_QUOTAS_SPANS_PER_SECOND": quota, "SPANLAKE_QUOTAS_BURST_SECONDS": "1"}
    return FLOOD_BOUNDS if arguments.scenario == "flood" else {}


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    with (
        tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
        collecting(Path(folder) / "data", environment(arguments)) as collector,
    ):
        endpoint = collector.addresses["grpc"]
        phase = ["warm up"]
        tenants = [Quiet(i, endpoint, arguments, phase) for i in range(QUIET_TENANTS)]
        noise = Noise(endpoint)
        for tenant in tenants:
            tenant.start()
        time.sleep(2)
        cores = phases(arguments, phase, collector.process, noise)
        phase[0] = "end"
        for tenant in tenants:
            tenant.join()
        noise.stop()
    return table(tenants, noise.results, cores)


def phases(
    arguments: argparse.Namespace, phase: list[str], collector: psutil.Process, noise: Noise
) -> dict[str, float]:
    """Let quiet and noisy phases alternate; the cores that collector and senders took in each."""
    cores = {f"{who} {name}": 0.0 for who in ("collector", "senders") for name in ("quiet", "noisy")}
    processes = {"collector": [collector], "senders": [psutil.Process(), psutil.Process(noise.pid)]}
    for _ in range(arguments.rounds):
        for name in ("quiet", "noisy"):
            before = {who: cpu_seconds(each) for who, each in processes.items()}
            phase[0] = name
            if name == "noisy":
                noise.begin()
            time.sleep(arguments.seconds)
            phase[0] = "between"
            for who, each in processes.items():
                used = cpu_seconds(each) - before[who]
                cores[f"{who} {name}"] += used / arguments.seconds / arguments.rounds
            if name == "noisy":
                noise.end()
            time.sleep(1)
    return cores


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def table(tenants: list[Quiet], noisy: Results, cores: dict[str, float]) -> dict[str, object]:
    rows: dict[str, object] = {}
    p99_ms: list[float] = []
    for name in ("quiet", "noisy"):
        all_ms = [ms for tenant in tenants for ms in tenant.results[name].latencies_ms]
        refused = sum(sum(tenant.results[name].refusals.values()) for tenant in tenants)
        used = ", ".join(f"{who} {cores[f'{who} {name}']:.2f} cores" for who in ("collector", "senders"))
        rows[f"others, {name} phases"] = f"{row(all_ms, refused)}, {used}"
        p99_ms.append(percentile(all_ms, 0.99))
    rows["p99, noisy to quiet"] = f"{p99_ms[1] / p99_ms[0]:.2f}"
    rows["noisy tenant"] = f"{row(noisy.latencies_ms, sum(noisy.refusals.values()))} {noisy.refusals}"
    return rows


def row(latencies_ms: list[float], refused: int) -> str:
    if not latencies_ms:
        return f"0 acknowledged, {refused} refused"
    p50, p99 = (percentile(latencies_ms, q) for q in (0.5, 0.99))
    return f"{len(latencies_ms)} acknowledged, {refused} refused, p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=("quota", "shares", "flood"), default="quota")
    parser.add_argument("--rate", type=float, default=1500, help="spans per second of each quiet tenant")
    parser.add_argument("--spans-per-request", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5, help="length of a phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where the data folder is made; default: the temporary folder")
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.endpoint:
        asyncio.run(make_noise(arguments))
        return
    for name, value in ({"scenario": arguments.scenario} | measure(arguments) | describe()).items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
