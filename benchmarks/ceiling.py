"""What two cores of this machine can do at most: the work of two processes, each on a core of its own, to that of one.

    python -m benchmarks.ceiling [--seconds 2]

They share no lock and send nothing: what is less than 2 is the machine's, its memory's and its kernel's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa

from benchmarks.machine import describe
from benchmarks.senders import Load
from collector.config import MappingConfig
from collector.decode.decoder import Decoder
from collector.lake.order import by_tenant_and_time
from collector.lake.segments import write_segment
from collector.pipeline import TraceRequest

_GROUPS = 12
"""Of 8 requests, in a segment."""


def _work(kind: str, folder: Path) -> Callable[[], object]:
    load, decoder = Load(), Decoder(MappingConfig())
    requests = [TraceRequest(next(iter(load.traffic(number))), 1) for number in range(load.senders)]
    spans = pa.Table.from_batches([decoder.decode(requests).spans] * _GROUPS)
    if kind == "decode":
        return lambda: decoder.decode(requests)
    return lambda: write_segment(by_tenant_and_time(spans), folder).unlink()


def _repeat(kind: str, core: int, seconds: float, ready: Barrier, rates: Queue[float]) -> None:
    os.sched_setaffinity(0, [core])
    with tempfile.TemporaryDirectory() as folder:
        work = _work(kind, Path(folder))
        work()
        ready.wait()
        count, began = 0, time.monotonic()
        while time.monotonic() - began < seconds:
            work()
            count += 1
        rates.put(count / (time.monotonic() - began))


def rate(kind: str, cores: list[int], seconds: float) -> float:
    """How often a second the work is done, by a process on each of the cores."""
    context = multiprocessing.get_context("spawn")
    ready, rates = context.Barrier(len(cores)), context.Queue()
    running = [context.Process(target=_repeat, args=(kind, core, seconds, ready, rates)) for core in cores]
    for process in running:
        process.start()
    found = sum(float(rates.get()) for _ in running)
    for process in running:
        process.join()
    return found


def main() -> None:
    """Print rates on one core, on two, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    for kind in ("decode", "write"):
        one, two = (rate(kind, cores[:count], options.seconds) for count in (1, 2))
        print(f"{kind:8}{one:8.1f}/s on one core,{two:8.1f}/s on two: {two / one:.2f}")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
