"""Ingest, spool, seal and lake together in one process, on the real engines: once, in order, durable, recovered."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import seal
from collector.collect import open_ingest
from collector.config import CollectorConfig, Config, LimitsConfig, StorageConfig
from collector.errors import InvalidRequestError, OverloadedError, RetryableError
from collector.ingest import Ingest
from collector.lake.append import Appender
from collector.lake.lake import Lake, Transaction
from collector.lake.location import locate
from collector.pipeline import Accepted, TraceRequest
from collector.spool import Spool, checksum_of, digest_of


def payload(names: list[str], trace_id: bytes = b"\1" * 16, bad_ids: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add()
    scope_spans = spans.scope_spans.add()
    for i, name in enumerate(names):
        scope_spans.spans.add(
            trace_id=trace_id,
            span_id=(i + 1).to_bytes(8, "big"),
            name=name,
            start_time_unix_nano=1_000,
            end_time_unix_nano=2_000,
        )
    for _ in range(bad_ids):
        scope_spans.spans.add(trace_id=b"\0" * 16, span_id=b"\1" * 8, name="invalid")
    return message.SerializeToString()


def request(names: list[str], tenant: str | None = None, **keywords: object) -> TraceRequest:
    return TraceRequest(payload(names, **keywords), time.time_ns(), tenant)  # type: ignore[arg-type]  # fields of a span, by name


def config_of(folder: Path, **collector: object) -> Config:
    return Config(
        storage=StorageConfig(data=str(folder)),
        collector=CollectorConfig(**collector),  # type: ignore[arg-type]  # settings by name
        limits=LimitsConfig(name_bytes_max=2**20),
    )


def stored(folder: Path) -> list[str]:
    with Lake(locate(StorageConfig(data=str(folder))), read_only=True) as lake, lake.read() as reader:
        return [name for (name,) in reader.rows("SELECT name FROM spans ORDER BY name")]


async def ingest_all(config: Config, requests: list[TraceRequest]) -> list[Accepted | BaseException]:
    with open_ingest(config, locate(config.storage)) as (ingest, _):
        ingest.start()
        return await asyncio.gather(*(ingest.accept(r) for r in requests), return_exceptions=True)


# Faults: each step of the way of a request, failing before or after it took effect.

STEPS: dict[str, tuple[object, str]] = {
    "append": (Spool, "append"),
    "write_segment": (seal, "write_segment"),
    "add_files": (Transaction, "add_files"),
    "advance": (Transaction, "advance"),
    "commit": (Lake, "write"),
    "commit_rows": (Appender, "commit"),
    "trim": (Spool, "trim"),
}


class InjectedError(Exception):
    """A fault that a test put in."""


def _inject(patch: pytest.MonkeyPatch, step: str, decide: Callable[[], str]) -> None:
    """Let `step` fail where `decide()` says "before" or "after"; only commits, not reads, of the lake fail."""
    owner, name = STEPS[step]
    original = getattr(owner, name)

    def call(*arguments: object, **keywords: object) -> object:
        when = decide()
        if when == "before":
            raise InjectedError(step)
        result = original(*arguments, **keywords)
        if when == "after":
            raise InjectedError(step)
        return result

    @contextmanager
    def write(lake: Lake) -> Iterator[Transaction]:
        when = decide()
        with original(lake) as transaction:
            yield transaction
            if when == "before":
                raise InjectedError(step)
        if when == "after":
            raise InjectedError(step)

    patch.setattr(owner, name, write if step == "commit" else call)


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_requests_of_many_senders_are_all_stored(tmp_path: Path) -> None:
    requests = [request([f"span-{i:03}-{j}" for j in range(3)]) for i in range(100)]
    answers = asyncio.run(ingest_all(config_of(tmp_path), requests))
    assert answers == [Accepted()] * 100
    assert stored(tmp_path) == [f"span-{i:03}-{j}" for i in range(100) for j in range(3)]


def test_a_request_sent_again_is_stored_once_in_flight_and_after_a_restart(tmp_path: Path) -> None:
    first = request(["a", "b"], bad_ids=1)
    answers = asyncio.run(ingest_all(config_of(tmp_path), [first] * 5))
    answers += asyncio.run(ingest_all(config_of(tmp_path), [first] * 2))
    assert len(set(answers)) == 1
    assert isinstance(answers[0], Accepted)
    assert answers[0].rejected_spans == 1
    assert stored(tmp_path) == ["a", "b"]


def test_different_requests_with_the_same_span_ids_are_both_kept(tmp_path: Path) -> None:
    asyncio.run(ingest_all(config_of(tmp_path), [request(["a"]), request(["b"]), request(["a"], tenant="acme")]))
    assert stored(tmp_path) == ["a", "a", "b"]


def test_a_request_that_does_not_decode_fails_alone(tmp_path: Path) -> None:
    requests = [request(["a"]), TraceRequest(b"\xff\xff garbage", 1), request(["b"]), TraceRequest(b"", 1)]
    first, bad, second, empty = asyncio.run(ingest_all(config_of(tmp_path), requests))
    assert [first, second, empty] == [Accepted()] * 3
    assert isinstance(bad, InvalidRequestError)
    assert stored(tmp_path) == ["a", "b"]


def test_invalid_spans_are_rejected_and_named_and_their_neighbours_stored(tmp_path: Path) -> None:
    answers = asyncio.run(ingest_all(config_of(tmp_path), [request(["a"], bad_ids=2), request(["b"])]))
    assert isinstance(answers[0], Accepted)
    assert answers[0].rejected_spans == 2
    assert "trace_id" in answers[0].message
    assert answers[1] == Accepted()
    assert stored(tmp_path) == ["a", "b"]


def test_a_spool_that_fails_refuses_retryably_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with open_ingest(config_of(tmp_path), locate(StorageConfig(data=str(tmp_path)))) as (ingest, _):
            ingest.start()
            with monkeypatch.context() as patch:
                patch.setattr(Spool, "append", _raise(sqlite3.OperationalError("database or disk is full")))
                with pytest.raises(RetryableError, match="disk is full"):
                    await ingest.accept(request(["a"]))
            assert await ingest.accept(request(["a"])) == Accepted()

    asyncio.run(scenario())
    assert stored(tmp_path) == ["a"]


def test_while_the_lake_is_out_requests_are_accepted_up_to_the_bound_of_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [request(["x" * 500_000], trace_id=bytes([i]) * 16) for i in range(1, 5)]
    config = config_of(tmp_path, spool_bytes_max=2**20)
    asyncio.run(ingest_all(config, []))

    async def scenario() -> None:
        with open_ingest(config, locate(config.storage)) as (ingest, sealer):
            ingest.start()
            for accepted in large[:3]:
                assert await ingest.accept(accepted) == Accepted()
            with pytest.raises(OverloadedError, match=r"collector\.spool_bytes_max"):
                await ingest.accept(large[3])
            assert sealer.unsealed_requests == 3

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "write", _raise(duckdb.IOException("the lake is out")))
        asyncio.run(scenario())
    asyncio.run(ingest_all(config, []))
    assert stored(tmp_path) == ["x" * 500_000] * 3


def test_seals_write_the_catalog_themselves_once_they_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    original = Appender.commit

    def commit(*arguments: Any) -> bool:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(Appender, "commit", commit)
    names = ["a", "b", "c", "d"]

    async def scenario() -> None:
        config = config_of(tmp_path, seal_interval_seconds=0.01)
        with open_ingest(config, locate(config.storage)) as (ingest, sealer):
            ingest.start()
            for name in names:
                assert await ingest.accept(request([name])) == Accepted()
                while sealer.unsealed_requests:
                    await asyncio.sleep(0.005)

    asyncio.run(scenario())
    assert found == [True] * 3, "the first has a new resource, and DuckLake commits it"
    assert stored(tmp_path) == names


def test_what_does_not_fit_in_memory_is_read_back_from_the_spool(tmp_path: Path) -> None:
    names = [f"{i:04}" + "x" * 5_000 for i in range(400)]
    requests = [request(names[i : i + 20]) for i in range(0, 400, 20)]
    answers = asyncio.run(
        ingest_all(config_of(tmp_path, unsealed_bytes_max=2**20, seal_interval_seconds=0.05), requests)
    )
    assert answers == [Accepted()] * 20
    assert stored(tmp_path) == names


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "commit_rows"])  # not the first seal
def test_a_step_that_fails_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    config = config_of(tmp_path, seal_interval_seconds=0.01)
    asyncio.run(ingest_all(config, []))
    faults = [when]
    _inject(monkeypatch, step, lambda: faults.pop() if faults else "")
    requests = [request([f"{i:02}"]) for i in range(10)]
    answers = asyncio.run(ingest_all(config, requests))
    again = [r for r, a in zip(requests, answers, strict=True) if isinstance(a, RetryableError)]
    assert asyncio.run(ingest_all(config, again)) == [Accepted()] * len(again)
    assert not faults, "the fault was never injected"
    assert (step == "append") == bool(again)
    assert stored(tmp_path) == [f"{i:02}" for i in range(10)]


def test_a_spooled_request_that_no_longer_decodes_is_put_aside(tmp_path: Path) -> None:
    location = locate(StorageConfig(data=str(tmp_path)))
    asyncio.run(ingest_all(config_of(tmp_path), [request(["a"])]))
    spool = Spool(location.spool, 3600)
    connection = sqlite3.connect(location.spool / "spool.sqlite")
    for seq, content in ((10, payload(["b"])), (11, b"\xff torn"), (12, payload(["c"]))):
        checksum = checksum_of(digest_of(TraceRequest(content, 1)), seq, 1)
        connection.execute("INSERT INTO requests VALUES (?, 1, NULL, ?, ?)", (seq, content, checksum))
    connection.commit()
    spool.close()
    asyncio.run(ingest_all(config_of(tmp_path), []))
    assert stored(tmp_path) == ["a", "b", "c"]
    assert [seq for seq, _ in Spool(location.spool, 3600).quarantined()] == [11]


@pytest.mark.parametrize("seed", range(3))
def test_random_faults_at_all_steps_keep_every_acknowledged_span_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    config = config_of(tmp_path, seal_interval_seconds=0.01)
    asyncio.run(ingest_all(config, []))

    async def client(number: int, ingest: Ingest) -> None:
        for i in range(10):
            one = request([f"{number}-{i}"])
            while True:
                try:
                    assert await ingest.accept(one) == Accepted()
                    break
                except RetryableError:
                    await asyncio.sleep(0)

    async def scenario() -> None:
        with open_ingest(config, locate(config.storage)) as (ingest, _):
            ingest.start()
            await asyncio.gather(*(client(n, ingest) for n in range(4)))

    with monkeypatch.context() as patch:
        for step in STEPS:
            _inject(patch, step, lambda: rng.choices(["before", "after", ""], [1, 1, 8])[0])
        asyncio.run(scenario())
    asyncio.run(ingest_all(config, []))
    assert stored(tmp_path) == sorted(f"{n}-{i}" for n in range(4) for i in range(10))
