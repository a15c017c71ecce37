"""Ingest end to end: spans per CPU-second of the whole collector process, acknowledgement latency, delay to queries.

    python -m benchmarks.ingest [--seconds 20] [--spans-per-request 512] [--protocol grpc|http] [--rate SPANS_A_SECOND]
    python -m benchmarks.ingest --safety 5

The collector runs as `spanlake collect` in a process of its own. What is counted is its CPU time (user and system)
from the first request until everything is sealed and it has stopped: receive, decode, spool, write, commit, and the
merges, which processes of its own do.
Without --rate as fast as the collector answers; with it, at that pace, which is where the latencies mean something.

--safety N compares, in N pairs of runs that alternate, authentication, quotas and recognition of repeated requests all
on against all off: no token asked for, no quota, a window of 0 s. The digest of a request is taken in both: it is also
the checksum of what is spooled.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import grpc
import psutil

from benchmarks.machine import describe
from benchmarks.traffic import Traffic
from collector.config import StorageConfig, TenantQuota
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.tenants.tokens import TokenFile

QUIET = {"SPANLAKE_TELEMETRY_METRICS": "127.0.0.1:0", "SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:0"}
SAFETY = {
    "off": {"SPANLAKE_COLLECTOR_DEDUP_WINDOW_SECONDS": "0"},
    "on": {
        "SPANLAKE_AUTH_ENABLED": "true",
        "SPANLAKE_QUOTAS_SPANS_PER_SECOND": "1e9",
        "SPANLAKE_QUOTAS_BYTES_PER_SECOND": "1e12",
    },
}
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sender(threading.Thread):
    """One client that sends a request, waits for the answer, and sends the next."""

    def __init__(self, number: int, arguments: argparse.Namespace, ready: dict[str, str], until: float) -> None:
        super().__init__()
        self._number = number
        self._arguments = arguments
        self._ready = ready
        self._headers = [("authorization", f"Bearer {arguments.token}")] if arguments.token else []
        self._until = until
        self.latencies_ms: list[float] = []
        self.spans = 0

    def run(self) -> None:
        spans_per_request = self._arguments.spans_per_request
        traffic = Traffic(spans_per_request, 60_000 // self._arguments.senders + spans_per_request, self._number)
        send = self._grpc() if self._arguments.protocol == "grpc" else self._http()
        rate = self._arguments.rate
        pause = spans_per_request * self._arguments.senders / rate if rate else 0.0
        due = time.monotonic() + pause * self._number / self._arguments.senders
        for payload in traffic:
            if rate:
                time.sleep(max(0.0, due - time.monotonic()))
                due += pause
            started = time.monotonic()
            if started > self._until:
                break
            send(payload)
            self.latencies_ms.append((time.monotonic() - started) * 1e3)
            self.spans += spans_per_request

    def _grpc(self):
        channel = grpc.insecure_channel(self._ready["grpc"], [("grpc.use_local_subchannel_pool", 1)])
        export = channel.unary_unary(EXPORT)
        return partial(export, metadata=self._headers)

    def _http(self):
        connection = http.client.HTTPConnection(self._ready["http"])

        def send(payload: bytes) -> None:
            headers = {"Content-Type": "application/x-protobuf", **dict(self._headers)}
            connection.request("POST", "/v1/traces", payload, headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status} {body!r}")

        return send


def percentile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[int(q * 1000) - 1] if len(values) > 1 else values[0]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of those of its children that have ended."""
    return sum(process.cpu_times()[:4])


