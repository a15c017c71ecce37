"""Insight on spans of small platforms in which one thing goes wrong: what is told first, and that quiet is quiet."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.insight.engine import findings, has_history
from analytics.insight.evidence import Evidence, of_spans
from analytics.insight.finding import Finding
from analytics.insight.grains import Grain
from analytics.insight.measures import MINUTE
from analytics.insight.retries import repeated

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, BEGIN = 50, 42
HOUR = timedelta(hours=1)


def platform(seed: int = 1, per_second: int = 40) -> pl.DataFrame:
    """Calls of a gateway to a cache in two regions: 3 hosts each, 12 tenants; columns as in table `spans`."""
    rng = np.random.default_rng(seed)
    n = MINUTES * 60 * per_second
    region, tenant, host = rng.integers(0, 2, n), np.minimum(rng.geometric(0.2, n) - 1, 11), rng.integers(0, 3, n)
    start = np.sort(rng.integers(0, MINUTES * 60 * 10**9, n)) + int(NOON.timestamp()) * 10**9
    calls = pl.DataFrame(
        {
            "start": start,
            "minute": (start - start[0]) // (60 * 10**9),
            "region": np.array(["north", "south"])[region],
            "tenant": np.array([f"t{i}" for i in range(12)])[tenant],
            "host": host,
            "served": np.exp(rng.normal(13.0, 0.45, n)),
            "network": np.exp(rng.normal(12.5, 0.4, n)),
            "fails": rng.random(n) < 0.002,
            "hit": rng.random(n) < 0.9,
            "version": "1.0",
            "number": np.arange(n),
        }
    )
    return calls


def spans(calls: pl.DataFrame) -> pl.DataFrame:
    """A client span and the server span it causes, for each call."""
    name, number = pl.col("host").cast(pl.String), pl.col("number").cast(pl.String)
    common = {
        "trace_id": number, "region": pl.col("region"), "tenant": pl.col("tenant"), "component": pl.lit("cache"),
        "operation": pl.lit("get"), "destination": pl.lit("items"), "cache_hit": pl.col("hit"),
        "status": pl.when("fails").then(pl.lit("error")).otherwise(pl.lit("unset")),
    }  # fmt: skip
    wire, served = pl.col("network").cast(pl.Int64), pl.col("served").cast(pl.Int64)
    client = calls.select(
        **common, span_id="c" + number, parent_span_id=pl.lit(None, pl.String), kind=pl.lit("client"),
        service_name=pl.lit("gateway"), host=pl.format("gw-{}-0", "region"), start_time=pl.col("start"),
        duration_ns=wire + served, service_version=pl.lit("9"),
    )  # fmt: skip
    server = calls.select(
        **common, span_id="s" + number, parent_span_id="c" + number, kind=pl.lit("server"),
        service_name=pl.lit("cache"),
        host=pl.format("cache-{}-{}", "region", name), start_time=pl.col("start") + wire // 2, duration_ns=served,
        service_version=pl.col("version"),
    )  # fmt: skip
    both = pl.concat([client, server])
    return both.with_columns(pl.col("start_time").cast(pl.Datetime("ns")), service_instance_id=pl.col("host"))


def told(calls: pl.DataFrame, minute: int = MINUTES) -> list[Finding]:
    end = NOON + timedelta(minutes=minute)
    return findings(of_spans(spans(calls)).until(end), end, HOUR)


DURING = pl.col("minute") >= BEGIN
NORTH = pl.col("region") == "north"
ON_HOST = NORTH & (pl.col("host") == 2)
BURSTS = [3, 6, 7, 11, 15, 16, 20, 24]


def changed(which: pl.Expr, **columns: pl.Expr) -> pl.DataFrame:
    """The platform with other values where `which`, from BEGIN on."""
    return platform().with_columns(
        pl.when(DURING & which).then(value).otherwise(pl.col(name)).alias(name) for name, value in columns.items()
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_quiet_is_quiet(seed: int) -> None:
    assert told(platform(seed)) == []


def test_nothing_is_said_without_history() -> None:
    evidence = of_spans(spans(platform().filter(pl.col("minute") < 12)))
    end = NOON + timedelta(minutes=12)
    assert not has_history(evidence, end)
    assert findings(evidence, end, HOUR) == []
    assert findings(Evidence.empty(), end, HOUR) == []


def test_a_slow_network_of_a_region_is_one_finding() -> None:
    (found,) = told(changed(NORTH, network=pl.col("network") * 4))
    assert (found.kind, found.region, found.service) == ("region_slow", "north", None)
    assert found.since == NOON + timedelta(minutes=BEGIN)
    assert len(found.tenants) >= 10
    assert found.exemplars
    assert "on the network" in found.sentence


def test_errors_of_a_service_are_told_with_their_place() -> None:
    (found,) = told(changed(NORTH, fails=pl.col("fails") | (pl.col("number") % 12 == 0)))
    assert (found.kind, found.region, found.service) == ("errors", "north", "cache")
    assert found.effect.value == pytest.approx(1 / 12, rel=0.15)
    assert (found.effect.ratio_low or 0) < found.effect.ratio < (found.effect.ratio_high or 0)


def test_a_slow_host_takes_the_regions_latency_with_it() -> None:
    (found,) = told(changed(ON_HOST, served=pl.col("served") * 3))
    assert (found.kind, found.host) == ("instance", "cache-north-2")
    assert any(symptom.startswith("latency") for symptom in found.symptoms)


def test_a_noisy_neighbour_is_the_suspect_and_the_others_are_hurt() -> None:
    slow = changed(ON_HOST, served=pl.col("served") * 3)
    noisy = slow.filter(DURING & ON_HOST & (pl.col("tenant") == "t3"))
    copies = pl.concat([noisy.with_columns(pl.col("number") + 10**7 * copy) for copy in range(1, 15)])
    found = told(pl.concat([slow, copies]))[0]
    assert (found.kind, found.host, found.suspects) == ("noisy_neighbour", "cache-north-2", ("tenant=t3",))
    assert "t3" not in found.tenants
    assert "correlates" in found.sentence


def test_bursts_on_all_hosts_do_not_hide_a_neighbour_on_one() -> None:
    slow = changed(ON_HOST, served=pl.col("served") * 3)
    mine = slow.filter(NORTH & (pl.col("tenant") == "t3"))
    bursts = pl.concat([mine.filter(pl.col("minute").is_in(BURSTS))] * 20 + [mine.filter(DURING & ON_HOST)] * 14)
    copies = bursts.with_columns(number=pl.Series(range(bursts.height)) + 10**7)
    found = told(pl.concat([slow, copies]), BEGIN + 4)[0]
    assert (found.kind, found.suspects) == ("noisy_neighbour", ("tenant=t3",))


def test_a_host_that_is_slow_for_one_tenant_names_nobody_else() -> None:
    both = changed(ON_HOST & (pl.col("tenant") == "t0"), served=pl.col("served") * 8)
    some = changed(ON_HOST & (pl.col("tenant") == "t5") & (pl.col("number") % 3 == 0), served=pl.col("served") * 8)
    found = told(both.with_columns(served=pl.max_horizontal("served", some["served"])))[0]
    assert (found.kind, found.tenants) == ("instance", ("t0",))


def test_who_asks_more_of_all_hosts_is_no_neighbour_of_the_slow_one() -> None:
    slow = changed(ON_HOST, served=pl.col("served") * 3)
    busy = slow.filter(DURING & NORTH & (pl.col("tenant") == "t3"))
    copies = pl.concat([busy.with_columns(pl.col("number") + 10**7 * copy) for copy in range(1, 15)])
    found = told(pl.concat([slow, copies]))
    assert "noisy_neighbour" not in {one.kind for one in found}
    assert (found[0].kind, found[0].suspects) == ("burst", ("tenant=t3",))


@pytest.mark.parametrize("minute", [BEGIN + 4, MINUTES])
def test_a_bad_version_on_one_host_explains_its_errors(minute: int) -> None:
    bad = changed(ON_HOST, version=pl.lit("1.1"), fails=pl.col("fails") | (pl.col("number") % 10 == 0))
    found = told(bad, minute)[0]
    assert (found.kind, found.version, found.suspects) == ("deploy", "1.1", ("version=1.1",))
    assert "at the same time" in found.sentence


@pytest.mark.parametrize("of_all", [False, True])
def test_a_version_rolled_out_at_once_is_held_against_the_time_before(of_all: bool) -> None:
    """A host a minute in the north: the former version has too few errors beside it, unless everything fails there."""
    rolled = NORTH & (pl.col("minute") >= BEGIN + pl.col("host"))
    calls = changed(rolled, version=pl.lit("1.1"))
    failing = (NORTH & (pl.col("minute") >= BEGIN)) if of_all else pl.col("version") == "1.1"
    calls = calls.with_columns(fails=pl.col("fails") | (failing & (pl.col("number") % 125 == 0)))
    found = told(calls, BEGIN + 4)
    assert (found[0].kind == "deploy") != of_all
    if not of_all:
        assert (found[0].version, found[0].region) == ("1.1", "north")
        assert "at the same time and before" in found[0].sentence


def test_a_version_that_ran_well_before_is_not_blamed() -> None:
    bad = changed(NORTH & ON_HOST, fails=pl.col("fails") | (pl.col("number") % 10 == 0))
    old = bad.with_columns(version=pl.when(ON_HOST & (pl.col("minute") >= 20)).then(pl.lit("1.1")).otherwise("version"))
    assert {one.kind for one in told(old)} == {"instance"}


def test_a_release_that_follows_a_bad_one_is_told_with_it() -> None:
    """Version 1.1 fails in the north and is harmless in the south; 1.2 takes over in the north, and fails as often."""
    late = pl.col("minute") >= BEGIN + 4
    bad = changed(
        NORTH,
        version=pl.when(late).then(pl.lit("1.2")).otherwise(pl.lit("1.1")),
        fails=pl.col("fails") | (pl.col("number") % 10 == 0),
    )
    both = bad.with_columns(version=pl.when(late & ~NORTH).then(pl.lit("1.1")).otherwise("version"))
    (found,) = told(both)
    assert (found.kind, found.version, found.region) == ("deploy", "1.1", "north")
    assert any("version 1.2" in symptom for symptom in found.symptoms)


def test_a_release_that_mends_a_bad_one_is_not_told() -> None:
    mended = changed(
        NORTH,
        version=pl.when(pl.col("minute") >= BEGIN + 4).then(pl.lit("1.2")).otherwise(pl.lit("1.1")),
        fails=pl.col("fails") | ((pl.col("number") % 10 == 0) & (pl.col("minute") < BEGIN + 4)),
    )
    assert told(mended) == []
    assert [one.version for one in told(mended, BEGIN + 4)] == ["1.1"]


@pytest.mark.parametrize(("own", "kind"), [(False, "instance"), (True, "deploy")])
def test_a_version_is_not_blamed_for_what_it_waits_for(own: bool, kind: str) -> None:
    """The north's gateway has a new version since a minute before: a host of the cache is slow, or the gateway is."""
    calls = platform() if own else changed(ON_HOST, served=pl.col("served") * 4)
    began = NOON.replace(tzinfo=None) + timedelta(minutes=BEGIN)
    new = (pl.col("service_name") == "gateway") & (pl.col("region") == "north")
    new &= pl.col("start_time") >= began - timedelta(minutes=1)
    made = spans(calls)
    requests = made.filter(pl.col("kind") == "client").with_columns(
        span_id="g" + pl.col("trace_id"), kind=pl.lit("server"), component=pl.lit("http"),
        duration_ns=pl.when(own & new & (pl.col("start_time") >= began))
        .then(pl.col("duration_ns") + 3_000_000).otherwise(pl.col("duration_ns") + 50_000),
    )  # fmt: skip
    both = pl.concat([made, requests]).with_columns(
        service_version=pl.when(new).then(pl.lit("10")).otherwise("service_version")
    )
    found = findings(of_spans(both), NOON + timedelta(minutes=MINUTES), HOUR)
    assert found[0].kind == kind
    assert own or "deploy" not in {one.kind for one in found}


