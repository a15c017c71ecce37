"""Looking back: what the job told of its minutes, and what is judged now where it told nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from analytics import jobs
from analytics.definitions import ANALYTICS_DEFINITIONS
from analytics.insight import judged, looking_back
from analytics.insight.finding import Confidence, Effect, Finding, Place, Reach, Share, frame
from analytics.insight.job import GRACE, InsightJob
from analytics.insight.judged import Judged, settings_of, stretches, without
from analytics.insight.looking_back import Answer, concerns, look_back
from analytics.window import MINUTE, Window
from collector.config import DIMENSION_SETS, AnalyzeConfig, Config, InsightConfig, RetentionConfig, StorageConfig
from collector.lake import maintain, retention
from collector.lake.lake import Lake, StaleProgressError
from collector.lake.location import Location, locate
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA
from dashboard.cli import main as spanlake
from tests.reference.floats import rounded

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, SLOW, FAILING, FIRST, PER_SECOND = 63, 48, 53, 46, 10
END = NOON + MINUTES * MINUTE
ROLLUPS = AnalyzeConfig(dimension_sets={name: [] for name in DIMENSION_SETS}, trace_parts=())
SETTINGS = InsightConfig(history_minutes=36)
"""Less than an hour: what a row counts goes back further than what the job keeps in memory."""
TABLES = {"findings", "judged_minutes"}
FOUND = Finding(
    "burst", Place("north"), "info", 1.0, NOON, NOON, Effect("x", 2.0, 1.0, 2.0), Confidence("t", None, None, 1), "s"
)
Minutes = tuple[int, int]


def platform() -> pl.DataFrame:
    """Server spans of two services: in the north one is slow for some minutes, in the south the other fails."""
    rng = np.random.default_rng(1)
    n = MINUTES * 60 * PER_SECOND
    elapsed = np.sort(rng.integers(0, MINUTES * 60 * 10**9, n))
    minute = elapsed // (60 * 10**9)
    north, one = rng.random(n) < 0.5, rng.random(n) < 0.5
    slow = north & one & (minute >= SLOW) & (minute < SLOW + 5)
    fails = ~north & ~one & (minute >= FAILING)
    return pl.DataFrame(
        {
            "trace_id": [f"{i:032x}" for i in range(n)],
            "span_id": [f"{i:016x}" for i in range(n)],
            "start_time": pl.Series(elapsed + int(NOON.timestamp()) * 10**9).cast(pl.Datetime("ns")),
            "duration_ns": (np.exp(rng.normal(13, 0.4, n)) * np.where(slow, 4.0, 1.0)).astype(np.int64),
            "region": np.where(north, "north", "south"),
            "tenant": [f"t{i}" for i in rng.integers(0, 6, n)],
            "kind": "server",
            "name": "get",
            "status": np.where(rng.random(n) < np.where(fails, 0.3, 0.01), "error", "unset"),
            "service_name": np.where(one, "one", "other"),
            "component": "http",
            "operation": "get",
        }
    )


def stored(frame: pl.DataFrame) -> pa.Table:
    """A frame as rows of table `spans`."""
    arrow, rows = frame.to_arrow(), frame.height
    columns = []
    for field in SPAN_SCHEMA:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        empty: Any = [] if pa.types.is_nested(kind) else "" if pa.types.is_string(kind) else 0
        if field.name in arrow.column_names:
            columns.append(arrow.column(field.name).combine_chunks().cast(field.type))
        else:
            columns.append(
                pa.nulls(rows, field.type) if field.nullable else pa.array([empty] * rows, kind).cast(field.type)
            )
    return pa.table(columns, schema=SPAN_SCHEMA)


def add(lake: Lake, config: Config, spans: pl.DataFrame) -> None:
    """Put spans into a lake and its rollups."""
    path = write_segment(stored(spans), lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])
    jobs.run_once(lake, config)


def judge(lake: Lake, first: int, last: int, config: InsightConfig = SETTINGS) -> None:
    """Let a job of its own judge the minutes that end so many minutes after noon."""
    job = InsightJob(lake, config)
    for minute in range(first, last + 1):
        assert job.step(NOON + minute * MINUTE + GRACE) == 1


@pytest.fixture(scope="module")
def judged_lake(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A lake of which the job has judged all minutes from FIRST on."""
    config = Config(storage=StorageConfig(data=str(tmp_path_factory.mktemp("judged") / "data")), analyze=ROLLUPS)
    location = locate(config.storage)
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, config)
        add(lake, config, platform())
        judge(lake, FIRST, MINUTES)
    return config


