"""When requests go together: groups of the ingest, and seals of the lake."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import gathering, seal
from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, StorageConfig
from collector.gathering import ENOUGH_BYTES, ENOUGH_REQUESTS, GATHER_SECONDS, GROUPS_BEFORE_MORE, Gathering
from collector.ingest import Ingest
from collector.lake import segments
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.seal import Sealer
from collector.spool import Entry, Spool

FOR_EVER = 3600.0
ANSWER_SECONDS = 20.0


def request(number: int, name_bytes: int = 1) -> TraceRequest:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\1" * 16, span_id=number.to_bytes(8, "big"), name="n" * name_bytes)
    return TraceRequest(message.SerializeToString(), time.time_ns())


@contextmanager
def opened(folder: Path, seal_interval_seconds: float = 1.0) -> Iterator[tuple[Ingest, Sealer]]:
    collector = CollectorConfig(seal_interval_seconds=seal_interval_seconds)
    config = Config(storage=StorageConfig(data=str(folder)), collector=collector)
    with open_ingest(config, locate(config.storage)) as (opened, sealer):
        opened.start()
        yield opened, sealer


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of requests of each transaction of a spool; groups gather for ever unless there is enough."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", FOR_EVER)
    monkeypatch.setattr(gathering, "GROUPS_BEFORE_MORE", 1)
    found: list[int] = []
    append = Spool.append

    def counted(spool: Spool, entries: list[Entry], now_ns: int) -> int:
        found.append(len(entries))
        return append(spool, entries, now_ns)

    monkeypatch.setattr(Spool, "append", counted)
    return found


async def answered(ingest: Ingest, *requests: TraceRequest) -> list[Accepted]:
    return await asyncio.wait_for(asyncio.gather(*map(ingest.accept, requests)), ANSWER_SECONDS)


def test_requests_gather_until_as_many_came_as_lately_or_bytes_are_enough(tmp_path: Path, groups: list[int]) -> None:
    async def send() -> None:
        with opened(tmp_path) as (ingest, _):
            await answered(ingest, request(1))  # from then on two are waited for
            await answered(ingest, request(2), request(3))  # then three
            await answered(ingest, request(4, name_bytes=ENOUGH_BYTES))

    asyncio.run(send())
    assert groups == [1, 2, 1]


def run_clients(clients: int, groups: int) -> tuple[float, float]:
    """Clients that send when they are answered: seconds waited a group, and the requests of a mean group."""
    learned, now, waited, requests = Gathering(), 0.0, 0.0, 0
    for _ in range(groups):
        now += 0.005
        left = max(0.0, learned.seconds_left(now))
        pause = 0.0 if learned.is_enough(clients, 0) else left
        now, waited, requests = now + pause, waited + pause, requests + clients
        learned.start_group(clients, 0, now)
    return waited / groups, requests / groups


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_clients_that_wait_for_their_answers_are_held_up_seldom(clients: int) -> None:
    waited, _ = run_clients(clients, 1000)
    assert waited <= GATHER_SECONDS / GROUPS_BEFORE_MORE


def test_steady_senders_share_groups() -> None:
    learned, sent_until, groups = Gathering(), 0.0, []
    interval, now = 0.01, 0.0
    while now < 60:
        now = max(now, sent_until + interval)
        deadline = now + max(0.0, learned.seconds_left(now))
        waiting = int((now - sent_until) / interval + 1e-9)
        while now < deadline and not learned.is_enough(waiting, 0):
            now = min(deadline, now + interval)
            waiting = int((now - sent_until) / interval + 1e-9)
        learned.start_group(waiting, 0, now)
        sent_until += waiting * interval
        groups.append(waiting)
    assert sum(groups[-50:]) / 50 >= 0.8 * GATHER_SECONDS / interval
    assert learned.expected_requests <= ENOUGH_REQUESTS


def test_a_pause_of_the_senders_teaches_nothing() -> None:
    learned = Gathering()
    learned.expected_requests = 8
    learned.start_group(1, 0, 10.0, has_waited=False)
    assert learned.expected_requests == 8
    learned.start_group(3, 0, 10.1)
    assert learned.expected_requests == 3


def test_one_short_group_after_full_ones_is_no_reason_to_wait_for_fewer() -> None:
    learned = Gathering()
    learned.expected_requests = 8
    for requests in (8, 3):
        learned.start_group(requests, 0, 10.0)
    assert learned.expected_requests == 8
    learned.start_group(4, 0, 10.1)
    assert learned.expected_requests == 4


def test_bytes_are_enough() -> None:
    learned = Gathering()
    learned.expected_requests = ENOUGH_REQUESTS
    assert not learned.is_enough(1, ENOUGH_BYTES - 1)
    assert learned.is_enough(1, ENOUGH_BYTES)


def test_a_stop_waits_for_nothing(tmp_path: Path, groups: list[int]) -> None:
    async def send() -> Accepted:
        with opened(tmp_path) as (ingest, _):
            await answered(ingest, request(1))
            waiting = asyncio.ensure_future(ingest.accept(request(2)))
            await asyncio.sleep(0)
        return await asyncio.wait_for(waiting, ANSWER_SECONDS)

    assert asyncio.run(send()) == Accepted(spans=1)
    assert groups == [1, 1]


def test_what_comes_while_a_seal_is_on_waits_for_the_next_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, may_end = threading.Event(), threading.Event()
    rounds = itertools.count()
    sealed_in: list[int] = []
    write, seal_all = segments.write_segment, Sealer._seal_all

    def counted(sealer: Sealer) -> None:
        next(rounds)
        seal_all(sealer)

    def held(table: pa.Table, folder: Path, compression: str) -> Path:
        sealed_in.append(next(rounds))
        started.set()
        may_end.wait(ANSWER_SECONDS)
        return write(table, folder)

    monkeypatch.setattr(seal, "write_segment", held)
    monkeypatch.setattr(Sealer, "_seal_all", counted)

    async def send() -> None:
        with opened(tmp_path, 0.2) as (ingest, sealer):
            await answered(ingest, request(1))
            assert await asyncio.to_thread(started.wait, ANSWER_SECONDS)
            await answered(ingest, request(2))
            may_end.set()
            async with asyncio.timeout(ANSWER_SECONDS):
                while sealer.unsealed_requests:
                    await asyncio.sleep(0.01)

    asyncio.run(send())
    first, second = sealed_in
    assert second > first + 1


def test_the_process_of_a_collector_does_without_what_it_never_uses() -> None:
    code = (
        "from collector.footprint import reduce_footprint\nreduce_footprint()\n"
        "import sys, collector.collect, pyarrow as pa, pyarrow.fs\n"
        "print(pa.array([1]).to_pylist(), {'pandas', 'pyarrow._s3fs'}.isdisjoint(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[1]", "True"]
