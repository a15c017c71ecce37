"""The command `analyze`: the jobs on a lake, once or for as long as it runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from analytics.jobs import Progress
    from collector.config import Config
    from collector.lake.location import Location

PROGRESS_AFTER_SECONDS = 1.0
_LOOK_SECONDS = 0.5


@click.command()
@click.option("--data", metavar="DIR", help="Data folder: catalog, data files and spool.")
@click.option("--config", "config_file", metavar="FILE", help="Configuration file (TOML).")
@click.option("--once", is_flag=True, help="Bring everything up to date, print a line of JSON, and exit.")
@click.option("--drop", metavar="NAME", help="Remove the rollups of a set of dimensions that is not configured.")
def analyze(data: str | None, config_file: str | None, once: bool, drop: str | None) -> None:
    """Roll up spans as they come in, and keep what is derived from them up to date.

    Waits for a collector to make the lake, and runs until SIGTERM or Ctrl-C; the run that is on is finished
    first. With --once it works beside another `analyze`: no span is counted twice.
    """
    # The jobs run beside the collector: on one thread they take a seventh less CPU time. Read when polars is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", "1")

    from collector.lake.location import locate
    from collector.settings import load

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = load(config_file, {"storage": {"data": data}})
    location = locate(config.storage)
    if drop is not None:
        _drop(location, config, drop)
        return
    with _stopping() as stop:
        if once:
            _analyze_once(location, config, stop)
        else:
            _analyze_forever(location, config, stop)


def _drop(location: Location, config: Config, name: str) -> None:
    from analytics.rollup import sets
    from collector.errors import OperatorError
    from collector.lake.lake import Lake

    if config.analyze.dimension_sets.get(name):
        raise OperatorError(
            f"set of dimensions {name!r}: expected one that is not configured; first set "
            f"analyze.dimension_sets.{name} = []"
        )
    location.require()
    with Lake(location, read_only=False) as lake:
        sets.drop(lake, name)


def _analyze_once(location: Location, config: Config, stop: threading.Event) -> None:
    from analytics import jobs
    from collector.lake.lake import Lake

    location.require()
    with Lake(location, read_only=False) as lake, _progress() as progress:
        jobs.prepare(lake, config)
        report = jobs.run_once(lake, config, stop, progress)
    click.echo(json.dumps(asdict(report)))


def _analyze_forever(location: Location, config: Config, stop: threading.Event) -> None:
    from analytics import jobs
    from collector.lake.lake import Lake, wait_for_lake
    from collector.lake.lock import ProcessLock

    while not wait_for_lake(location, _LOOK_SECONDS):
        if stop.is_set():
            return
    lock = ProcessLock(location.jobs_lock, "analyzer")
    lock.acquire()
    try:
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake, config)
            jobs.run_forever(lake, config, stop)
    finally:
        lock.release()


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal, from the first run that ends later than PROGRESS_AFTER_SECONDS."""
    begun = time.monotonic()
    spans_before = 0
    bar: click._termui_impl.ProgressBar[int] | None = None

    def show(spans: int, spans_left: int) -> None:
        nonlocal bar, spans_before
        if bar is not None:
            bar.update(spans)
        elif sys.stderr.isatty() and time.monotonic() - begun > PROGRESS_AFTER_SECONDS:
            bar = click.progressbar(length=spans_before + spans + spans_left, label="spans", file=sys.stderr)
            bar.update(spans_before + spans)
        spans_before += spans

    try:
        yield show
    finally:
        if bar is not None:
            bar.render_finish()


COMMANDS = [analyze]