def test_a_harmless_version_is_no_finding() -> None:
    assert told(changed(ON_HOST, version=pl.lit("1.1"))) == []


def test_a_cache_that_forgets_is_told_for_its_tenant() -> None:
    found = told(changed(pl.col("tenant") == "t1", hit=pl.col("hit") & (pl.col("number") % 3 > 0)))[0]
    assert (found.kind, found.tenants, found.destination) == ("hit_ratio", ("t1",), "items")


def test_what_is_over_is_no_longer_told() -> None:
    over = changed(NORTH & (pl.col("minute") < MINUTES - 4), network=pl.col("network") * 4)
    assert told(over) == []


def test_evidence_in_parts_says_what_the_whole_says() -> None:
    whole = spans(changed(ON_HOST, served=pl.col("served") * 3))
    minute = whole["start_time"].dt.truncate("1m")
    parts = Evidence.concat([of_spans(whole.filter(minute == at)) for at in minute.unique().sort()])
    end = NOON + timedelta(minutes=MINUTES)
    one, other = (findings(evidence, end, HOUR) for evidence in (of_spans(whole), parts))
    assert [(f.identity, f.since, f.sentence) for f in one] == [(f.identity, f.since, f.sentence) for f in other]


@pytest.fixture(scope="module")
def troubled() -> Evidence:
    return of_spans(spans(changed(ON_HOST, served=pl.col("served") * 3, fails=pl.col("number") % 7 == 0)))


