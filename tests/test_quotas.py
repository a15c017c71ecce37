"""Quotas and fairness: buckets, bounds, queues; and what a client of the real servers sees of them."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import uvloop
from google.rpc.error_details_pb2 import RetryInfo
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from collector.collect import open_ingest
from collector.config import AuthConfig, CollectorConfig, Config, QuotasConfig, StorageConfig, TenantQuota
from collector.errors import OverloadedError
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.receive.admission import HEADROOM, Admission, Ticket
from collector.receive.servers import Endpoints, Servers
from collector.tenants import quotas as quotas_module
from collector.tenants.counters import TenantCounters
from collector.tenants.errors import QuotaExceededError
from collector.tenants.fair_queue import CONTENDED_SECONDS, FairQueue
from collector.tenants.gate import Gate
from collector.tenants.quotas import Quota, Quotas
from collector.tenants.tokens import TokenFile

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Buckets.


@settings(deadline=None)
@given(
    rate=st.floats(1, 1000),
    burst_seconds=st.floats(0.1, 20),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 250)), max_size=60),
)
def test_over_time_no_tenant_gets_more_than_burst_and_rate(
    rate: float, burst_seconds: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    found = Quotas(QuotasConfig(spans_per_second=rate, burst_seconds=burst_seconds), clock)
    quota = found.of("a")
    began, taken, largest = clock.now, 0, 0
    for pause, spans in steps:
        clock.now += pause
        try:
            found.check("a", "a", quota)
        except QuotaExceededError as error:
            clock.now += error.retry_after_seconds * 1.000001
            found.check("a", "a", quota)
        found.charge("a", quota, spans=spans)
        taken, largest = taken + spans, max(largest, spans)
        assert taken - largest <= (clock.now - began + burst_seconds) * rate * 1.001


def test_a_refusal_says_which_quota_and_when_to_come_back() -> None:
    clock = Clock()
    found = Quotas(QuotasConfig(spans_per_second=10, bytes_per_second=100, burst_seconds=1), clock)
    quota = found.of("acme")
    found.charge("acme", quota, spans=40, size_bytes=150)
    with pytest.raises(
        QuotaExceededError, match=r"'acme' is over its quota of 10 spans per second"
    ) as raised:
        found.check("acme", "acme", quota)
    assert raised.value.retry_after_seconds == pytest.approx(3.0)
    found.charge("acme", quota, size_bytes=1000)
    with pytest.raises(QuotaExceededError, match=r"quota of 100 bytes per second"):
        found.check("acme", "acme", quota)
    found.charge("acme", quota, size_bytes=-1050)
    clock.now += 3.0
    found.check("acme", "acme", quota)
    found.check("other", "other", found.of("other"))


def test_limits_go_by_token_then_tenant_then_default() -> None:
    found = Quotas(
        QuotasConfig(
            spans_per_second=1, bytes_per_second=2, tenants={"acme": TenantQuota(spans_per_second=10)}
        )
    )
    assert found.of("other") == Quota(1, 2, 10)
    assert found.of("acme") == Quota(10, 2, 10)
    assert found.of("acme", TenantQuota(spans_per_second=0, burst_seconds=3)) == Quota(0, 2, 3)
    assert found.of("acme", TenantQuota()) == Quota(10, 2, 10)


def test_a_token_with_limits_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    texts = [
        file.add("acme", limits)[0]
        for limits in (TenantQuota(), TenantQuota(), TenantQuota(spans_per_second=5))
    ]
    config = QuotasConfig(spans_per_second=1)
    found = Gate(AuthConfig(enabled=True), config, tmp_path, TenantCounters(), Clock())
    first, second, own = (found.identify([], [f"Bearer {text}"]) for text in texts)
    found.settle(first, 10, Accepted(spans=100))
    with pytest.raises(QuotaExceededError):
        found.check(second)
    found.check(own)


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas_module, "BUCKETS_MAX", 3)
    found = Quotas(QuotasConfig(spans_per_second=1), Clock())
    for i in range(10):
        found.charge(f"tenant-{i}", found.of("x"), spans=1)
    assert len(found._buckets) == 3


# Shared bounds.

TENANTS = ("a", "b", "c")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(TENANTS), st.integers(1, 60), st.booleans()),
        max_size=80,
    )
)
def test_who_is_under_the_fair_share_is_refused_last(steps: list[tuple[str, int, bool]]) -> None:
    most = 100
    admission = Admission(1000, most)
    held: dict[str, list[tuple[Ticket, int]]] = {tenant: [] for tenant in TENANTS}
    for tenant, size, give_back in steps:
        if give_back and held[tenant]:
            held[tenant].pop()[0].release()
            continue
        holdings = {name: sum(size for _, size in tickets) for name, tickets in held.items()}
        total, own = sum(holdings.values()), holdings[tenant]
        sharing = sum(1 for name, amount in holdings.items() if amount or name == tenant)
        under = (own == 0 or own + size <= most / sharing) and total + size <= most * (1 + HEADROOM)
        expected = total == 0 or total + size <= most or under
        try:
            ticket = admission.ticket(tenant)
            ticket.hold(size)
        except OverloadedError:
            assert not expected
        else:
            assert expected
            held[tenant].append((ticket, size))
    for tickets in held.values():
        for ticket, _ in tickets:
            ticket.release()
    assert admission.pending_bytes == 0
    assert admission._bytes._by_account == {}


def test_one_tenant_may_have_all_and_another_still_gets_in() -> None:
    admission = Admission(8, 1000)
    tickets = [admission.ticket("noisy") for _ in range(8)]
    for ticket in tickets:
        ticket.enter()
        ticket.hold(125)
    with pytest.raises(OverloadedError):
        admission.ticket("noisy")
    quiet = admission.ticket("quiet")
    quiet.enter()
    quiet.hold(100)
    tickets[0].release()
    with pytest.raises(OverloadedError):
        admission.ticket("noisy").hold(125)


# The queue.


@settings(deadline=None)
@given(
    pushes=st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(0, 500)), max_size=80),
    quantum=st.integers(1, 300),
    count_max=st.integers(1, 9),
    bytes_max=st.integers(0, 1000),
)
def test_everything_comes_out_once_in_order_and_in_bounds(
    pushes: list[tuple[str, int]], quantum: int, count_max: int, bytes_max: int
) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue(quantum)
    for number, (tenant, size) in enumerate(pushes):
        queue.push(tenant, size, (tenant, size, number))
    out = []
    while len(queue):
        group = queue.take(count_max, bytes_max)
        assert 1 <= len(group) <= count_max
        assert len(group) == 1 or sum(size for _, size, _ in group) <= bytes_max
        out += group
    assert queue.take(count_max, bytes_max) == []
    for tenant in TENANTS:
        assert [item for item in out if item[0] == tenant] == [
            (name, size, i) for i, (name, size) in enumerate(pushes) if name == tenant
        ]
    assert len(out) == len(pushes)


@settings(deadline=None)
@given(sizes=st.lists(st.lists(st.integers(1, 200), min_size=30, max_size=30), min_size=2, max_size=3))
def test_while_both_wait_none_gets_more_bytes_than_a_turn_and_an_item(sizes: list[list[int]]) -> None:
    quantum = 100
    queue: FairQueue[tuple[int, int]] = FairQueue(quantum)
    for tenant, of_tenant in enumerate(sizes):
        for size in of_tenant:
            queue.push(str(tenant), size, (tenant, size))
    served = Counter(dict.fromkeys(range(len(sizes)), 0))
    left = Counter({tenant: len(of_tenant) for tenant, of_tenant in enumerate(sizes)})
    while all(left[tenant] for tenant in range(len(sizes))):
        ((tenant, size),) = queue.take(1, 10_000)
        served[tenant] += size
        left[tenant] -= 1
        assert max(served.values()) - min(served.values()) <= 2 * quantum + 200


def test_contention_is_several_tenants_within_about_a_second() -> None:
    clock = Clock()
    queue: FairQueue[int] = FairQueue(10, clock)
    queue.push("a", 1, 1)
    queue.push("a", 1, 2)
    assert not queue.is_contended
    queue.push("b", 1, 3)
    assert queue.is_contended
    clock.now += CONTENDED_SECONDS
    assert not queue.is_contended


def test_a_request_of_another_tenant_passes_a_backlog(tmp_path: Path) -> None:
    async def scenario() -> list[str | None]:
        config = Config(storage=StorageConfig(data=str(tmp_path)))
        with open_ingest(config, locate(config.storage)) as (ingest, _):
            requests = [TraceRequest(bytes([i]) * 100_000, 1, "noisy") for i in range(50)]
            requests.append(TraceRequest(b"x" * 100, 1, "quiet"))
            tasks = [asyncio.ensure_future(ingest.accept(request)) for request in requests]
            await asyncio.sleep(0)
            members = ingest._next_members()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            ingest.start()
            assert members is not None
            return [member.request.tenant for member in members]

    tenants = asyncio.run(scenario())
    assert "quiet" in tenants
    assert len(tenants) <= 11


# What clients see.


@dataclass
class Sink:
    """Answers as told, with the number of spans that a request has."""

    answer: Callable[[], None] = lambda: None
    tenants: list[str | None] = field(default_factory=list)

    async def accept(self, request: TraceRequest) -> Accepted:
        self.answer()
        self.tenants.append(request.tenant)
        message = ExportTraceServiceRequest.FromString(request.payload)
        return Accepted(spans=sum(len(s.spans) for r in message.resource_spans for s in r.scope_spans))


class Running:
    """Servers with quotas, in an event loop of their own thread."""

    def __init__(self, folder: Path, quotas: QuotasConfig) -> None:
        self.sink = Sink()
        self.clock = Clock()
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        config = CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0")
        self.gate = Gate(AuthConfig(), quotas, folder, TenantCounters(), self.clock)
        self.servers = Servers(config, self.sink, gate=self.gate)
        self.endpoints: Endpoints = asyncio.run_coroutine_threadsafe(self.servers.start(), self.loop).result(
            10
        )

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.servers.stop(1.0), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def export(self, spans: int, tenant: str = "noisy") -> grpc.RpcError | None:
        with grpc.insecure_channel(self.endpoints.grpc) as channel:
            try:
                channel.unary_unary(EXPORT)(payload(spans), metadata=[("x-scope-orgid", tenant)], timeout=10)
            except grpc.RpcError as error:
                return error
            return None

    def post(self, spans: int, tenant: str = "noisy") -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(self.endpoints.http, timeout=10)
        try:
            headers = {"Content-Type": "application/x-protobuf", "X-Scope-OrgID": tenant}
            connection.request("POST", "/v1/traces", payload(spans), headers)
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("retry-after")
        finally:
            connection.close()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path, QuotasConfig(spans_per_second=10, burst_seconds=1))
    yield running
    running.close()


def payload(spans: int) -> bytes:
    message = ExportTraceServiceRequest()
    scope_spans = message.resource_spans.add().scope_spans.add()
    for i in range(spans):
        scope_spans.spans.add(trace_id=b"\1" * 16, span_id=(i + 1).to_bytes(8, "big"))
    return message.SerializeToString()


def test_over_the_quota_grpc_is_told_to_come_back_and_others_are_not(servers: Running) -> None:
    assert servers.export(30) is None
    error = servers.export(7)
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (raw,) = [value for key, value in error.trailing_metadata() if key == "google.rpc.retryinfo-bin"]
    assert RetryInfo.FromString(raw).retry_delay.ToMilliseconds() == 2000
    assert servers.export(7, tenant="quiet") is None
    servers.clock.now += 2.0
    assert servers.export(7) is None
    counts = servers.servers.tenants.tenants()
    assert (counts["noisy"].spans, counts["noisy"].requests) == (37, 2)
    assert (counts["noisy"].refused_spans, counts["noisy"].refused_requests) == (7, 1)
    assert counts["quiet"].refused_requests == 0


def test_over_the_quota_http_is_told_503_and_when(servers: Running) -> None:
    assert servers.post(35) == (200, None)
    assert servers.post(1) == (503, "3")
    assert servers.post(1, tenant="quiet") == (200, None)
    servers.clock.now += 2.5
    assert servers.post(1) == (200, None)


def test_what_the_sink_refuses_costs_no_quota(tmp_path: Path) -> None:
    running = Running(tmp_path, QuotasConfig(bytes_per_second=10, burst_seconds=100))
    try:

        def refuse() -> None:
            raise OverloadedError("the disk is full")

        running.sink.answer = refuse
        for _ in range(3):
            error = running.export(50)
            assert error is not None
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        running.sink.answer = lambda: None
        assert running.export(50) is None
        error = running.export(1)
        assert error is not None
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert running.servers.tenants.tenants()["noisy"].refused_spans == 151
    finally:
        running.close()


def some_spans() -> tuple[ReadableSpan, ...]:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    with provider.get_tracer("test").start_as_current_span("kept"):
        pass
    return memory.get_finished_spans()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_real_exporters_keep_what_is_over_the_quota_and_send_it_again(
    servers: Running, protocol: str
) -> None:
    assert servers.export(20, tenant="sdk") is None
    headers = {"x-scope-orgid": "sdk"}
    exporter: SpanExporter
    if protocol == "grpc":
        exporter = GrpcSpanExporter(
            f"http://{servers.endpoints.grpc}", insecure=True, headers=tuple(headers.items())
        )
    else:
        exporter = HttpSpanExporter(f"http://{servers.endpoints.http}/v1/traces", headers=headers)
    results: list[SpanExportResult] = []
    thread = threading.Thread(target=lambda: results.append(exporter.export(some_spans())))
    thread.start()
    refusals = servers.servers.tenants
    while not (found := refusals.tenants().get("sdk")) or not found.refused_requests:
        assert thread.is_alive()
    servers.clock.now += 10.0
    thread.join()
    exporter.shutdown()
    assert results == [SpanExportResult.SUCCESS]
    assert servers.sink.tenants == ["sdk", "sdk"]