@pytest.fixture
def own(judged_lake: Config, tmp_path: Path) -> Iterator[tuple[Lake, Config]]:
    """A copy of that lake to write to."""
    shutil.copytree(judged_lake.storage.data, tmp_path / "data")
    config = Config(storage=StorageConfig(data=str(tmp_path / "data")), analyze=ROLLUPS)
    with Lake(locate(config.storage), read_only=False) as lake:
        yield lake, config


@pytest.fixture(scope="module")
def lake(judged_lake: Config) -> Iterator[Lake]:
    """The same for all, to read."""
    with Lake(locate(judged_lake.storage), read_only=True) as opened:
        yield opened


def minutes(first: int, last: int) -> Window:
    """So many minutes after noon."""
    return Window(NOON + first * MINUTE, NOON + last * MINUTE)


def told(answer: Answer, *but: str) -> list[Any]:
    """All fields of what was found."""
    return [rounded({k: v for k, v in asdict(one).items() if k not in but}) for one in answer.found]


@pytest.mark.parametrize("of", [(FIRST - 1, 59), (58, 61), (FIRST, FIRST + 1)])
def test_what_the_job_told_is_what_judging_the_same_minutes_anew_tells(lake: Lake, of: Minutes) -> None:
    window = minutes(*of)
    kept, anew = look_back(lake, window, SETTINGS), look_back(lake, window, SETTINGS, anew=True)
    assert (kept.anew, kept.late, anew.anew) == ([], 0, [window])
    assert bool(kept.found) == (of[1] > SLOW)
    # What began long before the window has a memory of it in the job.
    assert told(kept, "since") == told(anew, "since")
    assert all(one.since <= other.since for one, other in zip(kept.found, anew.found, strict=True))
    if of[0] < SLOW:
        assert told(kept) == told(anew)


def test_a_region_or_tenant_is_told_the_same_either_way(lake: Lake) -> None:
    window = minutes(53, 57)
    every = look_back(lake, window, SETTINGS, anew=True)
    for region, tenant, count in (("north", None, 1), (None, "t1", 2), ("north", "t9", 0)):
        kept = look_back(lake, window, SETTINGS, region, tenant)
        anew = replace(every, found=[one for one in every.found if concerns(one, region, tenant)])
        assert told(kept, "since") == told(anew, "since")
        assert len(kept.found) == count
    anew = look_back(lake, minutes(55, 57), SETTINGS, "south", "t1", anew=True)
    assert [one.region for one in anew.found] == ["south"]


def test_what_is_open_at_the_end_comes_first_and_what_was_before_is_resolved(lake: Lake) -> None:
    found = look_back(lake, minutes(FIRST, MINUTES), SETTINGS).found
    assert {(one.region, one.state) for one in found} == {("south", "ongoing"), ("north", "resolved")}
    assert [one.state for one in found] == sorted(one.state for one in found)