@pytest.mark.parametrize("missing", [field.name for field in fields(Evidence)])
def test_what_is_not_known_is_not_needed(troubled: Evidence, missing: str) -> None:
    """Tables that a lake has not are empty frames: the others still tell that something is wrong."""
    end = NOON + timedelta(minutes=MINUTES)
    found = findings(replace(troubled, **{missing: getattr(Evidence.empty(), missing)}), end, HOUR)
    assert bool(found) == (missing != "base")


@pytest.mark.parametrize("kind", ["internal", "producer", "consumer", "unspecified"])
def test_spans_of_one_kind_and_unknown_places_are_fine(kind: str) -> None:
    odd = spans(changed(NORTH, served=pl.col("served") * 5)).with_columns(
        kind=pl.lit(kind),
        region=pl.lit(None, pl.String),
        host=pl.lit(None, pl.String),
        parent_span_id=pl.lit(None, pl.String),
    )
    end = NOON + timedelta(minutes=MINUTES)
    assert {one.region for one in findings(of_spans(odd), end, HOUR)} <= {"unknown", None}


def test_traffic_that_goes_over_is_a_shift_of_the_mix() -> None:
    over = platform().with_columns(
        tenant=pl.when(DURING & (pl.col("tenant") == "t0") & (pl.col("number") % 4 > 0))
        .then(pl.lit("t5"))
        .otherwise(pl.col("tenant"))
    )
    kinds = {one.kind for one in told(over)}
    assert kinds == {"mix_shift"}


