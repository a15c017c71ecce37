"""Scripted incidents: pure, consistent as traffic, as strong as their truth says, and asked for by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_data.__main__ import main
from sample_data.columns import joined
from sample_data.frames import Frames
from sample_data.incidents.catalogue import KINDS, incident, parse
from sample_data.incidents.incident import Incident, Platform
from sample_data.model import Kind, Operations, Outcome, Workload, key_host
from sample_data.stream import Stream
from sample_data.topology import REGIONS, STARTS_PER_RELEASE, Service, build_topology, instance_indices, version

START = 1_790_000_000
SEED = 11
RATE = 400.0
TOPOLOGY = build_topology(SEED, 48)
WORKLOAD = Workload(TOPOLOGY, SEED, RATE)
FRAMES = Frames(TOPOLOGY)


def scripted(kind: str, *, seconds: int = 600, **given: str) -> Incident:
    return incident(kind, TOPOLOGY, SEED, START, seconds, given)


def spans(kind: Incident | None, first: int, last: int) -> pl.DataFrame:
    """Spans of these seconds of the run, with an incident or without."""
    platform = Platform(WORKLOAD, [kind] if kind else [])
    return FRAMES.spans(joined([platform.operations(START + second) for second in range(first, last)]))


def consistent(operations: Operations) -> None:
    n, m = len(operations.start_ns), len(operations.deliveries.operation)
    for columns, count, ids in ((operations, n, 32), (operations.deliveries, m, 8)):
        for field in fields(columns):
            value = getattr(columns, field.name)
            if isinstance(value, np.ndarray):
                assert len(value) == count, field.name
        assert len(columns.trace_ids) == 16 * count
        assert len(columns.span_ids) == ids * count
    traces = np.frombuffer(operations.trace_ids + operations.deliveries.trace_ids, "V16")
    assert len({bytes(trace) for trace in traces}) == n + m
    delivered = operations.deliveries.operation
    assert (np.diff(delivered) >= 0).all()
    assert (operations.kind[delivered] == Kind.PUBLISH).all()
    assert (operations.outcome[delivered] == Outcome.OK).all()
    cached = operations.kind != Kind.PUBLISH
    lives_on = key_host(operations.tenant, operations.store, operations.key)
    assert (lives_on[cached] == operations.server_host[cached]).all()


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 2**32), second=st.integers(-5, 130))
def test_an_incident_is_pure_and_leaves_traffic_consistent(kind: str, seed: int, second: int) -> None:
    topology = build_topology(seed, 20)
    operations = Workload(topology, seed, 150.0).operations(START + second)
    made = incident(kind, topology, seed, START, 120)
    changed = made(operations, START + second)
    assert incident(kind, topology, seed, START, 120).truth == made.truth
    consistent(changed)
    again = made(operations, START + second)
    assert again.trace_ids == changed.trace_ids
    assert (again.server_ns == changed.server_ns).all()
    if not made.touches(START + second):
        assert changed is operations


@pytest.mark.parametrize("kind", KINDS)
def test_processes_of_an_incident_are_those_of_their_host(kind: str) -> None:
    """At most two processes a host and version at any time: the one that runs, and the one that follows it."""
    found = spans(scripted(kind, seconds=150), 140, 160)
    counts = found.group_by("host").agg(pl.col("service_instance_id").n_unique())
    assert counts["service_instance_id"].max() <= 2
    assert found.group_by("service_instance_id").agg(pl.col("service_version").n_unique())["service_version"].max() == 1


def at_place(found: pl.DataFrame, made: Incident) -> pl.DataFrame:
    """The spans at the place that the truth names."""
    truth = made.truth
    host = None if truth.kind == "hot_key" else truth.host  # its measure is of all hosts
    columns = {"region": truth.region, "service_name": truth.service, "host": host, "operation": truth.operation}
    columns |= {"destination": truth.destination, "service_version": truth.version}
    conditions = [pl.col(name).cast(pl.String) == value for name, value in columns.items() if value is not None]
    if truth.destination is not None:
        conditions.append(pl.col("tenant").cast(pl.String).is_in(list(truth.tenants)))
    return found.filter(conditions)


def quantile(q: float, kind: str) -> Callable[[pl.DataFrame], float]:
    return lambda found: found.filter(pl.col("kind") == kind)["duration_ns"].quantile(q) or 0.0


def lost_share(found: pl.DataFrame) -> float:
    """Of a topic's deliveries, by the fan-outs' own count of subscribers."""
    expected = found.filter(pl.col("kind") == "internal")["attributes"].map.get("topics.subscription.count")
    return 1 - found.filter(pl.col("kind") == "consumer").height / expected.cast(pl.Int64).sum()


def error_share(found: pl.DataFrame) -> float:
    return float((found.filter(pl.col("kind") == "server")["status"] == "error").mean() or 0.0)


def miss_share(found: pl.DataFrame) -> float:
    return 1 - float(found["cache_hit"].mean() or 0.0)


MEASURES: dict[str, tuple[dict[str, str], Callable[[pl.DataFrame], float]]] = {
    "noisy_neighbour": ({}, lambda found: quantile(0.5, "server")(found.filter(pl.col("operation") == "get"))),
    "region_slow": ({}, lambda found: quantile(0.5, "server")(found.filter(component="http"))),
    "hot_key": ({"tenant": "amber-bank"}, lambda found: found.filter(pl.col("kind") == "server").height),
    "retry_storm": ({}, lambda found: found.filter(pl.col("component") == "http").height),
    "hit_collapse": ({"tenant": "amber-bank"}, miss_share),
    "subscriber_lag": ({}, quantile(0.5, "consumer")),
    "deploy_latency": ({"service": "cache"}, quantile(0.99, "server")),
    "leak": ({}, quantile(0.5, "server")),
}


@pytest.mark.parametrize("kind", MEASURES)
def test_the_effect_is_as_strong_as_the_truth_says(kind: str) -> None:
    given, measure = MEASURES[kind]
    made = scripted(kind, seconds=400, **given)
    quiet = at_place(spans(None, 280, 340), made)
    if made.truth.version is not None:
        quiet = spans(None, 280, 340).filter(region=made.truth.region, service_name=made.truth.service)
    hurt = at_place(spans(made, 280, 340), made)
    if kind == "retry_storm":
        quiet, hurt = (
            found.filter(region=made.truth.region) for found in (spans(None, 280, 340), spans(made, 280, 340))
        )
    assert measure(hurt) / measure(quiet) == pytest.approx(made.truth.factor, rel=0.5)
    assert measure(hurt) > 1.3 * measure(quiet)


def test_a_release_fails_on_its_version_and_beside_it_the_former_one_runs() -> None:
    made = scripted("deploy_errors", seconds=600, factor="60", service="cache", region="us-east-1")
    found = spans(made, 110, 180).filter(region="us-east-1", service_name="cache")
    shares = {str(v): error_share(of) for (v,), of in found.group_by("service_version")}
    assert len(shares) == 2
    bad = shares.pop(str(made.truth.version))
    assert bad == pytest.approx(0.1, rel=0.3)
    assert next(iter(shares.values())) < 0.01
    after = spans(made, 610, 620).filter(region="us-east-1", service_name="cache")
    assert made.truth.version not in set(after["service_version"])


def test_a_release_has_a_number_that_no_daily_one_has() -> None:
    made = scripted("deploy_errors", seconds=600, service="cache", region="us-east-1")
    other = incident("deploy_errors", TOPOLOGY, SEED, START + 3600, 600, {"service": "cache"})
    daily = {version(Service.CACHE, run) for run in range(0, 1000 * STARTS_PER_RELEASE, STARTS_PER_RELEASE)}
    assert not {made.truth.version, other.truth.version} & daily
    assert made.truth.version != other.truth.version
    during = spans(made, 300, 320).filter(region="us-east-1", service_name="cache", kind="server")
    assert set(during["service_version"]) == {made.truth.version}


def test_lost_deliveries_are_lost_at_one_topic_of_one_tenant() -> None:
    made = scripted("lost_deliveries", factor="80")
    found = spans(made, 100, 220)
    there = at_place(found.with_columns(service_name=pl.lit("topics")), made)
    assert lost_share(there) == pytest.approx(0.24, abs=0.12)
    elsewhere = found.filter(component="topic").join(there.select("span_id"), on="span_id", how="anti")
    assert lost_share(elsewhere) < 0.02


def test_a_clock_that_is_off_moves_spans_and_changes_no_duration() -> None:
    made = scripted("clock_skew", service="cache", factor="10")
    columns = ["span_id", "start_time", "duration_ns", "host"]
    both = spans(None, 30, 50).select(columns).join(spans(made, 30, 50).select(columns), on="span_id")
    moved = both.filter(pl.col("start_time") != pl.col("start_time_right"))
    assert set(moved["host"]) == {made.truth.host}
    assert (moved["start_time_right"] - moved["start_time"]).dt.total_milliseconds().abs().unique().to_list() == [500]
    assert (both["duration_ns"] == both["duration_ns_right"]).all()


def test_a_shift_of_the_mix_slows_no_tenants_operation() -> None:
    made = scripted("mix_shift")
    calls = [
        found.filter(component="http", region=made.truth.region)
        for found in (spans(None, 60, 180), spans(made, 60, 180))
    ]
    quiet, shifted = (
        {k: of["duration_ns"].median() for k, of in f.group_by("tenant", "operation") if of.height > 300} for f in calls
    )
    assert quiet.keys() & shifted.keys()
    for place in quiet.keys() & shifted.keys():
        assert shifted[place] == pytest.approx(quiet[place], rel=0.25)
    counts = [f.filter(tenant=made.truth.culprit).height for f in calls]
    assert counts[1] > 1.8 * counts[0]


@pytest.mark.parametrize("kind", ["deploy", "restart"])
def test_harmless_changes_change_who_runs_and_nothing_else(kind: str) -> None:
    made = scripted(kind, seconds=300)
    before, after = spans(None, 100, 110), spans(made, 100, 110)
    key = "service_version" if kind == "deploy" else "service_instance_id"
    assert made.truth.harmless
    assert set(after[key]) - set(before[key])
    same = [c for c in before.columns if c not in ("service_version", "service_instance_id", "attributes", "links")]
    assert before.select(same).equals(after.select(same))


def test_ordinary_days_have_releases_and_restarts() -> None:
    day = [WORKLOAD.operations(START // 86_400 * 86_400 + second) for second in range(0, 2 * 86_400, 600)]
    ids = np.concatenate(
        [instance_indices(Service.CACHE, o.region, o.server_host, o.server_run)[o.kind != Kind.PUBLISH] for o in day]
    )
    found = [dict(TOPOLOGY.instances[int(index)].attributes) for index in np.unique(ids)]
    assert len({its["service.version"] for its in found}) == 3
    assert len(found) > 12 * 3


def test_a_stream_with_an_incident_begins_as_one_without() -> None:
    made = parse("region_slow:factor=8:region=us-east-1@5s+1m")
    plain, hurt = (
        Stream(seed=1, operations_per_second=50.0, tenants=20, start_second=START, incidents=orders)
        for orders in ((), (made,))
    )
    assert [plain.advance() for _ in range(5)] == [hurt.advance() for _ in range(5)]
    assert [plain.advance() for _ in range(5)] != [hurt.advance() for _ in range(5)]
    (truth,) = hurt.truths
    assert (truth.start_second, truth.end_second) == (START + 5, START + 65)
    assert truth.region == REGIONS[0]


def test_orders_of_the_command_line() -> None:
    order = parse("noisy_neighbour:factor=5:region=eu-west-1@-10m+15m")
    assert (order.kind, order.start, order.duration_seconds) == ("noisy_neighbour", -600.0, 900)
    assert order.given == {"factor": "5", "region": "eu-west-1"}
    dated = parse("leak@2026-09-01T12:00:00+00:00+90")
    assert dated.start == datetime(2026, 9, 1, 12, tzinfo=UTC)
    assert dated.duration_seconds == 90


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("leak", "expected KIND"),
        ("leak@10m", "expected KIND"),
        ("leak:factor@1m+1m", "expected KIND"),
        ("leak:size=2@1m+1m", "parameter size"),
        ("leak@soon+1m", "starts at 'soon'"),
        ("leak@1m+soon", "'soon' is no duration"),
    ],
)
def test_bad_orders_are_refused(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(text)


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("earthquake", {}, "expected one of noisy_neighbour"),
        ("leak", {"factor": "0.5"}, "factor of leak is 0.5"),
        ("leak", {"factor": "much"}, "factor of leak is much"),
        ("leak", {"region": "mars"}, "region of leak is 'mars'"),
        ("leak", {"tenant": "amber-bank"}, "no parameter tenant"),
        ("noisy_neighbour", {"tenant": "amber-bank", "region": "eu-west-1"}, "without such traffic there"),
    ],
)
def test_impossible_incidents_are_refused(kind: str, given: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        incident(kind, TOPOLOGY, 1, START, 60, given)


def test_the_command_writes_the_truth_beside_the_counts(tmp_path, capsys) -> None:
    truth = tmp_path / "truth.json"
    arguments = ["--output", str(tmp_path / "a.pb"), "--spans", "500", "--truth", str(truth)]
    assert main([*arguments, "--incident", "deploy_errors:factor=20@1s+10s", "--incident", "leak@2s+5s"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "truth.json.incidents.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"deploy_errors", "leak"}
    assert all(line["start_time"] < line["end_time"] for line in lines)
    assert json.loads(truth.read_text())["total"]["spans"] == 500
    with pytest.raises(SystemExit):
        main([*arguments, "--incident", "leak"])
    assert main([*arguments, "--incident", "earthquake@1s+1s"]) == 1
    assert "expected one of" in capsys.readouterr().err
