"""Edges, deliveries, summaries, hot keys, exemplars and sightings of small hand-made traces; the views agree."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics import jobs
from analytics.buckets import quantile
from analytics.traces import deliveries, edges, exemplars, hot_keys, sightings, summaries
from analytics.traces.forest import Forest
from analytics.traces.job import write_rows
from analytics.traces.tables import TABLES
from collector.lake.lake import Lake
from collector.lake.location import Location

MS = 1_000_000
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).replace(tzinfo=None)
LINK = pl.Struct({"trace_id": pl.String, "span_id": pl.String})
TEXTS = (
    "trace_id", "span_id", "parent_span_id", "kind", "status", "service_name", "region", "tenant", "component",
    "operation", "destination", "host",
)  # fmt: skip
SCHEMA = pl.Schema(
    dict.fromkeys(TEXTS, pl.String()) | {"start_time": pl.Int64(), "duration_ns": pl.Int64(), "links": pl.List(LINK)}
)


def span(span_id: str, kind: str, service: str, start_ms: int, end_ms: int, **given: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "trace_id": "t", "parent_span_id": None, "status": "unset", "region": "eu", "tenant": "acme",
        "component": "rpc", "operation": "work", "destination": None, "host": f"{service}-1", "links": [],
    }  # fmt: skip
    start_ns = int(NOON.replace(tzinfo=UTC).timestamp()) * 10**9 + start_ms * MS
    own = {"span_id": span_id, "kind": kind, "service_name": service, "start_time": start_ns}
    return {**defaults, **own, "duration_ns": (end_ms - start_ms) * MS, **given}


def forest(*spans: dict[str, Any]) -> Forest:
    frame = pl.DataFrame([{name: s[name] for name in SCHEMA} for s in spans], schema=SCHEMA)
    return Forest.of(frame.with_columns(pl.col("start_time").cast(pl.Datetime("ns"))))


def link(trace_id: str, span_id: str) -> dict[str, str]:
    return {"trace_id": trace_id, "span_id": span_id}


EDGE = ("connection", "client_type", "client", "server_type", "server", "is_matched")
COUNTS = ("client_count", "client_errors", "server_count", "server_errors")


def edge_counts(*spans: dict[str, Any]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    found = edges.rows(forest(*spans)).group_by(EDGE).agg(pl.col(COUNTS).sum())
    return {row[:6]: row[6:] for row in found.select(*EDGE, *COUNTS).iter_rows()}


CALL = (
    span("g", "server", "gateway", 0, 100),
    span(
        "c", "client", "gateway", 10, 60, parent_span_id="g", component="cache", destination="sessions", status="error"
    ),
    span("s", "server", "cache", 20, 50, parent_span_id="c"),
)


def test_a_call_is_counted_on_both_sides_and_the_ingress_as_entry() -> None:
    assert edge_counts(*CALL) == {
        ("call", "entry", "", "service", "gateway", True): (0, 0, 1, 0),
        ("call", "service", "gateway", "service", "cache", True): (1, 1, 1, 0),
    }
    row = edges.rows(forest(*CALL)).filter(pl.col("client") == "gateway").row(0, named=True)
    for name, expected in (("client_buckets", 50), ("server_buckets", 30)):
        assert quantile(dict(row[name]), 0.5) == pytest.approx(expected * MS, rel=0.01), name


def test_without_its_server_span_a_client_leads_to_a_node_of_its_component() -> None:
    unmatched = ("call", "service", "gateway", "cache", "sessions", False)
    assert edge_counts(*CALL[:2])[unmatched] == (1, 1, 0, 0)
    assert edge_counts(CALL[2]) == {("call", "unknown", "", "service", "cache", False): (0, 0, 1, 0)}


def test_a_call_without_a_client_span_and_a_step_within_a_service() -> None:
    found = edge_counts(
        span("a", "internal", "gateway", 0, 9), span("b", "server", "cache", 1, 8, parent_span_id="a"),
        span("c", "server", "cache", 2, 7, parent_span_id="b"),
    )  # fmt: skip
    assert found == {("call", "service", "gateway", "service", "cache", True): (0, 0, 1, 0)}


MESSAGE = (
    span("p", "producer", "shop", 0, 10, component="topic", destination="orders"),
    span("by parent", "consumer", "billing", 30, 40, parent_span_id="p", destination="orders"),
    span("by link", "consumer", "mail", 70, 80, trace_id="u", links=[link("t", "p")], destination="orders"),
    span(
        "both",
        "consumer",
        "mail",
        90,
        95,
        parent_span_id="p",
        links=[link("t", "p")],
        status="error",
        destination="orders",
    ),
)


def test_messages_are_joined_by_parent_and_by_link_each_once() -> None:
    assert edge_counts(*MESSAGE) == {
        ("message", "service", "shop", "service", "billing", True): (1, 0, 1, 0),
        ("message", "service", "shop", "service", "mail", True): (1, 0, 2, 1),
    }
    assert edge_counts(MESSAGE[0]) == {("message", "service", "shop", "topic", "orders", False): (1, 0, 0, 0)}
    assert edge_counts(MESSAGE[2]) == {("message", "unknown", "", "service", "mail", False): (0, 0, 1, 0)}


def test_what_lacks_a_half_is_pending_first() -> None:
    found = edges.rows(forest(*CALL[1:2]))
    states = [edges.with_state(found, NOON + timedelta(minutes=m))["state"].to_list() for m in (1, 3, 4)]
    assert states == [["pending"], ["pending"], ["unmatched"]]
    assert edges.with_state(edges.rows(forest(*CALL)), NOON)["state"].unique().to_list() == ["matched"]


def test_deliveries_of_a_message() -> None:
    early = span("skewed", "consumer", "audit", -5, 5, parent_span_id="p", host="audit-7")
    lost = span("q", "producer", "shop", 5, 6, component="topic", destination="orders")
    planted = forest(*MESSAGE, early, lost)
    row = deliveries.rows(planted).row(0, named=True)
    assert {name: row[name] for name in deliveries.DELIVERIES.counts} == {
        "messages": 2, "delivered": 1, "deliveries": 4, "consumer_errors": 1, "negative_lags": 1,
    }  # fmt: skip
    assert [tuple(entry) for entry in sorted(dict(row["fan_out_counts"]).items())] == [(0, 1), (4, 1)]
    for name, expected in (("first_lag_buckets", 30), ("last_lag_buckets", 90), ("lag_buckets", 70)):
        assert quantile(dict(row[name]), 0.5) == pytest.approx(expected * MS, rel=0.01), name
    assert deliveries.skew_rows(planted).select("from_host", "to_host", "negative_lags", "ahead_sum_ns").rows() == [
        ("shop-1", "audit-7", 1, 5 * MS)
    ]


def test_a_summary_of_a_trace() -> None:
    late = span("x", "internal", "cache", 25, 45, parent_span_id="lost", region=None)
    (row,) = summaries.rows(forest(*CALL, late)).to_dicts()
    assert row == {
        "window_start": NOON, "trace_id": "t", "start_time": NOON, "duration_ns": 100 * MS,
        "spans": 4, "errors": 1, "services": 2, "missing_parents": 1, "is_complete": True,
        "root_service_name": "gateway", "root_operation": "work",
        "root_kind": "server", "root_status": "unset", "tenant": "acme", "region": "eu", "regions": "eu,unknown",
        "top_service_name": "gateway", "top_operation": "work", "top_exclusive_ns": 70 * MS, "path_ns": 100 * MS,
        "traces": 1,
    }  # fmt: skip
    (row,) = summaries.rows(forest(*CALL[1:])).to_dicts()
    assert (row["is_complete"], row["root_kind"], row["missing_parents"]) == (False, "client", 1)


def keyed(*counts: tuple[str, int], destination: str = "sessions") -> pl.DataFrame:
    keys = [key for key, count in counts for _ in range(count)]
    place = {
        "region": "eu", "tenant": "acme", "service_name": "cache", "component": "cache", "destination": destination,
        "kind": "server",
    }  # fmt: skip
    return pl.DataFrame({"key": keys}, schema={"key": pl.String}).with_columns(
        pl.lit(NOON, pl.Datetime("ns")).alias("start_time"), *(pl.lit(v, pl.String).alias(k) for k, v in place.items())
    )


def test_hot_keys_are_counted_and_their_concentration_is_told() -> None:
    spans = pl.concat([keyed(("a", 6), ("b", 2)), keyed(("x", 1)).with_columns(key=pl.lit(None, pl.String))])
    found = hot_keys.concentration(hot_keys.rows(spans, None)).row(0, named=True)
    told = {
        name: found[name] for name in ("spans", "keyed", "top_key", "top_count", "top_share", "top_share_max", "hhi")
    }
    assert told == {
        "spans": 9, "keyed": 8, "top_key": "a", "top_count": 6, "top_share": 0.75, "top_share_max": 0.75,
        "hhi": (36 + 4) / 64,
    }  # fmt: skip
    without = hot_keys.concentration(hot_keys.rows(spans.filter(pl.col("key").is_null()), None)).row(0, named=True)
    assert (without["spans"], without["keyed"], without["top_key"]) == (1, 0, None)


def test_hashed_keys_are_alike_for_alike_keys_and_differ_by_secret() -> None:
    one, again, other = (
        dict(hot_keys.rows(keyed(("a@b.example", 3)), secret)["key_counts"][0]) for secret in (b"1", b"1", b"2")
    )
    assert one == again != other
    assert "a@b.example" not in one
    assert [len(key) for key in one] == [16]


@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=120), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_merged_summaries_of_keys_keep_their_bound(slices: list[list[int]]) -> None:
    parts = [hot_keys.rows(keyed(*((f"{key}", 1) for key in part)), None) for part in slices]
    found = hot_keys.merged(pl.concat(parts)).row(0, named=True)
    counters, true = dict(found["key_counts"]), Counter(f"{key}" for part in slices for key in part)
    assert found["keyed"] == sum(true.values())
    assert len(counters) <= hot_keys.COUNTERS
    assert found["undercount"] <= found["keyed"] / (hot_keys.COUNTERS + 1)
    for key, count in true.items():
        assert counters.get(key, 0) <= count <= counters.get(key, 0) + found["undercount"]


def exemplar_spans(durations: list[int], errors: list[bool]) -> pl.DataFrame:
    spans = [
        span(f"{i:03}", "server", "cache", 0, 0, duration_ns=d, trace_id=f"t{i:03}", status="error" if e else "ok")
        for i, (d, e) in enumerate(zip(durations, errors, strict=True))
    ]
    return forest(*spans).spans


@given(st.lists(st.tuples(st.integers(1, 10**12), st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_exemplars_are_the_slowest_and_a_typical_one_however_they_came(spans: list[tuple[int, bool]], cut: int) -> None:
    frame = exemplar_spans(*(list(column) for column in zip(*spans, strict=True)))
    rows = pl.concat([exemplars.rows(frame[:cut]), exemplars.rows(frame[cut:])])
    found = {row["exemplar"]: row for row in exemplars.picked(rows).to_dicts()}
    durations = sorted(d for d, _ in spans)
    assert found["slowest"]["duration_ns"] == durations[-1]
    assert found.get("error", {}).get("duration_ns") == max((d for d, is_error in spans if is_error), default=None)
    median = durations[(len(durations) - 1) // 2]
    assert 1 / exemplars.CELL_FACTOR < found["typical"]["duration_ns"] / median < exemplars.CELL_FACTOR
    for row in found.values():
        assert spans[int(row["span_id"])][0] == row["duration_ns"]


def test_sightings_are_first_and_last_times_however_they_came() -> None:
    minutes = [5, 1, 9, 3]
    frame = pl.DataFrame(
        {
            "service_name": ["cache"] * 4, "region": ["eu", "eu", "eu", None], "service_version": ["1", "1", "2", "1"],
            "service_instance_id": [None] * 4, "host": ["h"] * 4,
            "start_time": [NOON + timedelta(minutes=m) for m in minutes], "received_at": [NOON] * 4,
        },
        schema_overrides={"service_instance_id": pl.String},
    )  # fmt: skip
    found = sightings.merged(pl.concat([sightings.rows(frame[:1]), sightings.rows(frame[1:])]))
    assert found.equals(sightings.rows(frame))
    seen = {tuple(row[:4]): tuple((t - NOON).seconds // 60 for t in row[4:6]) for row in found.iter_rows()}
    assert seen == {
        ("host.name", "h", "cache", "eu"): (1, 9), ("host.name", "h", "cache", "unknown"): (3, 3),
        ("service.version", "1", "cache", "eu"): (1, 5), ("service.version", "1", "cache", "unknown"): (3, 3),
        ("service.version", "2", "cache", "eu"): (9, 9),
    }  # fmt: skip


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    location = Location(tmp_path_factory.mktemp("lake") / "data")
    location.prepare()
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened)
        yield opened
    shutil.rmtree(location.root)


def stored(lake: Lake, name: str, *parts: pl.DataFrame) -> None:
    (table,) = (table for table in TABLES if table.name == name)
    paths: list[Path] = [write_rows(lake, table, part) for part in parts]
    with lake.write() as transaction:
        transaction.add_files(name, paths)


def test_the_views_say_what_the_functions_say(lake: Lake) -> None:
    durations = [((i * 7919) % 997 + 1) * MS for i in range(80)]
    frame = exemplar_spans(durations, [i % 9 == 0 for i in range(80)])
    cells = [exemplars.rows(frame[:30]), exemplars.rows(frame[30:])]
    stored(lake, "exemplar_cells_1m", *cells)
    keys = [hot_keys.rows(keyed(*((f"{i}", i % 5 + 1) for i in range(n))), None) for n in (15, 12)]
    stored(lake, "hot_keys_1m", *keys)
    stored(lake, "trace_rows", summaries.rows(forest(*CALL, *MESSAGE)))
    stored(lake, "service_edges_1m", edges.rows(forest(*CALL)), edges.rows(forest(*CALL)))
    with lake.read() as reader:
        found = reader.frame("SELECT * FROM exemplars_1m ORDER BY exemplar")
        assert found.select("exemplar", "span_id").rows() == (
            exemplars.picked(pl.concat(cells)).sort("exemplar").select("exemplar", "span_id").rows()
        )
        top = reader.row("SELECT top_key, top_count, top_share, top_share_max, hhi FROM hot_keys")
        told = hot_keys.concentration(hot_keys.merged(pl.concat(keys)))
        assert top == pytest.approx(told.select("top_key", "top_count", "top_share", "top_share_max", "hhi").row(0))
        listed = reader.rows("SELECT trace_id, spans, regions, top_share FROM trace_summaries ORDER BY 1")
        assert listed == [("t", 6, ["eu"], pytest.approx(0.7)), ("u", 1, ["eu"], 1.0)]
        edge = reader.row(
            "SELECT state, client_count, server_count, client_p50_ns FROM service_edges WHERE client <> ''"
        )
        assert edge == ("matched", 2, 2, pytest.approx(50 * MS, rel=0.01))


def test_a_span_of_many_links_counts_once_a_message() -> None:
    producers = [span(f"p{i}", "producer", "shop", i, i + 1, destination="orders") for i in range(3)]
    batch = span("b", "consumer", "mail", 9, 10, links=[link("t", f"p{i}") for i in (0, 1, 1)], destination="orders")
    counted = deliveries.rows(forest(*producers, batch)).select("messages", "delivered", "deliveries").row(0)
    assert counted == (3, 2, 2)
    by_count: defaultdict[int, int] = defaultdict(int)
    by_count |= dict(deliveries.rows(forest(*producers, batch))["fan_out_counts"][0])
    assert by_count == {0: 1, 1: 2}