def test_a_burst_beside_an_ebb_is_no_shift_of_the_mix() -> None:
    calm = platform().filter(~DURING | (pl.col("tenant") != "t1") | (pl.col("number") % 2 > 0))
    more = calm.filter(DURING & (pl.col("tenant") == "t2"))
    copies = pl.concat([more.with_columns(pl.col("number") + 10**7 * copy) for copy in range(1, 9)])
    assert {one.kind for one in told(pl.concat([calm, copies]))} == {"burst"}


def deliveries(calls: pl.DataFrame, late_ns: pl.Expr) -> pl.DataFrame:
    """A message of the gateway for each call, and its consumer on one of three hosts, `late_ns` later than usual."""
    number = pl.col("number").cast(pl.String)
    common = {
        "trace_id": number, "region": pl.col("region"), "tenant": pl.col("tenant"), "component": pl.lit("topic"),
        "operation": pl.lit("publish"), "destination": pl.lit("news"), "cache_hit": pl.lit(None, pl.Boolean),
        "status": pl.lit("unset"), "service_version": pl.lit("9"),
    }  # fmt: skip
    sent = calls.select(
        **common, span_id="p" + number, parent_span_id=pl.lit(None, pl.String), kind=pl.lit("producer"),
        service_name=pl.lit("gateway"), host=pl.format("gw-{}-0", "region"), start_time=pl.col("start"),
        duration_ns=pl.lit(2_000_000),
    )  # fmt: skip
    taken = calls.select(
        **common, span_id="k" + number, parent_span_id="p" + number, kind=pl.lit("consumer"),
        service_name=pl.lit("subscriber"), host=pl.format("sub-{}-{}", "region", "host"),
        start_time=pl.col("start") + 15_000_000 + pl.col("network").cast(pl.Int64) + late_ns,
        duration_ns=pl.lit(1_000_000),
    )  # fmt: skip
    both = pl.concat([sent, taken])
    return both.with_columns(pl.col("start_time").cast(pl.Datetime("ns")), service_instance_id=pl.col("host"))


