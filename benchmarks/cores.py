"""What a second core adds: spans a second with the collector on one core, and on two.

    python -m benchmarks.cores [--seconds 20] [--pairs 3] [--senders 8] [--collectors 2]

Senders in Python take half a core themselves, so here h2load sends (https://nghttp2.org, Debian's nghttp2-client): each
sender the same request of 512 spans again and again, over gRPC, the next when the last is answered. The recognition of
repeats is off, merges are on. On one core the collector has that core alone and the senders the other; on two it shares
both with them. Exits where what was acknowledged is not stored.

With `--collectors 2` there are two of them on two cores, each with a data folder and half of the senders: they share no
interpreter, no lock and no file, so no way to divide one collector into processes can bring more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.ingest import stored_in
from benchmarks.machine import describe
from benchmarks.process import Collector, collecting, cpu_seconds, stop
from benchmarks.senders import EXPORT, Load

_DONE = re.compile(r"(\d+) done, (\d+) succeeded")
ENVIRONMENT = {"SPANLAKE_COLLECTOR_DEDUP_WINDOW_SECONDS": "0"}


def framed(payload: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, its bytes."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def _command(address: str, body: Path, seconds: float) -> list[str]:
    headers = ("content-type: application/grpc", "te: trailers")
    return [
        "h2load", "--clients=1", "--max-concurrent-streams=1", f"--duration={seconds:.0f}", f"--data={body}",
        *(f"--header={header}" for header in headers), f"http://{address}{EXPORT}",
    ]  # fmt: skip


def measure(
    folder: Path, cores: Sequence[int], senders: int, seconds: float, collectors: int = 1
) -> tuple[float, float]:
    """Spans a second of wall-clock time, and cores that the collectors took, where they may run on `cores` alone."""
    load, every = Load(senders=senders), os.sched_getaffinity(0)
    bodies = [folder / f"body-{number}" for number in range(senders)]
    for number, body in enumerate(bodies):
        body.write_bytes(framed(next(iter(load.traffic(number)))))
    data = [folder / f"data-{number}" for number in range(collectors)]
    os.sched_setaffinity(0, cores)
    with ExitStack() as stack:
        started = [stack.enter_context(collecting(each, ENVIRONMENT)) for each in data]
        os.sched_setaffinity(0, every if len(cores) == len(every) else every - set(cores))
        before, began = _taken(started), time.monotonic()
        commands = [
            _command(started[number % collectors].addresses["grpc"], body, seconds)
            for number, body in enumerate(bodies)
        ]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
        told = [process.communicate()[0] for process in running]
        os.sched_setaffinity(0, every)
        taken, seconds = _taken(started) - before, time.monotonic() - began
        for collector in started:
            stop(collector, [])
    spans = sum(_answered(text) for text in told) * load.spans_per_request
    stored = sum(stored_in(str(each))[0] for each in data)
    # The last request of each sender may be stored and its answer no longer be waited for.
    if not spans <= stored <= spans + senders * load.spans_per_request:
        raise SystemExit(f"acknowledged {spans} spans, stored {stored}")
    return spans / seconds, taken / seconds


def _taken(collectors: Sequence[Collector]) -> float:
    return sum(cpu_seconds(collector.process) for collector in collectors)


def _answered(text: str) -> int:
    found = _DONE.search(text)
    if found is None:
        raise SystemExit(f"h2load did not say how many requests were answered: {text!r}")
    return int(found[2])


def main() -> None:
    """Print spans a second on one core and on two, in pairs that alternate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--collectors", type=int, default=1, help="on two cores; on one there is one")
    options = parser.parse_args()
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing: install it, on Debian with `apt-get install nghttp2-client`")
    every = sorted(os.sched_getaffinity(0))
    if len(every) < 2:
        sys.exit(f"this needs two cores, the process may use {len(every)}")
    ratios = []
    print(f"{'cores':>6}{'spans/s':>10}{'cores taken':>13}")
    for number in range(options.pairs):
        found = {}
        for count in (1, 2) if number % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                collectors = options.collectors if count == 2 else 1
                found[count], taken = measure(Path(folder), every[:count], options.senders, options.seconds, collectors)
            print(f"{count:6}{found[count]:10,.0f}{taken:13.2f}", flush=True)
        ratios.append(found[2] / found[1])
    print(f"two cores to one: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
