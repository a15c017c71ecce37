"""Statistics of insight: worked examples and properties of the pure parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.insight import baselines, telling
from analytics.insight.alerts import Alerts
from analytics.insight.changes import began, change_points
from analytics.insight.compositions import shifted
from analytics.insight.finding import FINDINGS_SCHEMA, KINDS, Confidence, Effect, Finding, Kind, Place, frame
from analytics.insight.folding import explains, fold
from analytics.insight.forecasting import forecast
from analytics.insight.hosts import shifted_correlation
from analytics.insight.lifecycle import Tracker
from analytics.insight.locating import effective_number, locate
from analytics.insight.measures import Rated, Span
from analytics.insight.mix import kitagawa
from analytics.insight.objectives import burn_rate
from analytics.insight.panel import quantile_ns
from analytics.insight.traced import DEMAND_SCHEMA, steady
from analytics.insight.trends import budding, rising
from collector.config import AlertsConfig
from collector.errors import OperatorError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SPAN = Span.until(NOON.replace(tzinfo=None), 60, 15)
counts = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8)


def finding(
    kind: Kind = "latency", since: int = 0, region: str | None = "r1", score: float = 1.0, **more: Any
) -> Finding:
    place = more.pop("place", Place(region, "cache"))
    return Finding(
        kind, place, "warning", score, NOON + timedelta(minutes=since), NOON + timedelta(minutes=since + 3),
        Effect("p95_ns", 2.0, 1.0, 2.0), Confidence("t", 0.0, 0.0, 10), f"{kind} is there.", **more,
    )  # fmt: skip


@given(counts, counts)
def test_kitagawa_splits_the_difference_of_crude_rates_exactly(
    now: list[tuple[int, int]], before: list[tuple[int, int]]
) -> None:
    size = min(len(now), len(before))
    trials = np.array([[a[0] + a[1], b[0] + b[1]] for a, b in zip(now[:size], before[:size], strict=True)], float)
    events = np.array([[a[0], b[0]] for a, b in zip(now[:size], before[:size], strict=True)], float)
    if not trials.sum(0).all():
        return
    crude = events.sum(0) / trials.sum(0)
    assert sum(kitagawa(events, trials)) == pytest.approx(crude[0] - crude[1], abs=1e-9)


def test_kitagawa_tells_simpsons_paradox() -> None:
    """Each stratum does better, the whole does worse: the mix alone did it."""
    trials = np.array([[900.0, 100.0], [100.0, 900.0]])
    events = trials * np.array([[0.09, 0.10], [0.009, 0.01]])
    by_rates, by_mix = kitagawa(events, trials)
    assert by_rates < 0 < by_mix
    assert by_rates + by_mix > 0


def measure(rate: np.ndarray, trials: float = 1000.0, seed: int = 1) -> Rated:
    rng = np.random.default_rng(seed)
    tried = np.full(rate.shape, trials)
    observed = rng.binomial(int(trials), rate).astype(float)
    return baselines.rates(observed, tried, np.zeros(len(rate), dtype=np.intp), 1, SPAN)


def test_a_scan_finds_a_step_its_beginning_and_nothing_else() -> None:
    rate = np.full((3, 60), 0.05)
    rate[1, 54:] = 0.10
    found = baselines.scan(measure(rate), SPAN)
    assert found.z[1] > 10
    assert found.since[1] == 54
    assert max(found.z[0], found.z[2]) < 6


def test_a_scan_does_not_tell_of_what_is_over() -> None:
    rate = np.full((1, 60), 0.05)
    rate[0, 46:57] = 0.5
    assert baselines.scan(measure(rate), SPAN).z[0] < 6


def test_a_series_that_bursts_by_nature_needs_a_larger_deviation() -> None:
    bursting = np.full((1, 60), 0.05)
    bursting[0, ::6] = 0.3
    bursting[0, -2:] = 0.1
    calm = np.full((1, 60), 0.05)
    calm[0, -2:] = 0.1
    assert baselines.scan(measure(bursting), SPAN).z[0] < 6 < baselines.scan(measure(calm), SPAN).z[0]


@given(st.integers(0, 4), st.integers(0, 3))
def test_an_excess_is_located_where_it_was_put(region: int, host: int) -> None:
    keys = pl.DataFrame(
        [(f"r{r}", f"h{h}") for r in range(5) for h in range(4)], schema=["region", "host"], orient="row"
    )
    mine = ((keys["region"] == f"r{region}") & (keys["host"] == f"h{host}")).to_numpy()
    found, inside = locate(keys, np.where(mine, 50.0, 1.0), np.full(20, 10.0), ("region", "host"))
    assert found == {"region": f"r{region}", "host": f"h{host}"}
    assert (inside == mine).all()


def test_an_even_excess_is_located_nowhere() -> None:
    keys = pl.DataFrame({"tenant": ["a", "b", "c", "d"]})
    assert locate(keys, np.full(4, 10.0), np.full(4, 10.0), ("tenant",))[0] == {}


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30))
def test_the_effective_number_lies_between_one_and_all(excess: list[float]) -> None:
    assert 1 - 1e-9 <= effective_number(np.array(excess)) <= len(excess) + 1e-6


def test_a_shifted_correlation_is_that_of_numpy_and_finds_the_one_that_goes_along() -> None:
    rng = np.random.default_rng(3)
    excess = np.where(np.arange(60) > 45, 5.0, 0.0) + rng.normal(0, 1, 60)
    usage = np.stack([excess + rng.normal(0, 1, 60), rng.normal(0, 1, 60)])
    correlation, p = shifted_correlation(usage, np.tile(excess, (2, 1)))
    assert correlation == pytest.approx([np.corrcoef(row, excess)[0, 1] for row in usage])
    assert p[0] <= 2 / 60
    assert p[1] > 0.1


def test_a_ramp_is_told_from_a_step_and_from_noise() -> None:
    noise = np.exp(np.random.default_rng(5).normal(0, 0.03, 60))
    ramp = np.concatenate([np.ones(45), np.exp(np.arange(15) * 0.12)]) * noise
    step = np.concatenate([np.ones(50), np.full(10, 4.0)]) * noise
    found = rising(ramp, 1.0)
    assert found is not None
    assert found.rise > 2
    # At 12 % a minute, from exp(1.68) to 20 times the usual.
    low, high = found.left_minutes
    assert low <= (np.log(20) - 14 * 0.12) / 0.12 + 3
    assert low <= high
    assert rising(step, 1.0) is None
    assert rising(noise, 1.0) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_ramp_against_peers_is_told_by_its_fifth_minute_and_no_step_nor_noise(seed: int) -> None:
    noise = 0.02 * np.random.default_rng(seed).standard_normal(75)
    minute = np.arange(75.0)
    found = budding(0.3 + noise + 0.07 * np.clip(minute - 69, 0, None), 60)
    assert found is not None
    assert found.rise == pytest.approx(np.exp(0.07 * (found.minutes - 1)), rel=0.15)
    low, high = found.left_minutes
    # At 7 % a minute; of the longest stretch, the first minute may be one before the ramp.
    left = (np.log(20) - 0.07 * 5) / 0.07
    assert low / 1.15 < left < high * 1.15
    assert budding(0.3 + noise, 60) is None
    assert budding(0.3 + noise + 0.4 * (minute >= 72), 60) is None
    assert budding(0.3 + noise + 0.01 * np.clip(minute - 69, 0, None), 60) is None


def test_the_stratified_test_is_not_deceived_by_the_mix() -> None:
    trials = np.array([[9000.0, 1000.0], [1000.0, 9000.0]])
    same = trials * np.array([[0.10, 0.10], [0.01, 0.01]])
    worse = trials * np.array([[0.20, 0.10], [0.02, 0.01]])
    assert telling.stratified_test(same, trials)[0] > 0.5
    p, odds, low, high = telling.stratified_test(worse, trials)
    assert p < 1e-6
    assert 1.5 < low < odds < high < 3


def test_quantiles_of_cells_are_near_those_of_the_durations() -> None:
    from analytics.buckets import bucket_index
    from analytics.insight.grains import BUCKETS_PER_CELL
    from analytics.insight.panel import CELLS

    durations = np.exp(np.random.default_rng(1).normal(14, 0.6, 20_000)).astype(int)
    cells = pl.DataFrame({"d": durations}).select(bucket_index(pl.col("d")) // BUCKETS_PER_CELL + 1).to_series()
    spread = np.bincount(cells.to_numpy(), minlength=CELLS).astype(float)
    for q in (0.5, 0.95, 0.99):
        assert quantile_ns(spread, q) == pytest.approx(np.quantile(durations, q), rel=0.03)
    assert quantile_ns(np.zeros(CELLS), 0.5) is None


def test_change_points_are_where_the_mean_changes() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 1, 40), rng.normal(8, 1, 12)])
    assert change_points(values) == [40]
    assert change_points(rng.normal(0, 1, 60)) == []
    assert began(values, 42) == 40
    assert began(values, 20) == 20


def test_a_forecast_is_silent_unless_it_beats_the_day_before() -> None:
    hours = np.arange(14 * 24)
    noise = np.random.default_rng(1).normal(0, 1, len(hours))
    season = 100 + 30 * np.sin(2 * np.pi * hours / 24)
    found = forecast(season + 2 * hours + noise)
    assert found is not None
    assert found.skill > 0.3
    expected = 100 + 30 * np.sin(2 * np.pi * (hours[-1] + 1 + np.arange(24)) / 24) + 2 * (hours[-1] + 1 + np.arange(24))
    assert found.middle == pytest.approx(expected, rel=0.05)
    assert (found.low <= found.middle).all()
    assert forecast(np.tile(season[:24], 14)) is None  # yesterday's figures are exact
    assert forecast(season[:48]) is None


def test_a_burn_rate_is_the_bad_share_over_what_is_allowed() -> None:
    assert burn_rate(144, 1000, 0.99) == pytest.approx(14.4)
    assert burn_rate(0, 0, 0.99) == 0


def test_steady_demand_does_not_move_with_a_burst_of_ten_seconds() -> None:
    slots = [
        {"minute": NOON.replace(tzinfo=None), "region": "r", "tenant": "t", "slot": s, "count": 10} for s in range(6)
    ]
    slots[2]["count"] = 500
    schema = {**DEMAND_SCHEMA, "slot": pl.Int64()}
    schema.pop("steady_count")
    (row,) = steady(pl.DataFrame(slots, schema=schema)).rows(named=True)
    assert (row["count"], row["steady_count"]) == (550, 60.0)
    (sparse,) = steady(pl.DataFrame(slots[2:4], schema=schema)).rows(named=True)
    assert sparse["steady_count"] == 0


def demand_of(seed: int, tenants: int = 8, minutes: int = 75) -> np.ndarray:
    """Demand by tenant and minute of Zipf-like tenants, each with a slow rhythm of its own."""
    rng = np.random.default_rng(seed)
    rhythm = 1 + 0.3 * np.sin(rng.uniform(0, 6, (tenants, 1)) + np.arange(minutes) / rng.uniform(20, 60, (tenants, 1)))
    return rng.poisson(2000 / np.arange(1, tenants + 1)[:, None] * rhythm).astype(float)


@given(st.integers(0, 10**6))
def test_a_rhythm_of_each_tenant_is_no_shift(seed: int) -> None:
    assert shifted(demand_of(seed), 60, 15) is None


@given(st.integers(0, 10**6), st.sampled_from([3, 5, 8]), st.floats(0.7, 0.9))
def test_what_one_loses_and_another_gains_at_once_is_a_shift(seed: int, minutes: int, part: float) -> None:
    """With 0.6 of it a rhythm hides one in three thousand."""
    demand = demand_of(seed)
    gone = part * demand[0, -minutes:]
    demand[0, -minutes:] -= gone
    demand[3, -minutes:] += gone
    shift = shifted(demand, 60, 15)
    assert shift is not None
    assert shift.gains[3]
    assert shift.losses[0]
    assert not (shift.gains & shift.losses).any()


@given(st.integers(0, 10**6), st.floats(3, 10))
def test_neither_a_burst_nor_its_end_is_a_shift(seed: int, factor: float) -> None:
    for burst in (slice(-4, None), slice(-8, -4)):
        demand = demand_of(seed)
        demand[2, burst] *= factor
        assert shifted(demand, 60, 15) is None


def test_too_short_a_history_knows_no_shift() -> None:
    assert shifted(demand_of(1)[:, :30], 15, 15) is None


def test_identity_is_of_kind_and_place_alone() -> None:
    assert finding(since=3, score=9).identity == finding().identity
    assert len({finding(kind).identity for kind in ("latency", "errors")} | {finding(region="r2").identity}) == 3
    assert finding(tenant_scope="a").identity != finding().identity


def test_findings_make_rows_of_the_schema() -> None:
    rows = frame([finding(tenants=("a", "b"))], NOON)
    assert rows.schema == FINDINGS_SCHEMA
    assert rows["tenants"].to_list() == [["a", "b"]]
    assert frame([], NOON).schema == FINDINGS_SCHEMA


def test_a_cause_takes_the_symptoms_of_its_region_and_no_others() -> None:
    cause = finding("noisy_neighbour", place=Place("r1", "cache", host="h1"))
    here, there, earlier = finding("latency", since=1), finding("latency", region="r2"), finding("errors", since=-30)
    found = fold([here, cause, there, earlier])
    kinds = {(one.kind, one.region) for one in found}
    assert kinds == {("noisy_neighbour", "r1"), ("latency", "r2"), ("errors", "r1")}
    assert found[0].symptoms == ("latency cache in r1",)


def test_latency_is_never_a_cause_of_a_change_of_state() -> None:
    for state in ("deploy", "burst", "instance", "noisy_neighbour", "hit_ratio", "traffic_surge"):
        assert not explains(finding("latency"), finding(state))
        assert not explains(finding("region_slow"), finding(state))


def test_a_slow_region_explains_late_deliveries_and_is_not_explained_by_them() -> None:
    slow, late = finding("region_slow", place=Place("r1")), finding("delivery_lag", place=Place("r1", destination="t"))
    (found,) = fold([late, slow])
    assert (found.kind, found.symptoms) == ("region_slow", ("delivery_lag for t in r1",))


def test_late_deliveries_of_a_tenant_explain_a_host_that_hurts_nobody_else() -> None:
    late = finding("delivery_lag", region=None, tenant_scope="a")
    for kind in ("instance", "deploy"):
        assert explains(late, finding(kind, tenants=("a",)))
        assert explains(late, finding(kind))
        assert not explains(late, finding(kind, tenants=("a", "b")))
        assert not explains(finding("delivery_lag", region=None), finding(kind, tenants=("a",)))


def test_a_burst_explains_the_host_and_the_misses_of_its_tenant_though_these_could_be_causes() -> None:
    burst = finding("burst", region=None, tenant_scope="a", suspects=("tenant=a",))
    host, misses = finding("instance"), finding("hit_ratio", tenant_scope="a")
    others = finding("hit_ratio", region="r2", tenant_scope="b")
    assert {(one.kind, one.tenant_scope) for one in fold([host, misses, others, burst])} == {
        ("burst", "a"), ("hit_ratio", "b")
    }  # fmt: skip


def test_a_release_explains_the_one_that_follows_it_and_no_other() -> None:
    first = finding("deploy", place=Place("r1", "cache", version="2"))
    second = finding("deploy", place=Place("r1", "cache", version="3"), since=5)
    assert explains(first, second)
    assert not explains(second, first)
    assert not explains(first, finding("deploy", place=Place("r1", "topics", version="3"), since=5))
    assert [one.version for one in fold([second, first])] == ["2"]


def test_a_shift_explains_the_burst_of_who_gains_and_no_other() -> None:
    shift = finding("mix_shift", tenants=("a", "b"), suspects=("tenant=a",))
    assert explains(shift, finding("burst", tenant_scope="a"))
    assert not explains(shift, finding("burst", tenant_scope="b"))
    assert explains(shift, finding("traffic_drop", tenant_scope="b"))
    assert not explains(shift, finding("traffic_drop", tenant_scope="a"))


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(-8, 8), st.sampled_from(["a", "b", None])), max_size=9))
def test_whatever_is_found_is_told_or_a_symptom_of_what_is(kinds: list[tuple[str, int, str | None]]) -> None:
    found = [
        finding(kind, since, place=Place("r1", f"s{number}"), tenant_scope=tenant, tenants=("a", "b"))
        for number, (kind, since, tenant) in enumerate(kinds)
    ]
    told = fold(found)
    phrases = [f"{one.kind} {one.place.words()}" for one in found]
    named = [f"{one.kind} {one.place.words()}" for one in told] + [text for one in told for text in one.symptoms]
    assert sorted(named) == sorted(phrases)


def test_the_same_in_all_regions_is_one_finding() -> None:
    (found,) = fold([finding("errors", region=region) for region in ("r1", "r2", "r3")])
    assert found.region is None
    assert "r1, r2, r3" in found.sentence


def test_a_finding_opens_when_seen_twice_and_resolves_when_quiet() -> None:
    tracker, seen = Tracker(resolve_minutes=3), [finding()]
    script = [seen, seen, seen, [], seen, [], [], [], []]
    states = [
        [one.state for one in tracker.update(found, NOON + timedelta(minutes=m))] for m, found in enumerate(script)
    ]
    assert states == [[], ["opened"], ["ongoing"], ["ongoing"], ["ongoing"], ["ongoing"], ["ongoing"], ["resolved"], []]


def test_a_finding_that_is_seen_now_and_then_never_opens() -> None:
    tracker = Tracker()
    assert not any(tracker.update([finding()] if m % 2 else [], NOON + timedelta(minutes=m)) for m in range(20))


def test_what_is_seen_at_a_narrower_or_wider_place_has_been_seen_before() -> None:
    wide, narrow, other = (finding("hit_ratio", place=Place("r1", destination=name)) for name in (None, "a", "b"))
    for first, second, opens in ((wide, narrow, True), (narrow, wide, True), (narrow, other, False)):
        tracker = Tracker()
        assert tracker.update([first], NOON) == []
        told = tracker.update([second], NOON + timedelta(minutes=1))
        assert [one.identity for one in told] == [second.identity] * opens


def test_a_cause_that_lasts_is_told_at_once_and_a_symptom_is_not() -> None:
    for kind, minutes, opens in (("instance", 3, True), ("instance", 2, False), ("latency", 5, False)):
        told = Tracker().update([finding(kind)], NOON + timedelta(minutes=minutes))
        assert [one.state for one in told] == ["opened"] * opens


def test_what_is_seen_beside_another_has_not_been_seen_before() -> None:
    wide, narrow = (finding("hit_ratio", place=Place("r1", destination=name)) for name in (None, "a"))
    tracker = Tracker()
    tracker.update([wide], NOON)
    told = tracker.update([wide, narrow], NOON + timedelta(minutes=1))
    assert [one.identity for one in told] == [wide.identity]


def test_a_symptom_does_not_open_while_its_cause_is_open() -> None:
    tracker, cause, symptom = Tracker(), finding("instance"), finding("latency")
    for minute in range(3):
        tracker.update([cause], NOON + timedelta(minutes=minute))
    told = [one.kind for m in range(3, 5) for one in tracker.update([symptom], NOON + timedelta(minutes=m))]
    assert told == ["instance", "instance"]


@pytest.mark.parametrize("silence", ["kind", "kind=burst,until=tomorrow", "colour=red", "until=2026-03-01T12:00"])
def test_a_silence_that_cannot_be_read_is_told(silence: str) -> None:
    with pytest.raises(OperatorError, match=r"alerts\.silences"):
        Alerts(AlertsConfig(url="http://127.0.0.1:1", silences=(silence,)))
