"""Four senders of unique spans, faults behind the servers: what was sent less what was rejected for good is stored.

The idea is that of the consume contract of the OpenTelemetry Collector's receivers: a sender sends again what was
refused retryably, and counts what was refused for good.
"""

from __future__ import annotations

import asyncio
import http.client
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, StorageConfig
from collector.errors import InvalidRequestError, OverloadedError, RetryableError
from collector.ingest import Ingest
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Endpoints, Servers
from collector.spool import digest_of

FAULTS = ["", "retryable", "overload", "late", "unexpected"]
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SENDERS = 4
REQUESTS_OF_A_SENDER = 60
RETRYABLE_CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass
class FaultySink:
    """Puts seeded faults before and after an Ingest."""

    ingest: Ingest
    rng: random.Random
    injected: Counter[str] = field(default_factory=Counter)

    async def accept(self, request: TraceRequest) -> Accepted:
        fault = self.rng.choices(FAULTS, [6, 1, 1, 1, 1])[0]
        if digest_of(request)[0] < 32:
            fault = "permanent"  # of the request itself: whenever it comes
        self.injected[fault] += 1
        match fault:
            case "retryable":
                raise RetryableError("injected", 0.001)
            case "overload":
                raise OverloadedError("injected", 0.001)
            case "permanent":
                raise InvalidRequestError("injected")
            case "unexpected":
                raise ZeroDivisionError("injected")
        accepted = await self.ingest.accept(request)
        if fault == "late":
            raise RetryableError("injected: it is stored, and the answer is lost", 0.001)
        return accepted


@dataclass
class Sender:
    """Sends requests one by one until each is accepted or refused for good."""

    number: int
    rejected: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)

    def run(self, endpoints: Endpoints, seed: int) -> None:
        rng = random.Random(f"{seed} {self.number}")
        send = self._over_grpc(endpoints.grpc) if self.number % 2 else self._over_http(endpoints.http)
        for i in range(REQUESTS_OF_A_SENDER):
            names = [f"{self.number}-{i}-{j}" for j in range(rng.randrange(1, 8))]
            invalid = rng.randrange(3) if rng.random() < 0.2 else 0
            self.sent += names
            while (outcome := send(payload(names, invalid))) is None:
                pass
            if not outcome:
                self.rejected.update(names)

    def _over_grpc(self, address: str):  # type: ignore[no-untyped-def]  # returns `send`
        channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        export = channel.unary_unary(EXPORT, response_deserializer=ExportTraceServiceResponse.FromString)

        def send(body: bytes) -> bool | None:
            try:
                export(body, timeout=30)
            except grpc.RpcError as error:
                return None if error.code() in RETRYABLE_CODES else False
            return True

        return send

    def _over_http(self, address: str):  # type: ignore[no-untyped-def]  # returns `send`
        connection = http.client.HTTPConnection(address, timeout=30)

        def send(body: bytes) -> bool | None:
            connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            response = connection.getresponse()
            response.read()
            return None if response.status in (429, 502, 503, 504) else response.status == 200

        return send


def payload(names: list[str], invalid: int) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for i, name in enumerate(names):
        number, request, _ = (int(part) for part in name.split("-"))
        trace_id = bytes([number + 1, request]) * 8
        spans.add(
            trace_id=trace_id, span_id=bytes([i + 1]) * 8, name=name, start_time_unix_nano=1, end_time_unix_nano=2
        )
    for _ in range(invalid):
        spans.add(name="invalid")
    return message.SerializeToString()


async def exchange(data: Path, seed: int) -> tuple[list[Sender], Counter[str]]:
    config = Config(storage=StorageConfig(data=str(data)))
    senders = [Sender(number) for number in range(SENDERS)]
    with open_ingest(config, locate(config.storage)) as (ingest, _):
        ingest.start()
        sink = FaultySink(ingest, random.Random(seed))
        servers = Servers(CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0"), sink)
        endpoints = await servers.start()
        with ThreadPoolExecutor(SENDERS) as threads:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(threads, s.run, endpoints, seed) for s in senders))
        await servers.stop(5.0)
    return senders, sink.injected


@pytest.mark.parametrize("seed", range(2))
def test_sent_less_rejected_is_stored(tmp_path: Path, seed: int) -> None:
    senders, injected = uvloop.run(exchange(tmp_path / "data", seed))
    assert set(injected) == {*FAULTS, "permanent"}
    sent = [name for sender in senders for name in sender.sent]
    rejected = {name for sender in senders for name in sender.rejected}
    assert len(sent) == len(set(sent))
    assert rejected
    with Lake(locate(StorageConfig(data=str(tmp_path / "data"))), read_only=True) as lake, lake.read() as reader:
        stored = [name for (name,) in reader.rows("SELECT name FROM spans")]
    assert Counter(stored) == Counter(set(sent) - rejected)
