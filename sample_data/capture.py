"""Records what real SDKs send: runs an application against a real server, keeps its OTLP requests as files.

`python -m sample_data.capture FOLDER redis nats` needs `redis-server` and `nats-server` on the path, and the
packages of the extra `test`. It writes FOLDER/NAME.pb and the same requests as FOLDER/NAME.jsonl.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sample_data.emit_files import framed
from sample_data.otlp_receiver import OtlpReceiver

# What says on which machine a capture was made.
PRIVATE_PREFIXES = ("process.", "host.", "os.", "code.", "thread.", "exception.stacktrace")
_ID_FIELDS = {"traceId", "spanId", "parentSpanId"}
_RUN_SECONDS_MAX = 60
_INSTRUMENTED = (str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable)


def main(argv: Sequence[str]) -> None:
    """Capture the named workloads into a folder."""
    folder, names = Path(argv[0]), argv[1:]
    for name in names:
        requests = [without_private(request) for request in CAPTURES[name]()]
        (folder / f"{name}.pb").write_bytes(b"".join(framed(r) for r in requests))
        (folder / f"{name}.jsonl").write_bytes(b"".join(to_json(r) + b"\n" for r in requests))


def capture_redis(conventions: str = "", rounds: int = 1) -> list[bytes]:
    """Requests of so many rounds of `workloads.redis_cache` under zero-code instrumentation, 30 to 36 spans each.

    `conventions` is the value of OTEL_SEMCONV_STABILITY_OPT_IN; empty for the instrumentation's default.
    """
    with OtlpReceiver() as receiver, _redis_server() as port:
        environment = _environment(receiver.endpoint, "profile-api") | {"OTEL_SEMCONV_STABILITY_OPT_IN": conventions}
        _run([*_INSTRUMENTED, "-m", "sample_data.workloads.redis_cache", str(port), str(rounds)], environment)
        return receiver.requests


def capture_redis_stable() -> list[bytes]:
    """The same with the stable database conventions."""
    return capture_redis("database")


def capture_nats(messages: int = 30) -> list[bytes]:
    """Requests of one publisher and two subscribers of `workloads.nats_topics`, each a process: 3 spans a message."""
    workload = [*_INSTRUMENTED, "-m", "sample_data.workloads.nats_topics"]
    with OtlpReceiver() as receiver, _nats_server() as port:
        server = [str(port), str(messages)]
        subscribers = [
            _subscriber([*workload, "subscribe", *server, group], _environment(receiver.endpoint, group))
            for group in ("billing", "search-index")
        ]
        _run([*workload, "publish", *server], _environment(receiver.endpoint, "orders-api"))
        for process in subscribers:
            process.communicate(timeout=_RUN_SECONDS_MAX)
            _check(process.returncode, process.args)
        return receiver.requests


CAPTURES = {"redis": capture_redis, "redis_stable": capture_redis_stable, "nats": capture_nats}


def _environment(endpoint: str, service: str) -> dict[str, str]:
    region = "cloud.region=eu-west-1,cloud.availability_zone=eu-west-1a"
    return os.environ | {
        "OTEL_SERVICE_NAME": service,
        "OTEL_RESOURCE_ATTRIBUTES": f"{region},service.version=1.0.0,tenant.id=amber-bank",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }


def _run(command: list[str], environment: dict[str, str]) -> None:
    _check(subprocess.run(command, env=environment, timeout=_RUN_SECONDS_MAX, check=False).returncode, command)


def _check(code: int, command: object) -> None:
    if code:
        raise RuntimeError(f"{command} ended with code {code}, expected 0: see its output above")


def _subscriber(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline() != "ready\n":
        process.kill()
        raise RuntimeError(f"{command} did not say that it is ready: see its output above")
    return process


@contextmanager
def _redis_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with tempfile.TemporaryDirectory() as folder, _server(command, "Ready to accept connections", folder):
        yield port


@contextmanager
def _nats_server() -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["nats-server", "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", folder]
        with _server(command, "Server is ready", folder):
            while not (ports := [path for path in Path(folder).glob("*.ports") if path.stat().st_size]):
                time.sleep(0.05)  # It is written after the server says that it is ready.
            url: str = orjson.loads(ports[0].read_bytes())["nats"][0]
            yield int(url.rsplit(":", 1)[1])


@contextmanager
def _server(command: list[str], ready: str, folder: str) -> Iterator[None]:
    """A server as long as the context lasts, entered once its output says that it is ready."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output = process.stdout or ()
            if not any(ready in line for line in output):
                raise RuntimeError(f"{command} ended without the line {ready!r}: is the port taken?")
            yield
        finally:
            process.terminate()


def without_private(request: bytes) -> bytes:
    """A request without the attributes that PRIVATE_PREFIXES names, on resources, spans and events."""
    message = ExportTraceServiceRequest.FromString(request)
    for resource_spans in message.resource_spans:
        _remove_private(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                _remove_private(span.attributes)
                for event in span.events:
                    _remove_private(event.attributes)
    payload: bytes = message.SerializeToString()
    return payload


def _remove_private(attributes: Any) -> None:
    kept = [a for a in attributes if not a.key.startswith(PRIVATE_PREFIXES)]
    del attributes[:]
    attributes.extend(kept)


def to_json(request: bytes) -> bytes:
    """A serialized request in OTLP's JSON: ids in hex, enums as integers, lowerCamelCase."""
    message = MessageToDict(ExportTraceServiceRequest.FromString(request), use_integers_for_enums=True)
    return orjson.dumps(_with_hex_ids(message))


def _with_hex_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_hex_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64decode(item).hex() if key in _ID_FIELDS else _with_hex_ids(item) for key, item in value.items()
    }


if __name__ == "__main__":
    main(sys.argv[1:])
