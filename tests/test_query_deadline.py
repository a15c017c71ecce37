"""Queries that would run for ever end in time: in a reader, and on a page, which says what to do."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from collector.lake.deadline import QueryTimeoutError
from collector.lake.lake import Lake, Reader
from collector.lake.location import Location
from dashboard import launch
from dashboard.health import data

ENDLESS = "SELECT sum(range) FROM range(1_000_000_000_000)"


@pytest.fixture
def lake(lake_folder: Path) -> Iterator[Lake]:
    with Lake(Location(lake_folder), read_only=True, read_seconds_max=1.0) as opened:
        yield opened


def test_a_query_without_end_is_interrupted_and_the_lake_goes_on(lake: Lake) -> None:
    for ask in (Reader.row, Reader.rows, Reader.arrow):
        with pytest.raises(QueryTimeoutError, match=r"query\.timeout_seconds = 1: choose a shorter window"), \
                lake.read() as reader:  # fmt: skip
            ask(reader, ENDLESS)
    with lake.read() as reader:
        assert reader.row("SELECT count(*) > 0 FROM spans") == (True,)
    assert not [thread for thread in threading.enumerate() if thread.name == "query deadline"]


def test_the_time_is_that_of_all_queries_of_a_reader(lake: Lake) -> None:
    with pytest.raises(QueryTimeoutError), lake.read() as reader:
        deque(reader.row("SELECT sum(range) FROM range(3_000_000)") for _ in itertools.count())


def test_an_error_of_a_query_in_time_stays_what_it_is(lake: Lake) -> None:
    with pytest.raises(duckdb.CatalogException), lake.read() as reader:
        reader.rows("FROM no_such_table")


def test_a_lake_without_a_bound_waits(lake_folder: Path) -> None:
    with Lake(Location(lake_folder), read_only=True) as unbounded, unbounded.read() as reader:
        assert reader.row("SELECT count(*) FROM range(200_000_000)") == (200_000_000,)


@pytest.mark.parametrize("asked", ["freshness", "choices", "health_rows"])
def test_a_page_whose_query_does_not_end_says_so(
    lake_folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def endless(reader: Reader, *_: object) -> None:
        reader.row(ENDLESS)

    monkeypatch.setenv("SPANLAKE_STORAGE_DATA", str(lake_folder))
    monkeypatch.setenv("SPANLAKE_QUERY_TIMEOUT_SECONDS", "1.5")
    monkeypatch.setattr(data, asked, endless)
    st.cache_data.clear()
    try:
        app = AppTest.from_file(launch.APP, default_timeout=60).run()
    finally:
        st.cache_resource.clear()
        st.cache_data.clear()
    assert not app.exception
    (error,) = app.error
    assert "query.timeout" in error.value.replace("\\", "")
    assert "choose a shorter window" in error.value
