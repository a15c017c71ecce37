"""Real exporters of several languages, each a process, against a real `spanlake collect`.

Python always; JavaScript where it is installed, with CI set it must be; Go and Java with EXPORTERS=all
(`make exporters` builds and runs them all, and only then is the collector killed under them: that takes a minute).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from collector.config import StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import locate

BIN = Path(sys.executable).parent
APPLICATIONS = Path(__file__).parent / "applications"
BUILT = Path(__file__).parents[1] / "build/exporters"
SPANS = 60
SPANS_UNDER_KILLS = 200
PAUSE_MS = 10
TIMEOUT_SECONDS = 100


@dataclass(frozen=True)
class Exporter:
    """A program that sends spans: its command, the protocols it speaks, the file that shows it is installed."""

    command: tuple[str, ...]
    protocols: tuple[str, ...]
    installed: Path


JAVA_FILES = APPLICATIONS / "java/target"
EXPORTERS = {
    "python": Exporter((sys.executable, str(APPLICATIONS / "python_exporter.py")), ("grpc", "http"), APPLICATIONS),
    "javascript": Exporter(
        ("node", str(APPLICATIONS / "javascript/exporter.js")),
        ("grpc", "proto", "json"),
        APPLICATIONS / "javascript/node_modules/.package-lock.json",
    ),
    "go": Exporter((str(BUILT / "go"),), ("grpc", "http"), BUILT / "go"),
    "java": Exporter(
        (
            "java",
            "-XX:TieredStopAtLevel=1",
            "-cp",
            f"{JAVA_FILES / 'classes'}:{JAVA_FILES / 'dependency'}/*",
            "Exporter",
        ),
        ("grpc", "http"),
        JAVA_FILES / "dependency",
    ),
}
ALL = os.environ.get("EXPORTERS") == "all"
REQUIRED = set(EXPORTERS) if ALL else {"python"}
if os.environ.get("CI") or EXPORTERS["javascript"].installed.exists():
    REQUIRED.add("javascript")
KINDS = [
    (language, protocol, compression)
    for language, exporter in EXPORTERS.items()
    for protocol in exporter.protocols
    for compression in ("none", "gzip")
    if language in REQUIRED
]
PLAIN = [kind for kind in KINDS if kind[2] == "none"]

# What these exporters drop, no server can have: none of the one is ever sent again, and none of the other where
# nobody listens on the port.
NEVER_SEND_AGAIN = {("javascript", "grpc")}
GIVE_UP_WHEN_REFUSED_A_CONNECTION = NEVER_SEND_AGAIN | {("go", "http")}


def require(language: str) -> None:
    assert EXPORTERS[language].installed.exists(), f"the exporter of {language} is not installed: `make exporters`"


@contextmanager
def collecting(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def collect(data: Path, grpc: str = "127.0.0.1:0", http: str = "127.0.0.1:0") -> list[str]:
    return [str(BIN / "spanlake"), "collect", "--data", str(data), "--grpc", grpc, "--http", http]


def stop(process: subprocess.Popen[str]) -> str:
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output


def export_all(
    ready: dict[str, str], kinds: list[tuple[str, str, str]], spans: int, pause_ms: int = 0
) -> list[subprocess.Popen[str]]:
    """All kinds at once, each as a service of its own name."""
    processes = []
    for language, protocol, compression in kinds:
        endpoint = ready["grpc"] if protocol == "grpc" else ready["http"]
        arguments = [protocol, endpoint, compression, str(spans), str(pause_ms), f"{language} {protocol} {compression}"]
        command = [*EXPORTERS[language].command, *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]], spans: int) -> None:
    for process in processes:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        assert json.loads(output.splitlines()[-1]) == {"sent": spans}, errors


def stored(data: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every service, by start."""
    rows: dict[str, list[dict[str, object]]] = {}
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake, lake.read() as reader:
        for row in reader.arrow("SELECT * FROM spans ORDER BY start_time, span_id").to_pylist(maps_as_pydicts="strict"):
            rows.setdefault(row["service_name"], []).append(row)
    return rows


