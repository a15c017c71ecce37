"""Where the collector's CPU time goes under load, by stage: `python -m benchmarks.profile [--seconds 15] [--rate R]`.

What each thread took, the kernel tells (/proc/PID/task); where a thread of Python spent it, samples of its stacks tell
(py-spy, https://github.com/benfred/py-spy, which must be installed). A thread of a library counts whole, by its name.
Merges are not in it: they run in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from operator import itemgetter
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.process import Collector, collecting
from benchmarks.senders import Load, sending

PY_SPY = Path(sys.executable).with_name("py-spy")
STAGES_BY_CODE = (
    ("answer", ("_settle (", "_answer (", "response (", "SerializeToString")),
    ("commit", ("Sealer._commit (",)),
    ("write (sort, Parquet)", ("write_segment (", "by_tenant_and_time (")),
    ("spool", ("collector/spool.py",)),
    ("decode (wire)", ("collector/decode/wire.py", "collector/decode/otlp_json.py")),
    ("flatten", ("collector/decode/",)),
    ("receive", ("collector/receive/", "uvloop", "uvicorn", "grpc")),
    ("group, hand over", ("collector/ingest.py", "collector/gathering.py")),
    ("seal, the rest", ("collector/seal.py",)),
    ("maintain, telemetry", ("collector/maintenance.py", "collector/telemetry/")),
)
"""The first whose text stands in any frame of a stack."""
STAGES_BY_THREAD = (
    ("receive", ("event_engine", "grpc", "MainThread", "_poll_wrapper", "otlp-body")),
    ("memory given back (jemalloc)", ("jemalloc",)),
    ("spool", ("spool",)),
    ("group, hand over", ("decode",)),
    ("seal, the rest", ("seal",)),
)
OTHER = "not told"


def stage_of(frames: Iterable[str], thread: str) -> str:
    """The stage of a stack. Pure."""
    text = ";".join(frames)
    for stages, found in ((STAGES_BY_CODE, text), (STAGES_BY_THREAD, thread)):
        for stage, marks in stages:
            if any(mark in found for mark in marks):
                return stage
    return OTHER


def stages(cpu: Mapping[int, float], names: Mapping[int, str], stacks: Iterable[str]) -> dict[str, float]:
    """CPU seconds by stage, of CPU seconds and names by thread and collapsed stacks with counts. Pure."""
    samples: dict[int, Counter[str]] = {}
    for line in stacks:
        stack, count = line.rsplit(" ", 1)
        head, *frames = stack.split(";")
        thread = int(head.partition("(")[2].partition(")")[0])
        name = head.partition(": ")[2]
        samples.setdefault(thread, Counter())[stage_of(frames, name)] += int(count)
    found: defaultdict[str, float] = defaultdict(float)
    for thread, seconds in cpu.items():
        shares = samples.get(thread) or Counter({stage_of((), names.get(thread, "")): 1})
        for stage, share in shares.items():
            found[stage] += seconds * share / shares.total()
    return found


def threads(pid: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds of each thread of a process."""
    found, tick = {}, os.sysconf("SC_CLK_TCK")
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            _, _, rest = (folder / "stat").read_text().rpartition(")")
            fields = rest.split()
            found[int(folder.name)] = (folder / "comm").read_text().strip(), (int(fields[11]) + int(fields[12])) / tick
        except FileNotFoundError:
            continue
    return found


def profiled(collector: Collector, seconds: float, output: Path) -> dict[str, float]:
    """CPU seconds by stage while it is under load."""
    pid = collector.popen.pid
    command = [
        str(PY_SPY),
        "record",
        "--threads",
        "--nonblocking",
        "--rate",
        "100",
        "--format",
        "raw",
        "--pid",
        str(pid),
    ]
    before = threads(pid)
    subprocess.run(
        [*command, "--duration", str(round(seconds)), "--output", str(output)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = threads(pid)
    cpu = {thread: used - before.get(thread, ("", 0.0))[1] for thread, (_, used) in after.items()}
    dumped = subprocess.run([str(PY_SPY), "dump", "--json", "--pid", str(pid)], check=True, capture_output=True).stdout
    names = {thread: name for thread, (name, _) in after.items()}
    names |= {int(t["os_thread_id"]): str(t["thread_name"]) for t in json.loads(dumped) if t.get("os_thread_id")}
    return stages(cpu, names, output.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print the stages, and how much of the time they account for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--spans-per-request", type=int, default=512)
    parser.add_argument("--rate", type=float, default=0, help="spans per second; 0: as fast as answered")
    options = parser.parse_args()
    if not PY_SPY.exists():
        sys.exit(f"{PY_SPY} is missing: expected py-spy beside Python; install it with `pip install py-spy`")
    load = Load(spans_per_request=options.spans_per_request, rate=options.rate)
    with tempfile.TemporaryDirectory() as folder, collecting(Path(folder) / "data") as collector:
        senders, _ = sending(load, collector.addresses, options.seconds + 3)
        found = profiled(collector, options.seconds, Path(folder) / "stacks")
        for sender in senders:
            sender.join()
    total = sum(found.values())
    print(f"{'stage':32}{'CPU s':>8}{'share':>8}")
    for stage, seconds in sorted(found.items(), key=itemgetter(1), reverse=True):
        print(f"{stage:32}{seconds:8.2f}{seconds / total:8.1%}")
    print(f"accounted for: {1 - found.get(OTHER, 0.0) / total:.1%} of {total:.2f} CPU seconds")
    print(", ".join(f"{name} {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
