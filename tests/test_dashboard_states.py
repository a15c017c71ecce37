"""What the page System health says with nothing to show: no lake, no spans, none in the window, or an error."""

from __future__ import annotations

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
from collector.lake.tables import COLLECTOR_DEFINITIONS
from collector.spans import SPAN_SCHEMA
from dashboard import launch

TIMEOUT_SECONDS = 60
RunPage = Callable[..., AppTest]


def minute(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)


def traffic(end: datetime, minutes: int) -> pa.Table:
    """Six spans in each of the `minutes` before `end`, for each of two regions."""
    rows = [
        {
            "trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1", "flags": 0, "name": "get", "kind": "server",
            "start_time": end - timedelta(minutes=offset), "duration_ns": 1_000_000, "status": "unset",
            "service_name": "cache", "region": region, "tenant": "acme", "component": "cache", "operation": "get",
            "attributes": {}, "events": [], "links": [], "resource_id": "r", "received_at": end,
        }
        for offset in range(1, minutes + 1) for region in ("eu-central-1", "us-east-1") for _ in range(6)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SPAN_SCHEMA)


def new_lake(folder: Path, spans: pa.Table | None, *, analyzed: bool = True) -> Location:
    location = locate(StorageConfig(data=str(folder)))
    location.prepare()
    with Lake(location, read_only=False) as lake:
        lake.ensure(COLLECTOR_DEFINITIONS)
        if spans is not None:
            path = write_segment(spans, location.files / "main" / "spans")
            with lake.write() as transaction:
                transaction.add_files("spans", [path])
        if analyzed:
            jobs.prepare(lake)
            jobs.run_once(lake, Config())
    return location


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


def test_without_a_lake_the_page_says_where_to_send_spans(
    tmp_path: Path, page: RunPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANLAKE_COLLECTOR_HTTP", "127.0.0.1:14318")
    app = page(locate(StorageConfig(data=str(tmp_path / "nothing"))))
    assert "there is no lake yet" in text(app)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:14318" in text(app)


@pytest.mark.parametrize("analyzed", [True, False])
def test_an_empty_lake_waits_for_spans(tmp_path: Path, page: RunPage, analyzed: bool) -> None:
    app = page(new_lake(tmp_path, None, analyzed=analyzed))
    assert "Waiting for spans" in text(app)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317" in text(app)


def test_spans_that_no_job_has_rolled_up_are_told(tmp_path: Path, page: RunPage) -> None:
    now = minute(datetime.now(UTC))
    app = page(new_lake(tmp_path, traffic(now, 2), analyzed=False))
    assert "wait for their first rollup" in text(app)


def test_with_nothing_in_the_window_the_page_jumps_to_the_newest_spans(tmp_path: Path, page: RunPage) -> None:
    end = minute(datetime.now(UTC)) - timedelta(days=3)
    app = page(new_lake(tmp_path, traffic(end, 10)))
    assert "Nothing in this window" in text(app)
    assert "3 d ago" in text(app)
    assert not app.dataframe
    drawn(app.button(key="jump").click().run())
    assert query(app)["to"] == [f"{end:%Y-%m-%dT%H:%MZ}"]
    assert query(app)["from"] == [f"{end - timedelta(hours=1):%Y-%m-%dT%H:%MZ}"]
    assert app.dataframe[0].value["count"].tolist() == [60, 60]


def test_what_went_silent_stays_in_the_table(tmp_path: Path, page: RunPage) -> None:
    end = minute(datetime.now(UTC)) - timedelta(minutes=70)
    app = page(new_lake(tmp_path, traffic(end, 30)))
    assert app.dataframe[0].value["count"].tolist() == [0, 0]
    assert "Nothing in this window" in text(app)


def test_an_error_of_the_database_is_a_short_message(tmp_path: Path, page: RunPage) -> None:
    location = new_lake(tmp_path, traffic(minute(datetime.now(UTC)), 5))
    for path in location.files.rglob("*.parquet"):
        path.write_bytes(b"not parquet")
    app = page(location)
    assert app.error
    assert "Traceback" not in text(app)
    assert len(app.error[0].value) < 700


def test_a_broken_catalog_is_a_short_message(tmp_path: Path, page: RunPage) -> None:
    location = locate(StorageConfig(data=str(tmp_path)))
    location.catalog.write_bytes(b"no database" * 100)
    app = page(location)
    assert "does not open" in text(app)
