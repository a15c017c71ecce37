"""Insight on a real lake: evidence, the job, and the commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner

from analytics import jobs
from analytics.insight import loading, looking_back
from analytics.insight.engine import findings
from analytics.insight.evidence import Evidence, of_spans
from analytics.insight.explaining import explain
from analytics.insight.finding import Finding
from analytics.insight.going_on import Ongoing
from analytics.insight.job import GRACE, InsightJob
from analytics.insight.loading import load, newest
from analytics.window import MINUTE, Window
from collector.config import Config, InsightConfig, QueryConfig, StorageConfig
from collector.lake.lake import Lake, Reader
from collector.lake.location import Location, locate
from collector.lake.sandbox import Sandbox, open_sandbox
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA
from dashboard.cli import main as spanlake
from tests.reference.floats import rounded

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, BEGIN, PER_SECOND = 45, 38, 12
END = NOON + timedelta(minutes=MINUTES)


def slow_in_the_north() -> pl.DataFrame:
    """Server spans of a cache; in the north they take three times as long from minute BEGIN on."""
    rng = np.random.default_rng(1)
    n = MINUTES * 60 * PER_SECOND
    elapsed = np.sort(rng.integers(0, MINUTES * 60 * 10**9, n))
    north = rng.random(n) < 0.5
    slow = np.where(north & (elapsed >= BEGIN * 60 * 10**9), 3.0, 1.0)
    return pl.DataFrame(
        {
            "trace_id": [f"{i:032x}" for i in range(n)],
            "span_id": [f"{i:016x}" for i in range(n)],
            "start_time": pl.Series(elapsed + int(NOON.timestamp()) * 10**9).cast(pl.Datetime("ns")),
            "duration_ns": (np.exp(rng.normal(13, 0.4, n)) * slow).astype(np.int64),
            "region": np.where(north, "north", "south"),
            "tenant": [f"t{i}" for i in rng.integers(0, 6, n)],
            "host": [f"h{i}" for i in rng.integers(0, 3, n)],
            "name": "get",
            "kind": "server",
            "status": np.where(rng.random(n) < 0.01, "error", "unset"),
            "service_name": "cache",
            "service_version": "1",
            "service_instance_id": "i",
            "component": "cache",
            "operation": "get",
            "destination": "items",
            "cache_hit": rng.random(n) < 0.9,
            "scope_name": "lib",
        }
    )


def stored(frame: pl.DataFrame) -> pa.Table:
    arrow = frame.to_arrow()
    return pa.table([_column(arrow, field) for field in SPAN_SCHEMA], schema=SPAN_SCHEMA)


def _column(arrow: pa.Table, field: pa.Field) -> pa.Array:
    if field.name in arrow.column_names:
        return pa.chunked_array([chunk.cast(field.type) for chunk in arrow.column(field.name).chunks], field.type)
    if field.nullable:
        return pa.nulls(arrow.num_rows, field.type)
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    empty: Any = [] if pa.types.is_nested(kind) else "" if pa.types.is_string(kind) else 0
    return pa.array([empty] * arrow.num_rows, kind).cast(field.type)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(storage=StorageConfig(data=str(tmp_path_factory.mktemp("insight") / "data")))


@pytest.fixture(scope="module")
def lake(config: Config) -> Iterator[Lake]:
    location = locate(config.storage)
    location.prepare()
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened, config)
        path = write_segment(stored(slow_in_the_north()), opened.location.files / "main" / "spans")
        with opened.write() as transaction:
            transaction.add_files("spans", [path])
        jobs.run_once(opened, config)
        yield opened


@pytest.fixture(scope="module")
def sandbox(lake: Lake) -> Iterator[Sandbox]:
    with open_sandbox(Location(lake.location.root), QueryConfig()) as opened:
        yield opened


def test_evidence_of_the_lake_is_that_of_its_spans(lake: Lake) -> None:
    with lake.read() as reader:
        found = load(reader, NOON, END)
        assert newest(reader) == END
    expected = of_spans(slow_in_the_north())
    for name in ("base", "host", "version", "destination"):
        one, other = getattr(found, name), getattr(expected, name)
        assert sorted(one.keys.rows()) == sorted(other.keys.rows())
        assert one.rows["count"].sum() == other.rows["count"].sum()
        assert one.rows["busy_ns"].sum() == pytest.approx(other.rows["busy_ns"].sum(), rel=1e-5)
        by = ["minute", *one.dimensions, "cell"]
        cells = [
            grain.cells.join(grain.keys.with_row_index("series"), on="series").select(*by, "spans").sort(by)
            for grain in (one, other)
        ]
        assert cells[0].equals(cells[1])
    demand = [
        one.demand.rows.join(one.demand.keys.with_row_index("series"), on="series").drop("series").sort(pl.all())
        for one in (found, expected)
    ]
    assert demand[0].equals(demand[1])


def test_findings_do_not_depend_on_how_many_rows_are_read_at_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    window = timedelta(minutes=15)
    expected = findings(of_spans(slow_in_the_north()), END, window)
    assert expected
    monkeypatch.setattr(loading, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(loading, "_STRETCH_ROWS", 100)
    with lake.read() as reader:
        whole = load(reader, NOON, END)
        first, last = load(reader, NOON, END - 4 * MINUTE), load(reader, END - 4 * MINUTE, END)
    for evidence in (whole, Evidence.concat([first, last]), Evidence.concat([first, last]).pruned()):
        found = findings(evidence, END, window)
        assert [(one.kind, one.place, one.tenants, one.sentence) for one in found] == [
            (one.kind, one.place, one.tenants, one.sentence) for one in expected
        ]
        assert {one.confidence.unknown_weight_share for one in found} == {1.0}, "none has a weight"


def test_what_goes_on_says_what_all_that_is_read_at_once_says(tmp_path: Path) -> None:
    config, history = Config(storage=StorageConfig(data=str(tmp_path / "data"))), 36
    location = locate(config.storage)
    location.prepare()
    spans = slow_in_the_north().with_columns(kind=pl.Series(["server", "client"] * (MINUTES * 30 * PER_SECOND)))
    rng = np.random.default_rng(2)
    late = np.where(rng.random(spans.height) < 0.05, rng.integers(1, 4, spans.height), 0)
    minute = (spans["start_time"].dt.epoch("s") // 60 - int(NOON.timestamp()) // 60).to_numpy()
    # Hosts and tenants come and go.
    spans = spans.with_columns(
        host=pl.when(pl.Series(minute) > BEGIN).then(pl.lit("new-") + pl.col("host")).otherwise("host")
    )
    came, settings, number = minute + late * (minute != BEGIN - 3), InsightConfig(history_minutes=history), 0
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened, config)
        ongoing, kinds = Ongoing(history), set()
        for end in (BEGIN - 4, *range(BEGIN - 2, BEGIN + 2), BEGIN + 4, BEGIN + 5):
            new = spans.filter(pl.Series((came >= number) & (came < end)))
            path = write_segment(stored(new), opened.location.files / "main" / "spans")
            with opened.write() as transaction:
                transaction.add_files("spans", [path])
            jobs.run_once(opened, config)
            until, number = NOON + end * MINUTE, end
            with opened.read() as reader:
                one, other = ongoing.until(reader, until), load(reader, until - history * MINUTE, until)
            assert told(one) == told(other)
            found, expected = (findings(known, until, 15 * MINUTE, settings) for known in (one, other))
            assert [rounded(asdict(finding)) for finding in found] == [rounded(asdict(finding)) for finding in expected]
            kinds |= {finding.kind for finding in found}
    assert kinds, "something was found"


def told(evidence: Evidence) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of evidence, whatever their order and numbers are."""
    frames = {}
    for field in fields(Evidence):
        value = getattr(evidence, field.name)
        if isinstance(value, pl.DataFrame):
            frames[field.name] = value
        else:
            keys = value.keys.with_row_index("series")
            for name, frame in (("rows", value.rows), ("cells", value.cells)):
                by = ["minute", *value.dimensions, *(["cell"] if name == "cells" else [])]
                summed = frame.join(keys, on="series", nulls_equal=True).drop("series").group_by(by).sum()
                frames[f"{field.name} {name}"] = summed
    return {name: sorted(frame.rows(), key=str) for name, frame in frames.items()}


