"""Ingest end to end: spans per CPU-second of the whole collector process, acknowledgement latency, delay to queries.

    python -m benchmarks.ingest [--seconds 20] [--spans-per-request 512] [--protocol grpc|http|json]
                                [--rate SPANS_A_SECOND] [--rich-share 0.1] [--senders 8]
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
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.process import Collector, collecting, cpu_seconds, rss_bytes, stop
from benchmarks.senders import PROTOCOLS, Load, Sender, sending
from collector.config import StorageConfig, TenantQuota
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.tenants.tokens import TokenFile

SAFETY = {
    "off": {"SPANLAKE_COLLECTOR_DEDUP_WINDOW_SECONDS": "0"},
    "on": {
        "SPANLAKE_AUTH_ENABLED": "true",
        "SPANLAKE_QUOTAS_SPANS_PER_SECOND": "1e9",
        "SPANLAKE_QUOTAS_BYTES_PER_SECOND": "1e12",
    },
}
LOOK_SECONDS = 0.05
COMMIT_METRIC = "spanlake_commit_duration_seconds"


def percentile(values: list[float], q: float) -> float:
    """The quantile of values that are sorted or not."""
    return statistics.quantiles(values, n=1000, method="inclusive")[int(q * 1000) - 1] if len(values) > 1 else values[0]


def measure(load: Load, seconds: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `seconds` of a load cost, and how it was answered. Exits where what was acknowledged is not stored."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        if environment and "SPANLAKE_AUTH_ENABLED" in environment:
            load = replace(load, token=TokenFile(data).add("benchmark", TenantQuota())[0])
        with collecting(data, environment) as collector:
            senders, taken = _under_load(collector, load, seconds)
        spans = sum(sender.spans for sender in senders)
        stored, delays, size = stored_in(str(data))
    if stored != spans:
        raise SystemExit(f"acknowledged {spans} spans, stored {stored}")
    latencies = [latency for sender in senders for latency in sender.latencies_ms]
    cpu, wall = taken.pop("cpu_seconds"), taken.pop("wall_seconds")
    return {
        **{key: value for key, value in asdict(load).items() if key != "token"},
        "spans": spans,
        "spans_per_second": round(spans / wall),
        "spans_per_cpu_second": round(spans / cpu),
        "cpu_us_per_request": round(cpu / len(latencies) * 1e6),
        "cores": round(cpu / wall, 3),
        **taken,
        "ack_p50_ms": round(percentile(latencies, 0.5), 1),
        "ack_p99_ms": round(percentile(latencies, 0.99), 1),
        "queryable_p50_s": round(percentile(delays, 0.5), 2),
        "queryable_p99_s": round(percentile(delays, 0.99), 2),
        "bytes_per_span": round(size / spans, 1),
    }


def _under_load(collector: Collector, load: Load, seconds: float) -> tuple[list[Sender], dict[str, float]]:
    """Let a load come, then stop the collector; the senders, and what it took."""
    process = collector.process
    rss, with_merges, rss_start = [0], [0], process.memory_info().rss
    before = cpu_seconds(process)
    senders, began = sending(load, collector.addresses, seconds)
    while any(sender.is_alive() for sender in senders):
        rss.append(process.memory_info().rss)
        with_merges.append(rss_bytes(process))
        time.sleep(LOOK_SECONDS)
    wall_seconds = time.monotonic() - began
    commits = {f"commit_p{round(100 * q)}_ms": collector.quantile_ms(COMMIT_METRIC, q) for q in (0.5, 0.99)}
    return senders, {
        "wall_seconds": wall_seconds,
        "cpu_seconds": stop(collector, rss) - before,
        "rss_start_mib": rss_start >> 20,
        "rss_max_mib": max(rss) >> 20,
        "rss_max_with_merges_mib": max(with_merges) >> 20,
        **{name: round(value, 1) for name, value in commits.items()},
    }


def compare(load: Load, seconds: float, pairs: int) -> dict[str, object]:
    """Spans per CPU-second with all that keeps the collector safe, and without, in pairs of runs that alternate."""
    found: dict[str, list[float]] = {"off": [], "on": []}
    for number in range(pairs):
        for name in ("off", "on") if number % 2 else ("on", "off"):
            found[name].append(float(measure(load, seconds, SAFETY[name])["spans_per_cpu_second"]))
    costs = [1 - on / off for off, on in zip(found["off"], found["on"], strict=True)]
    return {
        "protocol": load.protocol,
        "spans_per_request": load.spans_per_request,
        **{f"spans_per_cpu_second_{name}": [round(value) for value in values] for name, values in found.items()},
        "cost_of_each_pair": [f"{cost:+.1%}" for cost in costs],
        "cost_median": f"{statistics.median(costs):+.1%}",
    }


def stored_in(data: str) -> tuple[int, list[float], int]:
    """Spans stored, the delay in seconds of each 100th from its arrival to the commit that shows it, bytes on disk.

    The delay of one of them where there are fewer.
    """
    with Lake(locate(StorageConfig(data=data)), read_only=True) as lake, lake.read() as reader:
        stored = int(reader.row("SELECT count(*) FROM spans")[0])
        delays = reader.rows(
            """
            SELECT epoch(s.snapshot_time) - epoch_ns(i.received_at) / 1e9
            FROM ducklake_table_insertions('lake', 'main', 'spans', 0, ?) i JOIN lake.snapshots() s USING (snapshot_id)
            QUALIFY hash(i.span_id) % 100 = 0 OR row_number() OVER () = 1
            """,
            [reader.snapshot_id()],
        )
        size = reader.row("SELECT sum(data_file_size_bytes) FROM ducklake_list_files('lake', 'spans')")[0]
    return stored, [float(delay) for (delay,) in delays], int(size)


def main() -> None:
    """Print figures by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--spans-per-request", type=int, default=512)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="grpc")
    parser.add_argument("--rate", type=float, default=0, help="spans per second; 0: as fast as answered")
    parser.add_argument("--rich-share", type=float, default=0, help="of the spans: events, links, nested values")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--safety", type=int, default=0, metavar="N", help="compare on against off in N pairs of runs")
    options = parser.parse_args()
    load = Load(options.protocol, options.spans_per_request, options.senders, options.rate, options.rich_share)
    found = compare(load, options.seconds, options.safety) if options.safety else measure(load, options.seconds)
    result = found | describe()
    for name, value in result.items():
        print(f"{name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