def test_nothing_is_judged_where_the_job_has_judged(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analytics.insight.looking_back.load", lambda *_of, **_more: pytest.fail("read rollups"))
    assert look_back(lake, minutes(FIRST, MINUTES), SETTINGS).found


def test_what_the_job_has_not_judged_is_judged_now(lake: Lake) -> None:
    answer = look_back(lake, minutes(FIRST - 3, 51), SETTINGS)
    assert answer.anew == [minutes(FIRST - 3, FIRST - 1)]
    assert told(answer) == told(look_back(lake, minutes(FIRST - 1, 51), SETTINGS))
    other = InsightConfig(history_minutes=36, volume_min=61)
    assert look_back(lake, minutes(50, 52), other).anew == [minutes(50, 52)]


def test_many_late_spans_have_their_minutes_judged_again_and_few_are_told_of(own: tuple[Lake, Config]) -> None:
    lake, config = own
    of_service = pl.col("service_name") == "one"
    late = platform().filter(of_service, pl.col("start_time").dt.replace_time_zone("UTC") >= NOON + 60 * MINUTE)
    add(lake, config, late.head(5).with_columns(tenant=pl.lit("late")))
    few = look_back(lake, minutes(58, MINUTES), SETTINGS)
    assert (few.late, few.anew) == (5, [])
    add(lake, config, late.with_columns(tenant=pl.lit("late"), status=pl.lit("error")))
    many = look_back(lake, minutes(58, MINUTES), SETTINGS)
    assert many.anew == [minutes(60, MINUTES)], "from the whole hour on"
    assert "late" in {tenant for one in many.found for tenant in one.tenants}


def test_stretches_go_on_until_the_hour_is_over_and_say_what_was_counted(lake: Lake) -> None:
    with lake.read() as reader:
        found = stretches(reader, minutes(0, MINUTES), settings_of(SETTINGS))
    bounds = [((one.start - NOON) // MINUTE, (one.until - NOON) // MINUTE) for one in found]
    assert bounds == [(FIRST - 1, 60), (60, MINUTES)]
    minute = platform()["start_time"].dt.replace_time_zone("UTC")
    assert [one.spans for one in found] == [((minute >= a.start) & (minute < a.until)).sum() for a in found]
    assert [one.spans_now for one in found] == [one.spans for one in found]


def test_a_new_job_begins_a_row_and_too_little_history_is_not_judged(own: tuple[Lake, Config]) -> None:
    lake, _ = own
    with lake.write() as transaction:
        transaction.execute("DELETE FROM progress WHERE job = 'insight'")
        transaction.execute("DELETE FROM judged_minutes")
    judge(lake, 28, 31)
    judge(lake, 32, 33)
    with lake.read() as reader:
        rows = stretches(reader, minutes(0, MINUTES), settings_of(SETTINGS))
    bounds = [((one.start - NOON) // MINUTE, (one.until - NOON) // MINUTE) for one in rows]
    assert bounds == [(29, 31), (31, 33)], "15 minutes of history before the 15 that are judged"


def test_findings_and_what_is_judged_are_committed_together(
    own: tuple[Lake, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, config = own
    later = platform().with_columns(pl.col("start_time") + timedelta(minutes=MINUTES))
    add(lake, config, later.filter(pl.col("start_time").dt.replace_time_zone("UTC") < END + 4 * MINUTE))
    job = InsightJob(lake, SETTINGS)

    def state() -> list[Any]:
        with lake.read() as reader:
            return [
                *reader.row("SELECT count(*), max(minute) FROM findings"),
                *reader.row("SELECT count(*), max(until), max(spans) FROM judged_minutes"),
                reader.position("insight"),
            ]

    with monkeypatch.context() as failing:

        def fail(record: judged.Record, *of: Any) -> judged.Record:
            write(record, *of)
            raise StaleProgressError("another process was faster")

        write = judged.Record.write
        failing.setattr(judged.Record, "write", fail)
        before = state()
        assert job.step(END + MINUTE + GRACE) == 0
        assert state() == before
    assert job.step(END + MINUTE + GRACE) == 1
    assert job.step(END + 2 * MINUTE + GRACE) == 1
    after = state()
    assert (after[2] - before[2], after[3], after[5] - before[5]) == (2, (END + 2 * MINUTE).replace(tzinfo=None), 2)


def test_files_are_few_and_go_when_they_are_old(own: tuple[Lake, Config]) -> None:
    lake, _ = own

    def files() -> list[str]:
        with lake.read() as reader:
            return [file.table for file in retention.live_files(reader, lake.location.files) if file.table in TABLES]

    assert all(2 <= files().count(table) < 2 * maintain.TIER_FILES for table in TABLES)
    old = END + timedelta(days=3)
    removed = retention.apply(lake, RetentionConfig(findings_days=2), now=old.timestamp())
    assert {removal.file.table for removal in removed} == TABLES
    assert files() == []
    window = minutes(60, 61)
    assert look_back(lake, window, SETTINGS).anew == [window]


def test_a_table_of_an_older_release_gets_files_from_now_on(tmp_path: Path) -> None:
    location = Location(tmp_path / "data")
    location.prepare()
    tables = [definition for definition in ANALYTICS_DEFINITIONS if definition.name == "findings"]
    with Lake(location, read_only=False) as lake:
        lake.ensure(tables)
        with lake.write() as transaction:
            transaction.execute("CALL lake.set_option('data_inlining_row_limit', 100, table_name => 'findings')")
        for release in ("before", "now"):
            if release == "now":
                lake.ensure(tables)
            with lake.write() as transaction:
                row = frame([replace(FOUND, sentence=release)], NOON).to_arrow()
                transaction.insert("findings", row)
            with lake.read() as reader:
                assert ("findings" in reader.filled()) == (release == "now")
        with lake.read() as reader:
            assert sorted(reader.rows("SELECT sentence FROM findings")) == [("before",), ("now",)]


def test_a_lake_of_an_older_release_is_judged_now(own: tuple[Lake, Config]) -> None:
    lake, _ = own
    window = minutes(FIRST, 51)
    expected = look_back(lake, window, SETTINGS)
    with lake.write() as transaction:
        transaction.execute("DROP TABLE judged_minutes")
    answer = look_back(lake, window, SETTINGS)
    assert answer.anew == [window]
    assert told(answer) == told(expected)


def test_the_command_tells_what_was_judged_now_and_what_came_late(own: tuple[Lake, Config], tmp_path: Path) -> None:
    lake, config = own
    settings = tmp_path / "spanlake.toml"
    settings.write_text("[insight]\nhistory_minutes = 36\n")

    def run(*more: str) -> Any:
        options = ("--window", "15m", "--until", "2026-03-01T13:03Z", "--format", "json", "--config", str(settings))
        return CliRunner().invoke(spanlake, ["insights", *options, "--data", config.storage.data, *more])

    kept = run()
    assert (kept.exit_code, kept.stderr) == (0, ""), kept.output
    assert {row["region"] for row in json.loads(kept.stdout)} == {"north", "south"}
    assert run("--anew", "--window", "2m").stderr == ""
    (south,) = {row["region"] for row in json.loads(run("--region", "south").stdout)}
    assert south == "south"
    add(lake, config, platform().tail(3))
    assert "3 spans came after their minutes were judged; --anew takes them in" in run().stderr
    with lake.write() as transaction:
        transaction.execute("DELETE FROM judged_minutes WHERE hour(start) = 12")
    assert "1 of 4 minutes were judged just now" in run("--window", "4m").stderr


shares = st.builds(Share, st.integers(0, 9), st.integers(0, 9), *[st.floats(0, 1)] * 3)
texts = st.lists(st.text(max_size=5), max_size=3).map(tuple)
optional = st.none() | st.text(max_size=5)
times = st.integers(0, 10**6).map(lambda at: NOON + at * MINUTE)
found = st.builds(
    Finding, kind=st.sampled_from(["latency", "burst"]), place=st.builds(Place, *[optional] * 6),
    severity=st.just("info"), score=st.floats(0, 1e9), since=times, until=times,
    effect=st.builds(Effect, st.text(max_size=5), *[st.floats(0, 1e9)] * 3, *[st.none() | st.floats(0, 1)] * 2),
    confidence=st.builds(Confidence, st.just("t"), *[st.none() | st.floats(0, 1)] * 2, st.just(9), st.floats(0, 1)),
    sentence=st.text(max_size=9), tenants=texts, suspects=texts, symptoms=texts, exemplars=texts, baselines=texts,
    who=st.none() | st.builds(Reach, shares, shares, st.floats(0, 9), st.just((('a', Share(1, 2, 0.5, 0.1, 0.9)),))),
    sql=st.text(max_size=9), state=st.sampled_from(["opened", "ongoing", "resolved"]), tenant_scope=optional,
)  # fmt: skip


@given(found, times)
def test_a_finding_is_read_back_as_it_was_written(finding: Finding, minute: datetime) -> None:
    assert Finding.of_row(finding.as_row(minute)) == finding


@given(st.lists(st.tuples(st.integers(0, 79), st.integers(1, 40)), max_size=6))
def test_parts_that_are_not_known_and_those_that_are_make_the_window(known: list[tuple[int, int]]) -> None:
    window = minutes(20, 80)
    ordered = [Judged(NOON + a * MINUTE, NOON + (a + n) * MINUTE, 1, 1) for a, n in sorted(known) if a + n > 20]
    covered = {at for a, n in known for at in range(a, a + n)}
    left = [
        (part.start + step * MINUTE - NOON) // MINUTE
        for part in without(window, ordered)
        for step in range(part.minutes)
    ]
    assert left == [at for at in range(20, 80) if at not in covered]


def test_of_many_parts_the_time_from_the_first_to_the_last_is_judged_now(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = minutes(FIRST, 60)
    known = [Judged(NOON + at * MINUTE, NOON + (at + 1) * MINUTE, 1, 1) for at in (50, 52, 54)]
    monkeypatch.setattr(judged, "stretches", lambda *_: known)
    monkeypatch.setattr(looking_back, "_LOOKS_MAX", 3)
    answer = look_back(lake, window, SETTINGS)
    assert answer.anew == [window]
    assert {(one.region, one.state) for one in answer.found} >= {("south", "ongoing")}


def test_settings_that_decide_nothing_are_the_same() -> None:
    same = {settings_of(InsightConfig(enabled=enabled)) for enabled in (True, False)}
    assert len(same) == 1
    assert settings_of(InsightConfig(ratio_min=1.6)) not in same


def test_what_concerns_a_tenant_names_it() -> None:
    assert not concerns(FOUND, None, "acme")
    assert concerns(replace(FOUND, tenants=("b", "acme")), "north", "acme")
    assert concerns(replace(FOUND, suspects=("tenant=acme",)), None, "acme")
    assert concerns(replace(FOUND, tenant_scope="acme", place=Place()), "north", "acme")
    assert not concerns(replace(FOUND, tenant_scope="acme"), "south", "acme")