def test_the_job_judges_each_minute_once(lake: Lake) -> None:
    told: list[tuple[datetime, list[Finding]]] = []
    begin = NOON + timedelta(minutes=BEGIN + 1)

    def job() -> InsightJob:
        return InsightJob(lake, InsightConfig(), lambda found, minute: told.append((minute, found)))

    first = job()
    for minute in range(2):
        assert first.step(begin + timedelta(minutes=minute) + GRACE) == 1
        assert first.step(begin + timedelta(minutes=minute) + GRACE + timedelta(seconds=40)) == 0
    assert job().step(begin + timedelta(minutes=1) + GRACE) == 0
    assert job().step(begin + timedelta(minutes=2) + GRACE) == 1
    assert [minute for minute, _ in told] == [begin + timedelta(minutes=m) for m in range(3)]
    with lake.read() as reader:
        rows = reader.rows("SELECT minute, kind, state, region FROM findings ORDER BY minute")
    expected = [
        (minute.replace(tzinfo=None), one.kind, one.state, one.region) for minute, found in told for one in found
    ]
    assert rows == expected
    assert rows[0][1:] == ("latency", "opened", "north")
    assert {state for _, _, state, _ in rows[1:]} == {"ongoing"}


def test_a_minute_is_not_judged_before_the_other_jobs_have_seen_it(lake: Lake) -> None:
    told: list[datetime] = []
    minute = NOON + timedelta(minutes=BEGIN + 9)
    job = InsightJob(lake, InsightConfig(), lambda _, minute: told.append(minute))
    late = minute + timedelta(minutes=5)
    job.step(late, lambda _reader, _now: minute - MINUTE + timedelta(seconds=9))
    assert told.pop() == minute - 2 * MINUTE
    told.clear()
    job.step(late, lambda _reader, _now: minute + timedelta(seconds=9))
    job.step(late, lambda _reader, _now: minute + timedelta(seconds=9))
    assert told == [minute - MINUTE]
    job.step(late, lambda _reader, _now: minute + timedelta(seconds=10))
    assert told == [minute - MINUTE, minute]


