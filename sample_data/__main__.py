"""`python -m sample_data`: see `docs/simulator.md`."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sample_data.emit_files import OPERATIONS_PER_SECOND, START_SECOND, TENANTS, write_file
from sample_data.emit_otlp import PROTOCOLS
from sample_data.incidents.catalogue import KINDS, Order, parse
from sample_data.incidents.truth import write_truths
from sample_data.simulator import Settings, simulate
from sample_data.stream import Stream
from sample_data.truth import Truth

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed or not all acknowledged, 2 usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.output is None and (options.spans is not None or options.hours is not None):
        parser.error("--spans and --hours say how much goes into a file: give --output FILE too")
    if options.spans is not None and options.hours is not None:
        parser.error("--spans and --hours exclude each other: give one")
    try:
        truth = _send(options) if options.output is None else _write(options)
    except (ValueError, OSError) as error:
        print(f"sample_data: {error}", file=sys.stderr)
        return 1
    report = json.dumps(truth.as_json(), indent=2)
    if options.truth:
        options.truth.write_text(report + "\n")
        if truth.incidents:
            write_truths(options.truth.with_name(f"{options.truth.name}.incidents.jsonl"), truth.incidents)
    print(report)
    return 1 if truth.unacknowledged_spans else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m sample_data", description="Simulate a platform of caches and topics.")
    add = parser.add_argument
    add("--seed", type=int, default=1, help="same seed, same traffic (default %(default)s)")
    add("--tenants", type=int, default=TENANTS, help="number of tenants (default %(default)s)")
    add("--rate", type=float, default=OPERATIONS_PER_SECOND,
        help="mean operations a second, of about 3.7 spans each (default %(default)s)")  # fmt: skip
    add("--start", type=_time, help="time of the first live operation, ISO 8601, UTC unless it says otherwise")
    add("--incident", type=_incident, action="append", default=[], metavar="KIND[:param=value]...@START+DURATION",
        help="an incident, START after the start: noisy_neighbour:factor=5@10m+15m; more than once for more; "
        f"kinds: {', '.join(KINDS)}")  # fmt: skip
    add("--truth", type=Path, metavar="FILE",
        help="write there, too, what was counted; incidents as JSON lines in FILE.incidents.jsonl")  # fmt: skip
    send = parser.add_argument_group("sending")
    send.add_argument("--endpoint", default=Settings.endpoint, help="OTLP endpoint (default %(default)s)")
    send.add_argument("--protocol", choices=PROTOCOLS, default=Settings.protocol, help="(default %(default)s)")
    send.add_argument("--history", type=_duration, default=0.0, help="send this much before the start, fast: 31m, 2h")
    send.add_argument("--duration", type=_duration, help="simulated time to send live (default: until stopped)")
    send.add_argument("--speed", type=float, default=1.0, help="simulated seconds a second; 0: as fast as possible")
    write = parser.add_argument_group("writing a file")
    write.add_argument("--output", type=Path, metavar="FILE", help="file to write, .pb or .jsonl")
    write.add_argument("--spans", type=int, help="exactly so many spans (default 100000)")
    write.add_argument("--hours", type=float, help="so many hours of traffic")
    return parser


def _send(options: argparse.Namespace) -> Truth:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings(
        endpoint=options.endpoint,
        protocol=options.protocol,
        operations_per_second=options.rate,
        seed=options.seed,
        tenants=options.tenants,
        history_seconds=options.history,
        start_second=options.start,
        duration_seconds=options.duration,
        speed=options.speed,
        incidents=tuple(options.incident),
    )
    return simulate(settings, stop)


def _write(options: argparse.Namespace) -> Truth:
    seconds = None if options.hours is None else round(options.hours * 3600)
    start = options.start if options.start is not None else START_SECOND
    stream = Stream(
        seed=options.seed,
        operations_per_second=options.rate,
        tenants=options.tenants,
        start_second=start,
        incidents=options.incident,
    )
    spans = options.spans if options.spans is not None or seconds is not None else 100_000
    return write_file(options.output, stream, spans=spans, seconds=seconds)


def _time(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no ISO 8601 time such as 2026-09-01T12:00:00Z") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _incident(text: str) -> Order:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90, 90s, 31m or 2h")
    return float(match[1]) * _UNIT_SECONDS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
