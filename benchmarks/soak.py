"""An hour of load, minute by minute: does memory stay flat, do files stay few, is what was acknowledged queryable soon?

    python -m benchmarks.soak [--minutes 60] [--rate SPANS_A_SECOND] [--spans-per-request 512] [--folder FOLDER]

A collector of its own, merges included, under senders that wait for each answer. At the end of each minute: spans a
second, spans per CPU-second, resident memory (highest of the minute) without and with the process that merges, live
files of `spans`, percentiles of acknowledgements, how old the newest span is that a query sees. Exits where what was
acknowledged is not stored. An hour at full load fills some 20 GB of --folder, removed at the end.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ingest import LOOK_SECONDS, percentile
from benchmarks.machine import describe
from benchmarks.process import Collector, collecting, cpu_seconds, rss_bytes, stop
from benchmarks.senders import Load, Sender, sending
from collector.config import StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import locate


@dataclass(frozen=True)
class Minute:
    """What one minute of load was like; times of the machine's clock in seconds, memory at its highest."""

    spans_per_second: float
    spans_per_cpu_second: float
    rss_mib: float
    rss_with_merges_mib: float
    live_files: int
    ack_p50_ms: float
    ack_p99_ms: float
    queryable_age_s: float


COLUMNS = tuple(Minute.__dataclass_fields__)


def slope(values: Sequence[float]) -> float:
    """By how much values grow from one to the next, as Theil and Sen estimate it: outliers do not count. Pure."""
    slopes = [(b - a) / (j - i) for i, a in enumerate(values) for j, b in enumerate(values[i + 1 :], i + 1)]
    return statistics.median(slopes) if slopes else 0.0


def _minute(collector: Collector, data: Path, senders: Sequence[Sender], ends_at: float) -> Minute:
    process = collector.process
    began, cpu = time.monotonic(), cpu_seconds(process)
    spans, seen = sum(sender.spans for sender in senders), [len(sender.latencies_ms) for sender in senders]
    rss, with_merges = [0], [0]
    while time.monotonic() < ends_at:
        rss.append(process.memory_info().rss)
        with_merges.append(rss_bytes(process))
        time.sleep(LOOK_SECONDS)
    seconds, cpu = time.monotonic() - began, cpu_seconds(process) - cpu
    taken = sum(sender.spans for sender in senders) - spans
    latencies = [ms for sender, count in zip(senders, seen, strict=True) for ms in sender.latencies_ms[count:]]
    live_files, age = _seen(data)
    return Minute(
        spans_per_second=taken / seconds,
        spans_per_cpu_second=taken / cpu,
        rss_mib=max(rss) / 2**20,
        rss_with_merges_mib=max(with_merges) / 2**20,
        live_files=live_files,
        ack_p50_ms=percentile(latencies, 0.5),
        ack_p99_ms=percentile(latencies, 0.99),
        queryable_age_s=age,
    )


def _seen(data: Path) -> tuple[int, float]:
    """Live files of `spans`, and the age in seconds of the newest span that a query sees."""
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake, lake.read() as reader:
        asked = time.time()
        files = int(reader.row("SELECT count(*) FROM ducklake_list_files('lake', 'spans')")[0])
        newest = reader.row(
            "SELECT epoch_ns(max(received_at)) FROM spans WHERE received_at > make_timestamp_ns(?)",
            [int((asked - 60) * 1e9)],
        )[0]
    return files, asked - (newest or 0) / 1e9


def measure(load: Load, minutes: int, folder: str | None) -> list[Minute]:
    """Let a load come for so many minutes, printing each."""
    found: list[Minute] = []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        data = Path(made) / "data"
        with collecting(data) as collector:
            senders, began = sending(load, collector.addresses, minutes * 60.0)
            for number in range(1, minutes + 1):
                found.append(_minute(collector, data, senders, began + 60.0 * number))
                print(_line(number, found[-1]), flush=True)
            for sender in senders:
                sender.join()
            stop(collector, [])
        with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake, lake.read() as reader:
            stored = int(reader.row("SELECT count(*) FROM spans")[0])
    spans = sum(sender.spans for sender in senders)
    if stored != spans:
        raise SystemExit(f"acknowledged {spans} spans, stored {stored}")
    print(f"acknowledged and stored: {spans}")
    return found


def _line(number: int, minute: Minute) -> str:
    return f"{number:6}" + "".join(f"{getattr(minute, name):{len(name) + 2},.1f}" for name in COLUMNS)


def main() -> None:
    """Print a line for each minute, and how memory and files grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0, help="spans per second; 0: as fast as answered")
    parser.add_argument("--spans-per-request", type=int, default=512)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--folder", default=None, help="where the data lie meanwhile")
    options = parser.parse_args()
    load = Load("grpc", options.spans_per_request, options.senders, options.rate)
    print("minute" + "".join(f"  {name}" for name in COLUMNS))
    found = measure(load, options.minutes, options.folder)
    for name in ("rss_mib", "rss_with_merges_mib", "live_files"):
        values = [float(getattr(minute, name)) for minute in found]
        print(f"{name}: highest {max(values):,.0f}, grows by {slope(values) * 60:,.1f} an hour")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
