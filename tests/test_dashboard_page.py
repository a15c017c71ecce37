"""The page System health on a real lake: figures, filters, their URL, and the way into a row."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from analytics import jobs
from collector.config import Config, StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA
from dashboard import launch

TIMEOUT_SECONDS = 60
REGIONS = ("eu-central-1", "us-east-1")
TENANTS = ("acme", "*globex*")
OPERATIONS = ("get", "set", "publish")
RunPage = Callable[..., AppTest]


def minute(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)


def traffic(end: datetime, minutes: int, slow_from: datetime) -> pa.Table:
    """Twelve spans a minute before `end`, every combination once; eu-central-1 is ten times slower from `slow_from`."""
    rng = random.Random(7)
    rows = [
        row(start, region, tenant, operation, rng.uniform(0.9e6, 1.1e6), slow=start >= slow_from)
        for offset in range(1, minutes + 1)
        for start in [end - timedelta(minutes=offset)]
        for region in REGIONS
        for tenant in TENANTS
        for operation in OPERATIONS
    ]
    return pa.Table.from_pylist(rows, schema=SPAN_SCHEMA)


def row(start: datetime, region: str, tenant: str, operation: str, ns: float, *, slow: bool) -> dict[str, object]:
    slowed = slow and region == REGIONS[0]
    return {
        "trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1", "flags": 0, "name": operation, "kind": "server",
        "start_time": start, "duration_ns": int(ns * (10 if slowed else 1)), "status": "error" if slowed else "unset",
        "service_name": "cache", "region": region, "tenant": tenant, "component": "cache", "operation": operation,
        "cache_hit": operation != "get" or not slowed if operation != "publish" else None,
        "attributes": {}, "events": [], "links": [], "resource_id": "r", "received_at": start,
    }  # fmt: skip


def new_lake(folder: Path, spans: pa.Table) -> Location:
    location = locate(StorageConfig(data=str(folder)))
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake)
        path = write_segment(spans, location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])
        jobs.run_once(lake, Config())
    return location


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Location:
    """Three hours of traffic up to now, slow in one region in the last half hour."""
    end = minute(datetime.now(UTC)) + timedelta(minutes=1)
    return new_lake(tmp_path_factory.mktemp("live"), traffic(end, 180, end - timedelta(minutes=30)))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPage]:
    def run(location: Location, **params: str | Sequence[str]) -> AppTest:
        monkeypatch.setenv("SPANLAKE_STORAGE_DATA", str(location.root))
        app = AppTest.from_file(launch.APP, default_timeout=TIMEOUT_SECONDS)
        for name, value in params.items():
            app.query_params[name] = value if isinstance(value, str) else list(value)
        return drawn(app.run())

    yield run
    st.cache_resource.clear()


def drawn(app: AppTest) -> AppTest:
    assert not app.exception
    return app


def text(app: AppTest) -> str:
    parts = [*app.subheader, *app.markdown, *app.caption, *app.info, *app.error, *app.code]
    return "\n".join(str(part.value) for part in parts)


def query(app: AppTest) -> dict[str, list[str]]:
    return {name: [v] if isinstance(v, str) else list(v) for name, v in app.query_params.items()}


def test_the_table_shows_what_changed_most_first(live: Location, page: RunPage) -> None:
    app = page(live)
    assert not app.error
    table = app.dataframe[0].value
    assert table["region"].tolist() == list(REGIONS)
    assert "p95" in table["change_text"][0] or "error" in table["change_text"][0]
    assert table["p95_ns_change"][0] > 5
    assert table["p95_ns_change"][1] == pytest.approx(1, abs=0.2)
    assert table["count"].tolist() == [360, 360]
    assert table["unknown_weight_share"].tolist() == [1.0, 1.0]
    assert {metric.label for metric in app.metric} == {
        "Rate", "Errors", "Latency p50", "Latency p95", "Latency p99", "Cache hit ratio",
    }  # fmt: skip
    assert "2,160 spans rolled up" in text(app)
    assert "rollups up to date" in text(app)
    assert query(app) == {}


def test_a_link_restores_filters_window_and_grouping(live: Location, page: RunPage) -> None:
    app = page(live, window="15m", region=REGIONS[1], tenant=TENANTS, by="region,operation", latency="log")
    assert app.multiselect(key="region").value == [REGIONS[1]]
    assert app.multiselect(key="tenant").value == list(TENANTS)
    assert app.toggle(key="log_latency").value is True
    table = app.dataframe[0].value
    assert set(table["region"]) == {REGIONS[1]}
    assert sorted(table["operation"]) == sorted(OPERATIONS)
    assert table["count"].tolist() == [30, 30, 30]
    assert query(app) == {
        "window": ["15m"], "region": [REGIONS[1]], "tenant": list(TENANTS), "by": ["region,operation"],
        "latency": ["log"],
    }  # fmt: skip


def test_a_filter_changes_the_url(live: Location, page: RunPage) -> None:
    app = page(live)
    drawn(app.multiselect(key="tenant").select("acme").run())
    assert query(app) == {"tenant": ["acme"]}
    drawn(app.toggle(key="log_latency").set_value(True).run())
    assert query(app) == {"tenant": ["acme"], "latency": ["log"]}
    drawn(app.multiselect(key="tenant").unselect("acme").run())
    assert query(app) == {"latency": ["log"]}


def test_a_click_on_a_row_drills_into_it(live: Location, page: RunPage) -> None:
    app = page(live)
    app.session_state["rows-0"] = {"selection": {"rows": [], "columns": [], "cells": [(0, "region")]}}
    drawn(app.run())
    assert query(app) == {"region": [REGIONS[0]], "by": ["tenant"]}
    assert sorted(app.dataframe[0].value["tenant"]) == sorted(TENANTS)


def test_bad_values_of_a_link_are_ignored_with_a_note(live: Location, page: RunPage) -> None:
    app = page(live, window="soon", by="colour", region="mars")
    assert "Ignored in the link: window" in text(app).replace("\\", "")
    assert "Ignored in the link: by" in text(app).replace("\\", "")
    assert "No spans of region 'mars'" in text(app).replace("\\", "")
    assert "No spans match these filters" in text(app)
    assert query(app) == {"region": ["mars"]}
    drawn(app.button(key="clear").click().run())
    assert query(app) == {}
    assert "Ignored" not in text(app)
    assert len(app.dataframe[0].value) == 2
