"""What a group of few spans takes to decode, and to be looked at only (ADR 29): `python -m benchmarks.groups`.

Requests of 100 spans. In a loop, and after a pause as long as a collector has at 10,000 spans/s, when the processor's
caches are no longer full of it; receiving and spooling are not in it. CPU time of the thread, medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.machine import describe
from benchmarks.senders import Load
from collector.config import MappingConfig
from collector.decode.decoder import Decoded, Decoder
from collector.footprint import reduce_footprint
from collector.pipeline import TraceRequest

SPANS_PER_REQUEST = 100
REQUESTS = (1, 8, 100)
PAUSE_SECONDS = 0.08


def cpu_ms(work: Callable[[], object], rounds: int, pause_seconds: float = 0.0) -> float:
    """The median CPU time of `work` in this thread."""
    taken = []
    for _ in range(rounds):
        time.sleep(pause_seconds)
        before = time.thread_time()
        work()
        taken.append(time.thread_time() - before)
    return 1e3 * statistics.median(taken)


def main() -> None:
    """Print CPU milliseconds by spans of a group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    reduce_footprint()
    decoder, load = Decoder(MappingConfig()), Load(spans_per_request=SPANS_PER_REQUEST)
    print(f"{'spans':>8}{'decoded':>10}{'a pause':>10}{'looked at':>12}{'a pause':>10}   CPU ms")
    for count in REQUESTS:
        group = [TraceRequest(next(iter(load.traffic(number % load.senders))), 1) for number in range(count)]
        works: list[Callable[[], object]] = [partial(decoder.decode, group)]
        if not isinstance(decoder.screen_or_decode(group), Decoded):
            works.append(partial(decoder.screen_or_decode, group))
        found = [cpu_ms(work, rounds, pause) for work in works for pause in (0.0, PAUSE_SECONDS)]
        print(f"{SPANS_PER_REQUEST * count:8,}{found[0]:10.2f}{found[1]:10.2f}", end="")
        print(f"{found[2]:12.2f}{found[3]:10.2f}" if found[2:] else f"{'is decoded':>12}")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
