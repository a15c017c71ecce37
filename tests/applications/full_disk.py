"""Fills the disk below a running collector, frees it again, and prints what happened as one line of JSON.

full_disk.py FOLDER      an empty folder on a small file system of its own
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPANLAKE = str(Path(sys.executable).with_name("spanlake"))
FULL_SECONDS_MAX = 60


def payload(name: str, size: int) -> bytes:
    message = ExportTraceServiceRequest()
    span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=os.urandom(16), span_id=os.urandom(8))
    span.name = name
    span.attributes.add(key="filler").value.string_value = os.urandom(size // 2).hex()
    return message.SerializeToString()


def post(address: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
    status = connection.getresponse().status
    connection.close()
    return status


def main(folder: Path) -> None:
    data = folder / "data"
    command = [SPANLAKE, "collect", "--data", str(data), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    collector = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert collector.stdout is not None
    address = json.loads(collector.stdout.readline())["http"]
    statuses = []
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.truncate(0)
        os.posix_fallocate(
            file.fileno(), 0, max(0, os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - 6 * 2**20)
        )
    while statuses.count(200) == len(statuses) < 1000:
        statuses.append(post(address, payload(f"{len(statuses):04}", 200_000)))
    alive = collector.poll() is None
    ballast.unlink()
    deadline = time.monotonic() + FULL_SECONDS_MAX
    while statuses[-1] != 200 and time.monotonic() < deadline:
        statuses.append(post(address, payload(f"{len(statuses):04}", 1_000)))
    collector.send_signal(signal.SIGTERM)
    exit_code = collector.wait(60)
    query = [SPANLAKE, "sql", "--data", str(data), "--format", "json", "SELECT name FROM spans ORDER BY name"]
    stored = json.loads(subprocess.run(query, capture_output=True, check=True).stdout)
    print(
        json.dumps(
            {
                "statuses": sorted(set(statuses)),
                "alive": alive,
                "recovered": statuses[-1] == 200,
                "exit_code": exit_code,
                "acknowledged": [f"{i:04}" for i, status in enumerate(statuses) if status == 200],
                "stored": [row["name"] for row in stored],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