@pytest.mark.parametrize(("where", "kinds"), [(ON_HOST, {"clock_skew"}), (NORTH, {"delivery_lag"})])
def test_a_consumer_ahead_is_a_clock_and_all_of_them_late_is_not(where: pl.Expr, kinds: set[str]) -> None:
    late = pl.when(DURING & where).then(80_000_000).otherwise(0)
    end = NOON + timedelta(minutes=MINUTES)
    found = findings(of_spans(deliveries(platform(), late)), end, HOUR)
    assert {one.kind for one in found} == kinds
    assert found[0].host == ("sub-north-2" if "clock_skew" in kinds else None)


def test_a_burst_of_a_tenant_is_told_as_such() -> None:
    calm = platform()
    more = calm.filter(DURING & (pl.col("tenant") == "t2"))
    copies = pl.concat([more.with_columns(pl.col("number") + 10**7 * copy) for copy in range(1, 5)])
    found = told(pl.concat([calm, copies]))[0]
    assert (found.kind, found.suspects) == ("burst", ("tenant=t2",))
    assert found.effect.ratio == pytest.approx(5, rel=0.3)


def test_errors_that_are_called_again_are_a_retry_storm() -> None:
    calm = platform()
    failing = DURING & NORTH & (pl.col("number") % 3 == 0)
    failed = calm.with_columns(fails=pl.when(failing).then(pl.lit(value=True)).otherwise(pl.col("fails")))
    again = failed.filter(failing).with_columns(pl.col("number") + 10**7)
    found = told(pl.concat([failed, again]))[0]
    assert (found.kind, found.region) == ("retry_storm", "north")
    assert any(symptom.startswith(("errors", "region_errors")) for symptom in found.symptoms)


def test_calls_that_a_service_repeats_within_a_request_are_a_retry_storm() -> None:
    """The repeated ones are refused, so that nobody serves more than usual."""
    calm = platform()
    requests = spans(calm).filter(pl.col("kind") == "client").with_columns(
        span_id="g" + pl.col("trace_id"), kind=pl.lit("server"), component=pl.lit("http"), operation=pl.lit("GET"),
    )  # fmt: skip
    failing = DURING & NORTH & (pl.col("number") % 3 == 0)
    refused = spans(calm.filter(failing).with_columns(fails=pl.lit(value=True))).filter(pl.col("kind") == "client")
    tries = [refused.with_columns(span_id=pl.lit(f"try {number}") + pl.col("span_id")) for number in (1, 2)]
    end = NOON + timedelta(minutes=MINUTES)
    found = findings(of_spans(pl.concat([requests, spans(calm), *tries])), end, HOUR)
    assert (found[0].kind, found[0].region, found[0].service) == ("retry_storm", "north", "gateway")
    assert found[0].effect.ratio == pytest.approx(1 + 2 / 3, rel=0.05)


