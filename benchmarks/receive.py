"""Spans per CPU-second of the receiving servers: `python benchmarks/receive.py [seconds per row]`.

The servers run in a child process, in uvloop, before a sink that discards; the clients in this process.
What counts is the CPU time of the child, so a slow client costs wall time and changes no figure.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from time import monotonic

import grpc
import psutil
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.config import CollectorConfig
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Endpoints, Servers

CLIENTS = 4
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Discard:
    async def accept(self, request: TraceRequest) -> Accepted:
        return Accepted()


async def _serve(pipe: Connection) -> None:
    servers = Servers(CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0"), Discard())
    pipe.send(await servers.start())
    await asyncio.to_thread(pipe.recv)
    await servers.stop(1.0)


def _child(pipe: Connection) -> None:
    uvloop.run(_serve(pipe))


def request_of(spans: int) -> bytes:
    """A request of spans with ten attributes each, of about the size of real ones (not all alike)."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    attribute = resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = "cart"
    scope = resource.scope_spans.add()
    for number in range(spans):
        span = scope.spans.add(name="GET", kind=3, start_time_unix_nano=10**18 + number * 7919)
        span.trace_id = (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128 | 1).to_bytes(16, "big")
        span.span_id = (number * 0x9E3779B97F4A7C15 % 2**64 | 1).to_bytes(8, "big")
        span.end_time_unix_nano = span.start_time_unix_nano + number * 104729 % 10**7
        for index in range(10):
            value = span.attributes.add(key=f"attribute.number.{index}").value
            value.string_value = f"value-{number * (index + 3) * 31 % 997}"
    serialized: bytes = request.SerializeToString()
    return serialized


def _grpc_client(endpoint: str, payload: bytes, compressed: bool, until: float) -> int:
    count = 0
    compression = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
    with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        export = channel.unary_unary(EXPORT)
        while monotonic() < until:
            export(payload, compression=compression)
            count += 1
    return count


def _http_client(endpoint: str, payload: bytes, compressed: bool, until: float) -> int:
    count = 0
    connection = http.client.HTTPConnection(endpoint)
    headers = {"Content-Type": "application/x-protobuf"}
    body = payload
    if compressed:
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(payload, 6)
    while monotonic() < until:
        connection.request("POST", "/v1/traces", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"expected 200, got {answer.status}")
        count += 1
    connection.close()
    return count


def _measure(child: psutil.Process, endpoints: Endpoints, seconds: float) -> None:
    print(f"{'protocol':8} {'gzip':5} {'spans':>5} {'bytes':>7} {'requests/CPU s':>14} {'spans/CPU s':>12}")
    for spans in (512, 100, 1):
        payload = request_of(spans)
        for name, client, endpoint in (
            ("grpc", _grpc_client, endpoints.grpc),
            ("http", _http_client, endpoints.http),
        ):
            for compressed in (False, True):
                before, until = child.cpu_times(), monotonic() + seconds
                with ThreadPoolExecutor(CLIENTS) as threads:
                    jobs = [threads.submit(client, endpoint, payload, compressed, until) for _ in range(CLIENTS)]
                    requests = sum(job.result() for job in jobs)
                after = child.cpu_times()
                cpu = after.user + after.system - before.user - before.system
                print(
                    f"{name:8} {compressed!s:5} {spans:5} {len(payload):7} {requests / cpu:14,.0f} "
                    f"{requests * spans / cpu:12,.0f}"
                )


def main(seconds: float) -> None:
    """Print one row for each protocol, encoding and size of batch."""
    pipe, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(other,))
    process.start()
    try:
        _measure(psutil.Process(process.pid), pipe.recv(), seconds)
    finally:
        pipe.send("stop")
        process.join(10)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