def run(config: Config, *arguments: str) -> Any:
    return CliRunner().invoke(spanlake, [*arguments, "--data", config.storage.data])


@pytest.mark.usefixtures("lake")
def test_insights_tells_of_the_newest_data_and_says_so(config: Config) -> None:
    result = run(config, "insights", "--window", "2m", "--format", "json")
    assert result.exit_code == 0, result.output
    assert "the newest data is of 2026-03-01 12:45 UTC" in result.stderr
    (found,) = json.loads(result.stdout)
    assert (found["kind"], found["region"], found["state"]) == ("latency", "north", "ongoing")
    markdown = run(config, "insights", "--window", "1m", "--format", "markdown", "--until", "2026-03-01T12:45Z")
    assert markdown.stdout.startswith("- **")


@pytest.mark.usefixtures("lake")
def test_insights_of_the_other_region_and_of_a_quiet_time_are_none(config: Config) -> None:
    assert "Nothing stands out." in run(config, "insights", "--window", "2m", "--region", "south").stdout
    assert "Nothing stands out." in run(config, "insights", "--window", "1m", "--until", "2026-03-01T12:37Z").stdout


@pytest.mark.usefixtures("lake")
def test_without_history_the_answer_is_insufficient_history(config: Config) -> None:
    result = run(config, "insights", "--window", "5m", "--until", "2026-03-01T12:10Z", "--format", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == []
    assert "insufficient history" in result.stderr


@pytest.mark.usefixtures("lake")
def test_explain_finds_what_the_slow_spans_have(config: Config, sandbox: Sandbox) -> None:
    window = Window(NOON + timedelta(minutes=BEGIN), END)
    found = explain(sandbox, window, "duration_ns > 1000000")
    assert found.row(0)[:2] in {("region", "north"), ("region", "south")}
    assert "span_id" not in found["attribute"].to_list()
    result = run(config, "explain", "--where", "duration_ns > 1000000", "--window", "7m")
    assert result.exit_code == 0, result.output
    assert "north" in result.stdout


@pytest.mark.usefixtures("lake")
@pytest.mark.parametrize(
    "sides", [("--a", "region = 'north'", "--b", "region = 'south'"), ("--a", "region=north", "--b", "region=south")]
)
def test_compare_tells_which_side_is_slower(config: Config, sides: tuple[str, ...]) -> None:
    result = run(config, "compare", *sides, "--window", "6m", "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["operations"][0]["cliffs_delta"] > 0.8
    assert found["odds_low"] < 1 < found["odds_high"]
    assert found["slow"]["by_rates"] == pytest.approx(found["slow"]["difference"], abs=0.05)
    assert "slower in A" in run(config, "compare", *sides, "--window", "6m").stdout


@pytest.mark.usefixtures("lake")
def test_critical_path_tells_where_the_time_goes(config: Config) -> None:
    result = run(config, "critical-path", "--where", "region = 'north'", "--window", "6m", "--format", "json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["service_name"], row["share"]) == ("cache", 1.0)


@pytest.mark.usefixtures("lake")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("explain", "--where", "statu = 'error'"), "statu"),
        (("explain", "--where", "1 = 0"), "selects no span"),
        (("explain", "--where", "true"), "selects every span"),
        (("explain", "--where", "true); DROP TABLE spans; --"), "Error"),
        (("compare", "--a", "region = 'mars'", "--b", "true"), "--a \"region = 'mars'\" selects no span"),
        (("critical-path", "--where", "tenant = 'nobody'"), "selects no span"),
        (("insights", "--window", "soon"), "expected a length such as 15m"),
        (("insights", "--until", "soon"), "expected an ISO 8601 time"),
    ],
)
def test_what_cannot_be_answered_is_told(config: Config, arguments: tuple[str, ...], words: str) -> None:
    result = run(config, *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_spans_that_are_not_rolled_up_are_asked_alone(tmp_path: Path) -> None:
    config = Config(storage=StorageConfig(data=str(tmp_path / "data")))
    location = locate(config.storage)
    location.prepare()
    until = ("--until", "2026-03-01T12:45Z")
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, config)
        for command in ("explain", "critical-path"):
            assert "there are no spans in the lake yet" in run(config, command, "--where", "region=north").output
        path = write_segment(stored(slow_in_the_north().head(1000)), lake.location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])
        for asked in (("insights",), ("insights", *until), ("baselines",), ("baselines", *until)):
            result = run(config, *asked)
            assert result.exit_code == 1
            assert "there are no rollups in the lake yet" in result.output
        sides = ("--a", "region=north", "--b", "region=south")
        for of_spans_alone in (("explain", "--where", "region=north"), ("compare", *sides), ("critical-path",)):
            result = run(config, *of_spans_alone)
            assert result.exit_code == 0, result.output
            assert "the newest data is of 2026-03-01 12:02 UTC" in result.stderr