@given(st.lists(st.integers(50, 500), min_size=20, max_size=30), st.integers(1, 3))
def test_repeats_are_told_by_what_failed_whatever_was_asked(requests: list[int], repeats: int) -> None:
    asked = np.array(requests, float)
    calls, failed = asked.copy(), np.zeros(len(asked))
    calls[-5:] *= 1 + repeats
    failed[-5:] = repeats * asked[-5:]
    found = repeated(calls, asked, failed, len(asked) - 5, len(asked) - 5)
    assert found == (pytest.approx(1 + repeats), pytest.approx(1))
    assert repeated(calls, asked, failed / 2, len(asked) - 5, len(asked) - 5) is None
    assert repeated(asked, asked, failed, len(asked) - 5, len(asked) - 5) is None


@pytest.mark.parametrize(("much", "kinds"), [((4, 2), {"traffic_surge"}), ((12, 1.3), set())])
def test_a_surge_lasts_and_a_minute_of_it_is_none(much: tuple[float, float], kinds: set[str]) -> None:
    """Traffic of the last two minutes, as multiples of the usual; the last is above it in both."""
    calm = platform()
    parts = [calm]
    for minute, ratio in zip((MINUTES - 2, MINUTES - 1), much, strict=True):
        there = calm.filter(NORTH & (pl.col("minute") == minute))
        more = there.sample(fraction=ratio - 1, with_replacement=True, seed=1)
        parts.append(more.with_columns(number=pl.Series(range(more.height)) + 10**7 * minute))
    assert {one.kind for one in told(pl.concat(parts))} == kinds


def shuffled(grain: Grain, rng: np.random.Generator) -> Grain:
    """The same counts: series have other numbers, rows of a minute come in another order."""
    order = rng.permutation(grain.keys.height)
    number = pl.Series(np.argsort(order), dtype=pl.UInt32)
    rows, cells = (
        one.with_columns(number.gather(one["series"]).alias("series"))
        .sample(fraction=1.0, shuffle=True, seed=int(rng.integers(2**31)))
        .sort("minute", maintain_order=True)
        for one in (grain.rows, grain.cells)
    )
    return Grain(grain.dimensions, grain.keys[order], rows, cells)


@cache
def much_goes_wrong() -> Evidence:
    """A host gets a bad version and is slow, a tenant asks for more, messages of the north are late."""
    bad = changed(
        ON_HOST,
        served=pl.col("served") * 3,
        version=pl.lit("1.1"),
        fails=pl.col("fails") | (pl.col("number") % 10 == 0),
    )
    copies = bad.filter(DURING & (pl.col("tenant") == "t3"))
    more = pl.concat([bad, *(copies.with_columns(pl.col("number") + 10**7 * copy) for copy in range(1, 5))])
    late = pl.when(DURING & NORTH).then(80_000_000).otherwise(0)
    return of_spans(pl.concat([spans(more), deliveries(platform(2), late)], how="diagonal_relaxed"))


@pytest.mark.parametrize("seed", range(4))
def test_the_same_evidence_in_any_order_gives_the_same_findings(seed: int) -> None:
    """To the last digit: float sums go by an order of their own."""
    evidence, end, rng = much_goes_wrong(), NOON + timedelta(minutes=MINUTES), np.random.default_rng(seed)
    parts = {field.name: getattr(evidence, field.name) for field in fields(Evidence)}
    other = replace(
        evidence,
        **{
            name: shuffled(one, rng) if isinstance(one, Grain) else one.sample(fraction=1.0, shuffle=True, seed=seed)
            for name, one in parts.items()
        },
    )
    found = findings(evidence, end, HOUR)
    assert {"deploy", "burst"} == {one.kind for one in found}
    assert found == findings(other, end, HOUR)


def test_every_process_finds_the_same() -> None:
    """Whatever texts are hashed by, and on however many threads."""
    asked = "from test_insight_engine import *; print(findings(much_goes_wrong(), NOON + MINUTES * MINUTE, HOUR))"
    with_other_hashes = os.environ | {"PYTHONHASHSEED": "7", "POLARS_MAX_THREADS": "3"}
    command = [sys.executable, "-c", asked]
    answer = subprocess.check_output(command, cwd=Path(__file__).parent, text=True, env=with_other_hashes)
    assert answer == f"{findings(much_goes_wrong(), NOON + MINUTES * MINUTE, HOUR)}\n"
