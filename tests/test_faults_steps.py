"""A crash before and after every step of a request's way: what is left on disk, what the client sees, what comes of it.

Some of the steps by default, all of them with FAULTS=all (`make faults`). What is found must be what the table in
docs/faults.md says; FAULTS=write writes the table anew.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import os
import re
import shutil
import sqlite3
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path

import pytest
from applications import crashing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.collect import open_ingest
from collector.config import Config, StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.pipeline import Accepted, TraceRequest

PAGE = Path(__file__).parents[1] / "docs/faults.md"
CASES = [(step, when) for step in crashing.STEPS for when in ("before", "after")]
ALL = os.environ.get("FAULTS")
USUAL = [
    ("write to the spool", "before"),
    (crashing.SPOOL_COMMIT, "after"),
    ("name the segment", "before"),
    (crashing.LAKE_COMMIT, "before"),
    (crashing.LAKE_COMMIT, "after"),
]
TABLE = re.compile(r"(<!-- generated: crashes -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def payload(name: str) -> bytes:
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = f"service of {name}"
    span = resource_spans.scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name=name)
    span.start_time_unix_nano, span.end_time_unix_nano = 1, 2
    return message.SerializeToString()


@pytest.fixture(scope="module")
def processes() -> SpawnContext:
    return multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    recover(locate(StorageConfig(data=str(folder))), [])
    return folder


def recover(location: Location, again: list[bytes]) -> None:
    """Start on the folder, send what a client sends again, and stop."""

    async def scenario() -> None:
        with open_ingest(Config(storage=StorageConfig(data=str(location.root))), location) as (ingest, _):
            ingest.start()
            for body in again:
                assert await ingest.accept(TraceRequest(body, 1)) == Accepted()

    asyncio.run(scenario())


def post(address: str, body: bytes) -> str:
    """What the client sees."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
        return str(connection.getresponse().status)
    except (ConnectionError, http.client.HTTPException):
        return "no answer"
    finally:
        connection.close()


def left(location: Location) -> str:
    """What a crash left, in words."""
    with closing(sqlite3.connect(location.spool / "spool.sqlite")) as spool:
        (spooled,) = spool.execute("SELECT count(*) FROM requests").fetchone()
        (known,) = spool.execute(
            "SELECT (SELECT count(*) FROM digests_0) + (SELECT count(*) FROM digests_1)"
        ).fetchone()
    with closing(sqlite3.connect(location.catalog)) as catalog:
        rows = catalog.execute("SELECT path FROM ducklake_data_file")
        listed = {Path(path).name for (path,) in rows}
    files = {path.name for path in location.files.rglob("segment-*")}
    parts = [name for name in files if name.endswith(".part")]
    found = []
    if spooled:
        found.append("the request in the spool")
    elif known:
        found.append("its digest")
    if parts:
        found.append("a `.part` file")
    if files - listed - set(parts):
        found.append("an unregistered segment")
    if files & listed:
        found.append("the spans in the lake")
    return ", ".join(found) or "nothing"


def crash(processes: SpawnContext, prepared: Path, folder: Path, step: str, when: str) -> list[str]:
    """The row of a table: step, crash, what the client sees, what is left, what is stored in the end."""
    location = locate(StorageConfig(data=str(folder / "data")))
    shutil.copytree(prepared, location.root)
    body = payload(step)
    here, there = processes.Pipe()
    process = start(processes, location, step, when, there)
    try:
        assert here.poll(60), "the collector did not start"
        seen = post(json.loads(here.recv())["http"], body)
        if seen == "200":
            here.send("answered")
        process.join(60)
        assert process.exitcode == crashing.EXIT_CODE
    finally:
        process.kill()
        process.join()
    found = left(location)
    recover(location, [body, body])  # also where it was answered: that may have been lost on its way
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        stored = reader.row("SELECT count(*) FROM spans")[0]
        resources = reader.row("SELECT count(*) FROM resources")[0]
    assert resources == 1
    client = "200" if seen == "200" else "no answer: sends again"
    return [step, when, client, found, "once" if stored == 1 else f"{stored} times"]


def start(
    processes: SpawnContext, location: Location, step: str, when: str, answered: Connection
) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=crashing.run, args=(str(location.root), step, when, answered))
    process.start()
    answered.close()
    return process


def line(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"


HEAD = [["step", "crash", "the client sees", "recovery finds", "stored in the end"], ["---"] * 5]


@pytest.mark.parametrize(("step", "when"), CASES if ALL else USUAL, ids=str)
def test_a_crash_at_any_step_loses_and_doubles_nothing(
    processes: SpawnContext, prepared: Path, tmp_path: Path, step: str, when: str
) -> None:
    row = crash(processes, prepared, tmp_path, step, when)
    assert row[-1] == "once"
    if ALL == "write":
        write(step, when, line(row))
    assert line(row) in PAGE.read_text().splitlines(), "run it with FAULTS=write"


def write(step: str, when: str, row: str) -> None:
    """Put a row of the table in its place."""
    text = PAGE.read_text()
    match = TABLE.search(text)
    assert match is not None
    rows = {tuple(found.split(" | ")[:2]): found for found in match[2].splitlines()[2:]}
    rows[f"| {step}", when] = row
    ordered = [rows[f"| {step}", when] for step, when in CASES if (f"| {step}", when) in rows]
    table = "\n".join([*map(line, HEAD), *ordered])
    PAGE.write_text(text[: match.start(2)] + table + "\n" + text[match.end(2) :])


def test_the_table_has_every_step() -> None:
    match = TABLE.search(PAGE.read_text())
    assert match is not None
    rows = [tuple(found.removeprefix("| ").split(" | ")[:2]) for found in match[2].splitlines()[2:]]
    assert rows == CASES