def test_looking_back_reads_each_minute_once_and_not_all_at_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[datetime, datetime]] = []

    def recorded(reader: Reader, start: datetime, until: datetime, *, before: Evidence) -> Evidence:
        read.append((start, until))
        return load(reader, start, until, before=before)

    held: list[int] = []

    def judged(evidence: Evidence, *of: Any) -> list[Finding]:
        held.append(evidence.base.rows["minute"].n_unique())
        return findings(evidence, *of)

    monkeypatch.setattr(looking_back, "load", recorded)
    monkeypatch.setattr(looking_back, "findings", judged)
    history = timedelta(minutes=40)
    config = InsightConfig(history_minutes=40)
    window = Window(END - timedelta(minutes=48), END)
    found = looking_back.look_back(lake, window, config).found
    assert [(one.kind, one.place.region) for one in found] == [("latency", "north")]
    assert read[0][0] == window.start - 2 * MINUTE - history, "every other minute, and two looks before"
    assert read[-1][1] == END
    assert all(before[1] == after[0] for before, after in pairwise(read))
    assert len(read) > 1
    assert all(end - start <= 2 * history for start, end in read)
    assert max(held) <= 40


def test_looking_back_tells_the_same_however_much_is_read_at_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    config, window = InsightConfig(history_minutes=30), Window(END - timedelta(minutes=5), END)
    at_once = looking_back.look_back(lake, window, config).found
    monkeypatch.setattr(looking_back, "_ROWS_HELD_MAX", 1)
    one_by_one = looking_back.look_back(lake, window, config).found
    assert at_once
    assert [rounded(asdict(finding)) for finding in one_by_one] == [rounded(asdict(finding)) for finding in at_once]


def test_tables_without_files_are_not_filled(tmp_path: Path) -> None:
    location = Location(tmp_path / "data")
    location.prepare()
    with Lake(location, read_only=False) as opened:
        jobs.prepare(opened)
        with opened.read() as reader:
            assert not reader.filled() & {"spans", "rollup_1m", "deliveries_1m"}
            assert newest(reader) is None
            assert load(reader, NOON, END).base.keys.is_empty()
