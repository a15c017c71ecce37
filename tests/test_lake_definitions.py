"""Views and macros of a lake that another release made are replaced, at once and only where they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics import jobs
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.tables import COLLECTOR_DEFINITIONS, Definition


def make_older(lake: Lake) -> None:
    """As of a release whose quantiles and view were others, and that did not note of what it made them."""
    with lake.write() as transaction:
        transaction.execute("CREATE OR REPLACE MACRO latency_quantile_ns(list_of_maps, q) AS (-1)")
        transaction.execute("CREATE OR REPLACE MACRO trace(id) AS TABLE SELECT 1 AS older")
        transaction.execute("CREATE OR REPLACE VIEW sightings AS SELECT 1 AS older")
        transaction.execute("DROP TABLE definitions")


def snapshot(lake: Lake) -> int:
    with lake.read() as reader:
        return reader.snapshot_id()


def test_what_differs_is_replaced_and_a_reader_keeps_what_it_has(lake_of_jobs: Path) -> None:
    quantile, trace = "SELECT latency_quantile_ns([MAP {0::SMALLINT: 1::UBIGINT}], 0.5)", "FROM trace('00')"
    with Lake(Location(lake_of_jobs), read_only=False) as lake, Lake(Location(lake_of_jobs), read_only=True) as other:
        make_older(lake)
        with other.read() as before:
            assert before.row(quantile) == (-1,)
            jobs.prepare(lake)
            assert before.row(quantile) == (-1,)
            assert before.row("FROM sightings") == (1,)
        with other.read() as after:
            assert after.row(quantile)[0] == pytest.approx(0.99)
            assert after.rows(trace) == []
            assert "first_seen" in after.arrow("FROM sightings").column_names


def test_nothing_is_written_where_nothing_differs(lake_of_jobs: Path) -> None:
    with Lake(Location(lake_of_jobs), read_only=False) as lake:
        jobs.prepare(lake)
        before = snapshot(lake)
        jobs.prepare(lake)
        assert snapshot(lake) == before


def test_only_what_has_another_text_is_made_anew(lake_of_jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ddl = Definition.ddl
    with Lake(Location(lake_of_jobs), read_only=False) as lake:
        jobs.prepare(lake)
        with lake.read() as reader:
            (rows,) = reader.row("SELECT count(*) FROM definitions")

        def changed(definition: Definition) -> str:
            return ddl(definition).replace("now()", "'2026-01-01'") if definition.name == "ago" else ddl(definition)

        with monkeypatch.context() as patched:
            patched.setattr(Definition, "ddl", changed)
            lake.ensure(COLLECTOR_DEFINITIONS)
        with lake.read() as reader:
            assert reader.row("SELECT ago('1 day')::VARCHAR") == ("2025-12-31 00:00:00",)
            assert reader.row("SELECT count(*) FROM definitions") == (rows + 1,)
        lake.ensure(COLLECTOR_DEFINITIONS)
        with lake.read() as reader:
            assert reader.row("SELECT ago('1 day') > TIMESTAMP '2026-06-01'") == (True,)


def test_what_was_dropped_comes_back(lake_of_jobs: Path) -> None:
    with Lake(Location(lake_of_jobs), read_only=False) as lake:
        with lake.write() as transaction:
            transaction.execute("DROP VIEW errors")
        lake.ensure(COLLECTOR_DEFINITIONS)
        with lake.read() as reader:
            assert reader.rows("SELECT count(*) FROM errors") == [(0,)]


def test_conditions_on_groups_get_past_the_quantiles(lake_of_jobs: Path) -> None:
    asked = "FROM service_edges WHERE window_start >= TIMESTAMP '2026-01-01'"
    with Lake(Location(lake_of_jobs), read_only=False) as lake:
        jobs.prepare(lake)
        with lake.read() as reader:
            plan = reader.row(f"EXPLAIN (FORMAT json) {asked}")[1]
    assert "DELIM" not in plan
    assert "SCAN" in plan
