"""`spanlake collect` that ends at once, as if killed, before or after a step. For processes of a test."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from collector import collect, seal
from collector.config import CollectorConfig, Config, StorageConfig, TelemetryConfig
from collector.decode.decoder import Decoder
from collector.ingest import Ingest
from collector.lake import segments
from collector.lake.lake import Lake, Transaction
from collector.pipeline import Accepted, TraceRequest
from collector.resources import SeenResources
from collector.spool import Spool

EXIT_CODE = 70
ANSWERED_SECONDS_MAX = 60

Crash = Callable[[], None]

BEFORE_THE_ANSWER: dict[str, tuple[object, str]] = {
    "receive the request": (Ingest, "accept"),
    "look at it, or decode": (Decoder, "screen_or_decode"),
    "write to the spool": (Spool, "append"),
    "hand over to the seal": (seal.Sealer, "offer"),
}
SPOOL_COMMIT = "commit of the spool"
AFTER_THE_ANSWER: dict[str, tuple[object, str]] = {
    "decode": (Decoder, "decode"),
    "write the segment": (seal, "write_segment"),
    "name the segment": (Path, "rename"),
    "bring it to disk, and its name": (segments, "settle"),
    "register the segment": (Transaction, "add_files"),
    "insert resources": (SeenResources, "insert"),
    "move the mark": (Transaction, "advance"),
    "trim the spool": (Spool, "trim"),
}
LAKE_COMMIT = "commit of the lake"
STEPS = [*BEFORE_THE_ANSWER, SPOOL_COMMIT, *AFTER_THE_ANSWER, LAKE_COMMIT]


class _ReadyLine(io.StringIO):
    """Standard output that goes to the test."""

    def __init__(self, test: Connection) -> None:
        super().__init__()
        self._test = test

    def flush(self) -> None:
        self._test.send(self.getvalue())


def run(data: str, step: str, when: str, answered: Connection) -> None:
    """Collect on `data` until the step comes; send the ready line.

    A step of the seal waits until the client says that it has its answer.
    """
    sys.stdout = _ReadyLine(answered)

    def crash() -> None:
        if step in AFTER_THE_ANSWER or step == LAKE_COMMIT:
            answered.poll(ANSWERED_SECONDS_MAX)
        os._exit(EXIT_CODE)

    if step == SPOOL_COMMIT:
        _around_commit(Spool, "_transaction", when, crash)
    elif step == LAKE_COMMIT:
        _around_commit(Lake, "write", when, crash)
    elif step == "receive the request":
        _around_accept(when, crash)
    else:
        owner, name = (BEFORE_THE_ANSWER | AFTER_THE_ANSWER)[step]
        setattr(owner, name, _around(getattr(owner, name), when, crash))
    seal_seconds = 0.02 if step in AFTER_THE_ANSWER or step == LAKE_COMMIT else 60.0
    config = Config(
        storage=StorageConfig(data=data),
        collector=CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0", seal_interval_seconds=seal_seconds),
        telemetry=TelemetryConfig(metrics="", health=""),
    )
    collect.run(config)


def _around(original: Callable[..., Any], when: str, crash: Crash) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        concerned = _is_concerned(original, arguments)
        if concerned and when == "before":
            crash()
        result = original(*arguments, **keywords)
        if concerned:
            crash()
        return result

    return call


def _is_concerned(original: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether this call has to do with the request: the start decodes nothing and renames other files."""
    if original.__name__ == "rename":
        return bool(arguments[0].suffix == segments.TEMPORARY_SUFFIX and arguments[0].parent.name == "spans")
    return original.__name__ != "decode" or bool(arguments[1])


def _around_commit(owner: Any, name: str, when: str, crash: Crash) -> None:
    """Patch a context manager that commits at its end; the commits of the start, with nobody listening, pass."""
    original = getattr(owner, name)

    @contextmanager
    def write(self: Any) -> Iterator[Any]:
        with original(self) as transaction:
            yield transaction
            if when == "before":
                crash()
        crash()

    def listening() -> None:
        setattr(owner, name, write)

    announced = collect._announced  # type: ignore[attr-defined]  # private

    @contextmanager
    def announce(*arguments: Any) -> Iterator[None]:
        with announced(*arguments):
            listening()
            yield

    collect._announced = announce  # type: ignore[attr-defined]  # private


def _around_accept(when: str, crash: Crash) -> None:
    original = Ingest.accept

    async def accept(self: Ingest, request: TraceRequest) -> Accepted:
        if when == "before":
            crash()
        accepted = await original(self, request)
        crash()
        return accepted

    Ingest.accept = accept  # type: ignore[method-assign]  # the method is replaced
