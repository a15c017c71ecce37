"""Lakes of an older release get the columns that their tables lack, and keep their rows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from analytics import jobs
from analytics.insight.finding import FINDINGS_SCHEMA, Confidence, Effect, Finding, Kind, Place, Reach, Share, frame
from collector.lake.columns import lacking
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.tables import COLLECTOR_DEFINITIONS

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HALF = Share(1, 2, 0.5, 0.1, 0.9)


def row(kind: Kind, who: Reach | None) -> Finding:
    effect, confidence = Effect("p95_ns", 2.0, 1.0, 2.0), Confidence("t", None, None, 1)
    return Finding(kind, Place("r"), "info", 1.0, NOON, NOON, effect, confidence, "s", baselines=("b",), who=who)


def test_a_table_without_newer_columns_gets_them_and_keeps_its_rows(tmp_path: Path) -> None:
    location = Location(tmp_path / "data")
    location.prepare()
    added = ("baselines", "who")
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake)
        with lake.write() as transaction:
            for name in added:
                transaction.execute(f"ALTER TABLE findings DROP COLUMN {name}")
        with lake.write() as transaction:
            transaction.insert("findings", frame([row("latency", None)], NOON).drop(added).to_arrow())
        jobs.prepare(lake)
        with lake.write() as transaction:
            reach = Reach(HALF, HALF, 1.5, (("a", HALF),))
            transaction.insert("findings", frame([row("errors", reach)], NOON).to_arrow())
        with lake.read() as reader:
            found = reader.rows("SELECT kind, baselines, who.operations[1].share FROM findings ORDER BY kind")
            assert reader.frame("SELECT * FROM findings").schema.keys() >= set(FINDINGS_SCHEMA)
    assert found == [("errors", ["b"], 0.5), ("latency", None, None)]


def test_what_is_to_be_created_lacks_no_columns() -> None:
    assert lacking(COLLECTOR_DEFINITIONS, []) == []
    columns = {column for _, column, _ in lacking(COLLECTOR_DEFINITIONS, [("progress", "job")])}
    assert columns
    assert "job" not in columns
