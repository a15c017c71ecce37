"""Fills the disk below a running collector, frees it again, and prints what its health said as one line of JSON.

full_disk_health.py FOLDER      an empty folder on a small file system of its own
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
RECOVERY_SECONDS_MAX = 60
FREE = {"SPANLAKE_TELEMETRY_METRICS": "", "SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:0"}


def payload(size: int) -> bytes:
    message = ExportTraceServiceRequest()
    span = message.resource_spans.add().scope_spans.add().spans.add(trace_id=os.urandom(16), span_id=os.urandom(8))
    span.attributes.add(key="filler").value.string_value = os.urandom(size // 2).hex()
    return message.SerializeToString()


def request(method: str, address: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/x-protobuf"})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def main(folder: Path) -> None:
    addresses = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    command = [SPANLAKE, "collect", "--data", str(folder / "data"), *addresses]
    collector = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | FREE)
    assert collector.stdout is not None
    ready = json.loads(collector.stdout.readline())
    result: dict[str, object] = {"before": request("GET", ready["health"], "/")[0]}
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(1, free - 6 * 2**20))
    while request("POST", ready["http"], "/v1/traces", payload(200_000))[0] == 200:
        pass
    status, body = request("GET", ready["health"], "/")
    result |= {"full": status, "report": json.loads(body), "live": request("GET", ready["health"], "/live")[0]}
    ballast.unlink()
    deadline = time.monotonic() + RECOVERY_SECONDS_MAX
    while (after := request("GET", ready["health"], "/ready")[0]) != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    result |= {"freed": after, "accepted": request("POST", ready["http"], "/v1/traces", payload(1000))[0]}
    collector.send_signal(signal.SIGTERM)
    print(json.dumps(result | {"exit_code": collector.wait(60)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
