"""`kill -9` at random moments under load: 5 times by default, KILLS=50 times in `make faults`, which prints a table."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pyarrow.parquet as pq
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import StorageConfig
from collector.lake import maintain
from collector.lake.lake import Lake
from collector.lake.location import Location, locate

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "1"))
CLIENTS = 4
SPANS_OF_A_REQUEST = 20
DAY_SECONDS = 86_400
FAST = (
    "[collector]\nseal_interval_seconds = 0.05\nmerge_interval_seconds = 0.2\n[telemetry]\nmetrics = ''\nhealth = ''\n"
)


@dataclass
class Client:
    """Sends requests one after the other, each again until it is acknowledged. Counts how often it had to."""

    number: int
    acknowledged: int = 0
    again: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, address: str) -> None:
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), *RECONNECT]) as channel:
            export = channel.unary_unary(EXPORT)
            while not self.stop.is_set():
                body = payload(f"{self.number}-{self.acknowledged}")
                while True:
                    try:
                        export(body, timeout=30, wait_for_ready=True)
                        break
                    except grpc.RpcError:
                        self.again += 1
                self.acknowledged += 1


RECONNECT = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]


def payload(name: str) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for i in range(SPANS_OF_A_REQUEST):
        spans.add(trace_id=b"\1" * 16, span_id=(i + 1).to_bytes(8, "big"), name=name)
    return message.SerializeToString()


def start(data: Path, config: Path, grpc_address: str) -> tuple[subprocess.Popen[str], str]:
    command = [SPANLAKE, "collect", "--config", str(config), "--data", str(data), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--grpc", grpc_address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the collector did not start: {process.wait()}"
    return process, json.loads(line)["grpc"]


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check_files(location: Location) -> int:
    """Both databases are sound, and every live file is there and can be read; how many files there are."""
    for database in (location.catalog, location.spool / "spool.sqlite"):
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        files = reader.rows("SELECT data_file FROM ducklake_list_files('lake', 'spans')")
        for (file,) in files:
            pq.ParquetFile(file).read(columns=["name"])
    return len(files)


HEAD = (
    *("kill", "after", "caught", "acknowledged", "in the lake", "in the spool", "lost", "doubled"),
    *("integrity", "live files", "orphans"),
)


def report(rows: list[tuple[object, ...]]) -> None:
    for row in [HEAD, ("---",) * len(HEAD), *rows]:
        print(f"| {' | '.join(map(str, row))} |")


def caught(location: Location, in_lake: Counter[str], in_spool: set[str], known: set[Path]) -> str:
    """What the kill interrupted, as far as the disk shows it. `known` are the files of former looks; it is filled."""
    files = set((location.files / "main/spans").glob("*"))
    new = unlisted(location) & {path.name for path in files - known}
    known |= files
    if new:
        half = any(name.endswith(".part") for name in new)
        return "a segment, half written" if half else "a segment, before its commit"
    if in_spool & set(in_lake):
        return "a seal, before the spool was trimmed"
    return "requests not sealed yet" if in_spool else "all sealed"


def look(
    location: Location, number: int, pause_seconds: float, clients: list[Client], known: set[Path]
) -> tuple[object, ...]:
    """One row of the table: what is on disk after a kill, which must be all that was acknowledged, once."""
    acknowledged = {f"{client.number}-{i}" for client in clients for i in range(client.acknowledged)}
    files = check_files(location)
    in_lake, in_spool = stored(location), spooled(location)
    lost = len(acknowledged - set(in_lake) - in_spool)
    doubled = sum(spans > SPANS_OF_A_REQUEST for spans in in_lake.values())
    assert (lost, doubled) == (0, 0)
    return (
        number,
        f"{pause_seconds:.3f} s",
        caught(location, in_lake, in_spool, known),
        len(acknowledged),
        len(in_lake),
        len(in_spool),
        lost,
        doubled,
        "ok",
        files,
        orphans(location),
    )


def spooled(location: Location) -> set[str]:
    """The names of the requests in the spool."""
    with closing(sqlite3.connect(location.spool / "spool.sqlite")) as spool:
        payloads = [payload for (payload,) in spool.execute("SELECT payload FROM requests")]
    messages = map(ExportTraceServiceRequest.FromString, payloads)
    return {message.resource_spans[0].scope_spans[0].spans[0].name for message in messages}


def test_kill_at_random_moments_keeps_every_acknowledged_span_once(tmp_path: Path) -> None:
    print(f"\nSEED={SEED} KILLS={KILLS}: {CLIENTS} clients, {SPANS_OF_A_REQUEST} spans a request; all in requests\n")
    rng = random.Random(SEED)
    location = locate(StorageConfig(data=str(tmp_path / "data")))
    config = tmp_path / "spanlake.toml"
    config.write_text(FAST)
    process, address = start(location.root, config, "127.0.0.1:0")
    clients = [Client(number) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(address,)) for client in clients]
    for thread in threads:
        thread.start()
    rows: list[tuple[object, ...]] = []
    known: set[Path] = set()
    try:
        for number in range(1, KILLS + 1):
            before = sum(c.acknowledged for c in clients)
            while sum(c.acknowledged for c in clients) == before:
                time.sleep(0.001)
            pause = rng.uniform(0, 0.6)
            time.sleep(pause)  # the random moment
            kill(process)
            rows.append(look(location, number, pause, clients, known))
            process, _ = start(location.root, config, address)
        for client in clients:
            client.stop.set()
        for thread in threads:
            thread.join(60)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        for client in clients:
            client.stop.set()
        kill(process)
        report(rows)
    expected = {f"{c.number}-{i}": SPANS_OF_A_REQUEST for c in clients for i in range(c.acknowledged)}
    print(f"\nIn the end {len(expected)} requests were acknowledged, {sum(c.again for c in clients)} were sent again.")
    assert stored(location) == expected
    remove_orphans(location)
    assert stored(location) == expected


def stored(location: Location) -> Counter[str]:
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        return Counter(dict(reader.rows("SELECT name, count(*) FROM spans GROUP BY name")))


def orphans(location: Location) -> int:
    """How many files in the folder of the spans the catalog does not know."""
    return len(unlisted(location))


def unlisted(location: Location) -> set[str]:
    """Names of the files in the folder of the spans that the catalog does not know."""
    with closing(sqlite3.connect(location.catalog)) as catalog:
        known = {Path(path).name for (path,) in catalog.execute("SELECT path FROM ducklake_data_file")}
        known |= {
            Path(path).name for (path,) in catalog.execute("SELECT path FROM ducklake_files_scheduled_for_deletion")
        }
    return {path.name for path in (location.files / "main/spans").iterdir()} - known


def remove_orphans(location: Location) -> None:
    """As `maintain.clean` does a day later: every orphan goes, no live file does."""
    before = orphans(location)
    with Lake(location, read_only=False) as lake:
        removed = maintain.clean(lake, time.time() + DAY_SECONDS)
    print(f"\nOrphans before the end: {before}; removed a day later: {removed}; left: {orphans(location)}.")
    assert removed >= before
    assert orphans(location) == 0
    check_files(location)