def assert_as_sent(rows: list[dict[str, object]], spans: int) -> None:
    assert [row["name"] for row in rows] == [f"GET {i}" for i in range(spans)]
    assert len({(row["trace_id"], row["span_id"]) for row in rows}) == spans
    for i, row in enumerate(rows):
        assert row["tenant"] == f"tenant-{i % 3}"
        assert row["cache_hit"] == (i % 2 == 0)
        assert (row["payload_bytes"], row["duration_ns"]) == (i, (i + 1) * 1_000_000)
        assert (row["kind"], row["region"], row["operation"]) == ("client", "eu-west-1", "GET")
        assert row["status"] == ("error" if i % 10 == 0 else "unset")
        assert row["status_message"] == ("no such key" if i % 10 == 0 else None)
        attributes = row["attributes"]
        assert isinstance(attributes, dict)
        assert float(attributes["ratio"]) == i / 4 + 0.125
        assert attributes["text"] == "größer — 大"


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """What is stored of all installed exporters, sending at the same time to one collector."""
    data = tmp_path_factory.mktemp("exporters") / "data"
    with collecting(collect(data)) as (process, ready):
        finish(export_all(ready, KINDS, SPANS), SPANS)
        stop(process)
    return stored(data)


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_every_field_arrives(delivered: dict[str, list[dict[str, object]]], kind: tuple[str, str, str]) -> None:
    require(kind[0])
    assert_as_sent(delivered[" ".join(kind)], SPANS)


@pytest.fixture(scope="module")
def delivered_at_third(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """As `delivered`, by a collector that refuses each request before it is stored, and again after."""
    data = tmp_path_factory.mktemp("refused") / "data"
    command = [sys.executable, str(APPLICATIONS / "refusing_collector.py"), str(data)]
    with collecting(command) as (process, ready):
        processes = export_all(ready, PLAIN, SPANS)
        for exporter in processes:
            exporter.wait(TIMEOUT_SECONDS)
        counted = json.loads(stop(process))
    assert counted["refused"] >= len(PLAIN)
    assert counted["answers_lost"] > 0
    return stored(data)


@pytest.mark.parametrize("kind", PLAIN, ids=" ".join)
def test_retryable_refusals_lose_and_double_nothing(
    delivered_at_third: dict[str, list[dict[str, object]]], kind: tuple[str, str, str]
) -> None:
    require(kind[0])
    if kind[:2] in NEVER_SEND_AGAIN:
        assert " ".join(kind) not in delivered_at_third, "it sends again now: hold it to the rule"
    else:
        assert_as_sent(delivered_at_third[" ".join(kind)], SPANS)


def await_stored(data: Path, spans: int) -> None:
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake:
        found = 0
        while found < spans:
            with lake.read() as reader:
                found = reader.row("SELECT count(*) FROM spans")[0]


@pytest.fixture(scope="module")
def delivered_over_kills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """As `delivered`, to a collector that is killed twice while they send, and started again on the same ports."""
    data = tmp_path_factory.mktemp("killed") / "data"
    total = SPANS_UNDER_KILLS * len(PLAIN)
    with collecting(collect(data)) as (process, ready):
        exporters = export_all(ready, PLAIN, SPANS_UNDER_KILLS, PAUSE_MS)
        await_stored(data, total // 5)
        process.send_signal(signal.SIGKILL)
    again = collect(data, ready["grpc"], ready["http"])
    with collecting(again) as (process, _):
        await_stored(data, total // 3)
        process.send_signal(signal.SIGKILL)
    with collecting(again) as (process, _):
        for exporter in exporters:
            exporter.wait(TIMEOUT_SECONDS)
        stop(process)
    return stored(data)


if ALL:  # takes a minute: `make exporters`

    @pytest.mark.parametrize("kind", PLAIN, ids=" ".join)
    def test_a_killed_and_restarted_collector_loses_and_doubles_nothing(
        delivered_over_kills: dict[str, list[dict[str, object]]], kind: tuple[str, str, str]
    ) -> None:
        require(kind[0])
        rows = delivered_over_kills[" ".join(kind)]
        if kind[:2] in GIVE_UP_WHEN_REFUSED_A_CONNECTION:
            names = [row["name"] for row in rows]
            assert len(names) == len(set(names)) <= SPANS_UNDER_KILLS
        else:
            assert_as_sent(rows, SPANS_UNDER_KILLS)
