"""Clients that send a request, wait for the answer, and send the next: over gRPC, HTTP/protobuf or HTTP/JSON."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc

from benchmarks.traffic import Traffic

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PROTOCOLS = {"grpc": "", "http": "application/x-protobuf", "json": "application/json"}
"""And the content type of each that has one."""
DISTINCT_SPANS = {"grpc": 60_000, "http": 60_000, "json": 12_000}
"""Of all senders together; then they repeat with other trace ids. JSON takes long to make."""


@dataclass(frozen=True)
class Load:
    """What is sent: as fast as it is answered, or at `rate` spans a second of all senders together."""

    protocol: str = "grpc"
    spans_per_request: int = 512
    senders: int = 8
    rate: float = 0.0
    rich_share: float = 0.0
    """Of the spans: with events, links and nested values."""
    token: str | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What each request says besides its type."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def traffic(self, number: int) -> Traffic:
        """What sender `number` sends."""
        return Traffic(
            self.spans_per_request,
            DISTINCT_SPANS[self.protocol] // self.senders + self.spans_per_request,
            number,
            rich_share=self.rich_share,
            json=self.protocol == "json",
        )


class Sender(threading.Thread):
    """One client. `latencies_ms` and `spans` tell what was acknowledged."""

    def __init__(self, number: int, load: Load, addresses: Mapping[str, str], begin: threading.Event) -> None:
        """It builds its requests when started, then waits for `begin` and sends until `end`."""
        super().__init__(daemon=True)
        self._number = number
        self._load = load
        self._addresses = addresses
        self._begin = begin
        self.ready = threading.Event()
        self.ends_at = float("inf")
        self.latencies_ms: list[float] = []
        self.spans = 0

    def run(self) -> None:
        """For the thread."""
        load, number = self._load, self._number
        traffic = iter(load.traffic(number))
        send = self._grpc() if load.protocol == "grpc" else self._http()
        pause = load.spans_per_request * load.senders / load.rate if load.rate else 0.0
        self.ready.set()
        self._begin.wait()
        due = time.monotonic() + pause * number / load.senders
        for payload in traffic:
            if pause:
                time.sleep(max(0.0, due - time.monotonic()))
                due += pause
            started = time.monotonic()
            if started > self.ends_at:
                break
            send(payload)
            self.latencies_ms.append((time.monotonic() - started) * 1e3)
            self.spans += load.spans_per_request

    def _grpc(self) -> Callable[[bytes], object]:
        channel = grpc.insecure_channel(self._addresses["grpc"], [("grpc.use_local_subchannel_pool", 1)])
        export = channel.unary_unary(EXPORT)
        return partial(export, metadata=self._load.headers)

    def _http(self) -> Callable[[bytes], object]:
        connection = http.client.HTTPConnection(self._addresses["http"])
        headers = {"Content-Type": PROTOCOLS[self._load.protocol], **dict(self._load.headers)}

        def send(payload: bytes) -> None:
            connection.request("POST", "/v1/traces", payload, headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status} {body!r}")

        return send


def sending(load: Load, addresses: Mapping[str, str], seconds: float) -> tuple[list[Sender], float]:
    """Senders that have begun, all their requests built, and when (monotonic seconds); they end after `seconds`."""
    begin = threading.Event()
    senders = [Sender(number, load, addresses, begin) for number in range(load.senders)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.ready.wait()
    began = time.monotonic()
    for sender in senders:
        sender.ends_at = began + seconds
    begin.set()
    return senders, began
