"""A collector in a process of its own, and what it takes: `spanlake collect` on loopback, free ports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

ENVIRONMENT = {"SPANLAKE_TELEMETRY_METRICS": "127.0.0.1:0", "SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:0"}


@dataclass(frozen=True)
class Collector:
    """A collector that is ready: its addresses by key, and the seconds from its start to then."""

    popen: subprocess.Popen[bytes]
    addresses: dict[str, str]
    ready_seconds: float

    @property
    def process(self) -> psutil.Process:
        """The process."""
        return psutil.Process(self.popen.pid)

    def quantile_ms(self, metric: str, q: float) -> float:
        """A quantile of one of its histograms of seconds, linear within the bucket, in milliseconds.

        0 where nothing was counted.
        """
        with urlopen(f"http://{self.addresses['metrics']}/metrics") as response:
            text = response.read().decode()
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"{metric}_bucket"
        ]
        return quantile(buckets, q) * 1e3


def quantile(buckets: list[tuple[float, float]], q: float) -> float:
    """The quantile of a cumulative histogram, (upper bound, count up to it), as Prometheus' histogram_quantile."""
    wanted = q * buckets[-1][1] if buckets else 0.0
    low = below = 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return 0.0


@contextmanager
def collecting(data: Path, environment: Mapping[str, str] | None = None) -> Iterator[Collector]:
    """A collector on the data folder, stopped at the end."""
    command = [sys.executable, "-m", "dashboard.cli", "collect", "--data", str(data)]
    started = time.monotonic()
    with subprocess.Popen(
        [*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
    ) as popen:
        try:
            assert popen.stdout is not None
            addresses = json.loads(popen.stdout.readline())
            yield Collector(popen, addresses, time.monotonic() - started)
        finally:
            popen.terminate()


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of those of its children that have ended."""
    return float(sum(process.cpu_times()[:4]))


def rss_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children; pages that they share count for each."""
    total = int(process.memory_info().rss)
    for running in process.children(recursive=True):
        try:
            total += running.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def stop(collector: Collector, peak: list[int]) -> float:
    """Stop it; its CPU seconds in all. Adds its resident sizes meanwhile to `peak`."""
    process, seconds = collector.process, cpu_seconds(collector.process)
    collector.popen.terminate()
    while collector.popen.poll() is None:
        try:
            seconds = cpu_seconds(process)
            peak.append(process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.002)
    return seconds


def idle(folder: Path, seconds: float) -> dict[str, float]:
    """A collector to which nothing is sent: seconds to ready, and after a second: resident MiB, share of a core."""
    with collecting(folder / "data") as collector:
        time.sleep(1.0)
        before, began = cpu_seconds(collector.process), time.monotonic()
        time.sleep(seconds)
        used = (cpu_seconds(collector.process) - before) / (time.monotonic() - began)
        return {
            "ready_seconds": round(collector.ready_seconds, 2),
            "rss_mib": collector.process.memory_info().rss >> 20,
            "cores": round(used, 4),
        }
