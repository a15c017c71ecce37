"""How many spans a CPU-second `sample_data.frames` makes of operations: `python -m benchmarks.frames`."""

from __future__ import annotations

import json
import time

from benchmarks import machine
from sample_data.columns import joined
from sample_data.emit_files import START_SECOND, TENANTS
from sample_data.frames import Frames
from sample_data.model import Workload
from sample_data.topology import build_topology

OPERATIONS_PER_SECOND = 1700.0
SECONDS = 240
ROUNDS = 5


def main() -> None:
    """Print spans per CPU-second, of the best and the median round, and what drawing the operations takes."""
    topology = build_topology(1, TENANTS)
    workload, frames = Workload(topology, 1, OPERATIONS_PER_SECOND), Frames(topology)
    began = time.process_time()
    operations = joined([workload.operations(START_SECOND + second) for second in range(SECONDS)])
    drawing = time.process_time() - began
    rates, spans = [], 0
    for _ in range(ROUNDS):
        began = time.process_time()
        spans = frames.spans(operations).height
        rates.append(spans / (time.process_time() - began))
    figures = {"spans": spans, "best_per_cpu_second": max(rates), "median_per_cpu_second": sorted(rates)[ROUNDS // 2]}
    print(json.dumps(figures | {"drawn_per_cpu_second": spans / drawing} | machine.describe(), indent=1))


if __name__ == "__main__":
    main()