def rss_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children; pages that they share count for each."""
    total = process.memory_info().rss
    for running in process.children(recursive=True):
        try:
            total += running.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data = str(Path(folder) / "data")
        if arguments.with_token:
            arguments.token = TokenFile(Path(data)).add("benchmark", TenantQuota())[0]
        command = [sys.executable, "-m", "dashboard.cli", "collect", "--data", data]
        collector = subprocess.Popen(
            [*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            env=os.environ | QUIET | arguments.environment,
        )
        ready = json.loads(collector.stdout.readline())
        process = psutil.Process(collector.pid)
        before, rss_start = cpu_seconds(process), process.memory_info().rss
        started = time.monotonic()
        senders = [Sender(i, arguments, ready, started + arguments.seconds) for i in range(arguments.senders)]
        for sender in senders:
            sender.start()
        rss, rss_with_merges = [rss_start], [rss_start]
        while any(sender.is_alive() for sender in senders):
            rss.append(process.memory_info().rss)
            rss_with_merges.append(rss_bytes(process))
            time.sleep(0.05)
        wall = time.monotonic() - started
        collector.terminate()
        after = cpu_seconds(process)
        while collector.poll() is None:
            try:
                after = cpu_seconds(process)
                rss.append(process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.002)
        spans = sum(sender.spans for sender in senders)
        cpu = after - before
        latencies = [latency for sender in senders for latency in sender.latencies_ms]
        stored, delays, size = stored_in(data)
        if stored != spans:
            raise SystemExit(f"acknowledged {spans} spans, stored {stored}")
    return {
        "protocol": arguments.protocol,
        "spans_per_request": arguments.spans_per_request,
        "senders": arguments.senders,
        "rate_asked": arguments.rate,
        "spans": spans,
        "spans_per_second": round(spans / wall),
        "spans_per_cpu_second": round(spans / cpu),
        "cores": round(cpu / wall, 2),
        "rss_start_mib": rss_start >> 20,
        "rss_max_mib": max(rss) >> 20,
        "rss_max_with_merges_mib": max(rss_with_merges) >> 20,
        "ack_p50_ms": round(percentile(latencies, 0.5), 1),
        "ack_p99_ms": round(percentile(latencies, 0.99), 1),
        "queryable_p50_s": round(percentile(delays, 0.5), 2),
        "queryable_p99_s": round(percentile(delays, 0.99), 2),
        "bytes_per_span": round(size / spans, 1),
    }


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Spans per CPU-second with all that keeps the collector safe, and without, in pairs of runs that alternate."""
    found: dict[str, list[float]] = {"off": [], "on": []}
    for number in range(arguments.safety):
        for name in ("off", "on") if number % 2 else ("on", "off"):
            run = argparse.Namespace(**vars(arguments) | {"environment": SAFETY[name], "with_token": name == "on"})
            found[name].append(float(measure(run)["spans_per_cpu_second"]))
    costs = [1 - on / off for off, on in zip(found["off"], found["on"], strict=True)]
    return {
        "protocol": arguments.protocol,
        "spans_per_request": arguments.spans_per_request,
        **{f"spans_per_cpu_second_{name}": [round(value) for value in values] for name, values in found.items()},
        "cost_of_each_pair": [f"{cost:+.1%}" for cost in costs],
        "cost_median": f"{statistics.median(costs):+.1%}",
    }


def stored_in(data: str) -> tuple[int, list[float], int]:
    """Spans stored, the delay in seconds of each 100th from its arrival to the commit that shows it, bytes on disk."""
    with Lake(locate(StorageConfig(data=data)), read_only=True) as lake, lake.read() as reader:
        stored = int(reader.row("SELECT count(*) FROM spans")[0])
        delays = reader.rows(
            """
            SELECT epoch(s.snapshot_time) - epoch_ns(i.received_at) / 1e9
            FROM ducklake_table_insertions('lake', 'main', 'spans', 0, ?) i JOIN lake.snapshots() s USING (snapshot_id)
            WHERE hash(i.span_id) % 100 = 0
            """,
            [reader.snapshot_id()],
        )
        size = reader.row("SELECT sum(data_file_size_bytes) FROM ducklake_list_files('lake', 'spans')")[0]
    return stored, [float(delay) for (delay,) in delays], int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--spans-per-request", type=int, default=512)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--rate", type=float, default=0, help="spans per second; 0: as fast as answered")
    parser.add_argument("--folder", default=None, help="where the data folder is made; default: the temporary folder")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--safety", type=int, default=0, metavar="N", help="compare on against off in N pairs of runs")
    parser.set_defaults(environment={}, with_token=False, token=None)
    arguments = parser.parse_args()
    result = (compare if arguments.safety else measure)(arguments) | describe()
    for name, value in result.items():
        print(f"{name:24} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
