"""The rollup job on real lakes: each span once, whatever is killed, raced, merged or late."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from analytics import jobs
from analytics.rollup import compact, insertions, job
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, DimensionSet, Length, configured
from collector.config import AnalyzeConfig, Config
from collector.lake import engine
from collector.lake.lake import Lake, StaleProgressError
from collector.lake.location import Location
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA

START_NS = 1_772_366_400 * 10**9  # 2026-03-01T12:00Z
NESTED = ("attributes", "events", "links")
FEW_SETS: dict[str, list[str]] = {"version": [], "destination": [], "error": []}
CONFIG = Config(analyze=AnalyzeConfig(dimension_sets=FEW_SETS, trace_parts=()))
SETS = configured(CONFIG.analyze)
SMALL_BITES = Config(analyze=AnalyzeConfig(spans_per_run_max=1000, dimension_sets=FEW_SETS, trace_parts=()))


@pytest.fixture(scope="module")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with all tables and no rows, to copy: making one takes longer than a test."""
    location = Location(tmp_path_factory.mktemp("empty") / "data")
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, CONFIG)
    return location.root


@pytest.fixture
def lake(empty_lake: Path, tmp_path: Path) -> Iterator[Lake]:
    shutil.copytree(empty_lake, tmp_path / "data")
    with Lake(Location(tmp_path / "data"), read_only=False) as opened:
        yield opened


def spans(count: int, seed: int, start_ns: int = START_NS, seconds: int = 120) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = {
        "region": rng.choice(["eu-west-1", "us-east-1", ""], count),
        "tenant": rng.choice(["acme", "globex", "initech"], count, p=[0.7, 0.2, 0.1]),
        "service_name": rng.choice(["gateway", "cache"], count),
        "component": ["cache"] * count,
        "operation": rng.choice(["get", "set"], count),
        "kind": rng.choice(["server", "client"], count),
        "status": rng.choice(["unset", "error"], count, p=[0.95, 0.05]),
        "start_time": start_ns + rng.integers(0, seconds * 10**9, count),
        "duration_ns": np.exp(rng.normal(14, 1.5, count)).astype(np.int64),
        "received_at": np.full(count, start_ns),
        "trace_id": [f"{seed:016x}{i:016x}" for i in range(count)],
        "span_id": [f"{i:016x}" for i in range(count)],
        "payload_bytes": rng.integers(0, 5000, count),
        "flags": np.zeros(count),
        **dict.fromkeys(("name", "resource_id"), ["x"] * count),
    }
    columns = {f.name: pa.array(list(values.get(f.name, [None] * count))) for f in SPAN_SCHEMA}
    columns |= {name: pa.array([[]] * count, SPAN_SCHEMA.field(name).type) for name in NESTED}
    columns["region"] = pa.array([region or None for region in values["region"]])
    columns["cache_hit"] = pa.array([[True, False, None][i] for i in rng.integers(0, 3, count)], pa.bool_())
    return pa.table({f.name: columns[f.name].cast(f.type) for f in SPAN_SCHEMA}, schema=SPAN_SCHEMA)


def add(lake: Lake, table: pa.Table) -> None:
    path = write_segment(table, lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])


def canonical(rows: pl.DataFrame, length: Length, dimension_set: DimensionSet = BASE) -> list[dict[str, object]]:
    """Merged rows with maps as sorted lists and sums of floats rounded: equal where the sums are."""
    found = merged(rows.cast(dict(dimension_set.schema)), length, dimension_set.dimensions)
    maps = [pl.col(name).map.entries().list.sort() for name in ("latency_buckets", "second_counts")]
    return found.with_columns(*maps, pl.col("weighted_count").round(6)).to_dicts()


def assert_exact(lake: Lake) -> None:
    """The rollups of all sets equal a recomputation from the raw spans."""
    with lake.read() as reader:
        raw = reader.frame("SELECT * FROM spans")
        for dimension_set in SETS:
            expected = partials(raw, dimension_set.dimensions)
            for table, length in dimension_set.tables:
                stored = canonical(reader.frame(f"SELECT * FROM {table}"), length, dimension_set)
                assert stored == canonical(expected, length, dimension_set), table


def test_spans_are_rolled_up_once_and_idle_runs_cost_no_commit(lake: Lake) -> None:
    assert jobs.run_once(lake, CONFIG).jobs["rollup"] == job.Done(0, 0, None)
    for seed in range(3):
        add(lake, spans(500, seed))
    report = jobs.run_once(lake, CONFIG).jobs["rollup"]
    assert (report.spans, report.runs) == (1500, 1)
    with lake.read() as reader:
        newest = reader.snapshot_id()
        assert reader.position("rollup") == report.position == newest - 1
    assert jobs.run_once(lake, CONFIG).jobs["rollup"] == job.Done(0, 0, report.position)
    with lake.read() as reader:
        assert reader.snapshot_id() == newest
    assert_exact(lake)


def test_bites_are_bounded_and_never_divide_a_snapshot(lake: Lake) -> None:
    for seed, count in enumerate((400, 500, 2500, 300, 700, 1)):
        add(lake, spans(count, seed))
    with lake.read() as reader:
        (due,) = job.behind(reader, SETS, 1000)
    assert [bite.spans for bite in due.bites] == [900, 2500, 1000, 1]
    assert [bite.after for bite in due.bites[1:]] == [bite.upto for bite in due.bites[:-1]]
    assert due.spans == 4401
    left: list[int] = []
    report = jobs.run_once(lake, SMALL_BITES, progress=lambda _spans, remaining: left.append(remaining))
    assert (report.jobs["rollup"].runs, left) == (4, [3501, 1001, 1, 0])
    assert_exact(lake)


def test_late_spans_add_to_their_window(lake: Lake) -> None:
    add(lake, spans(300, 1))
    jobs.run_once(lake, CONFIG)
    add(lake, spans(300, 2, START_NS - 26 * 3600 * 10**9))
    add(lake, spans(300, 3))
    jobs.run_once(lake, CONFIG)
    assert_exact(lake)


def test_merged_files_and_expired_snapshots_change_nothing(lake: Lake) -> None:
    for seed in range(4):
        add(lake, spans(200, seed))
    jobs.run_once(lake, CONFIG)
    for seed in range(4, 8):
        add(lake, spans(200, seed))
    with lake.maintenance() as connection:
        connection.execute(f"CALL ducklake_merge_adjacent_files('{engine.CATALOG}', 'spans')")
    with lake.read() as reader:
        (files,) = reader.row("SELECT count(DISTINCT filename) FROM spans")
        newest = reader.snapshot_id()
        (due,) = job.behind(reader, SETS, 10**6)
        assert files == 1
        assert insertions.read(reader, due.bites[0], BASE.dimensions).height == due.spans == 800
    with lake.maintenance() as connection:
        connection.execute(
            f"SELECT count(*) FROM ducklake_expire_snapshots('{engine.CATALOG}', versions => ?::UBIGINT[])",
            [list(range(1, newest))],
        )
    assert jobs.run_once(lake, CONFIG).jobs["rollup"].spans == 800
    assert_exact(lake)


def test_deleted_spans_are_not_read_back(lake: Lake) -> None:
    add(lake, spans(500, 1))
    with lake.write() as transaction:
        transaction.execute("DELETE FROM spans WHERE operation = 'set'")
    with lake.read() as reader:
        (kept,) = reader.row("SELECT count(*) FROM spans")
    assert 0 < kept < 500
    assert jobs.run_once(lake, CONFIG).jobs["rollup"].spans == kept
    assert_exact(lake)


def test_the_second_of_two_racing_runs_changes_nothing(lake: Lake) -> None:
    add(lake, spans(300, 1))
    with lake.read() as reader:
        (due,) = job.behind(reader, SETS, 10**6)
    job.run(lake, SETS, due.bites[0], CONFIG.analyze)
    files = set(lake.location.files.rglob("*.parquet"))
    with pytest.raises(StaleProgressError):
        job.run(lake, SETS, due.bites[0], CONFIG.analyze)
    assert set(lake.location.files.rglob("*.parquet")) == files
    assert_exact(lake)


def test_a_run_that_cannot_commit_leaves_no_rows_and_is_done_later(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(lake, spans(300, 1))

    def torn(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_segment", torn)
        with pytest.raises(OSError, match="No space left"):
            jobs.run_once(lake, CONFIG)
    with lake.read() as reader:
        assert reader.row("SELECT count(*) FROM rollup_1m")[0] == 0
        assert reader.position("rollup") is None
    jobs.run_once(lake, CONFIG)
    assert_exact(lake)


def test_compaction_keeps_sums_and_bounds_files(lake: Lake) -> None:
    for seed in range(20):
        add(lake, spans(60, seed, START_NS + seed * 10**9, 30))
        jobs.run_once(lake, CONFIG)
    with lake.read() as reader:
        for table, _ in [table for dimension_set in SETS for table in dimension_set.tables]:
            assert len(compact.live_files(reader, table)) < compact.TIER_FILES
            assert reader.row(
                f"SELECT count(*) FROM ducklake_list_files('{engine.CATALOG}', '{table}') "
                "WHERE delete_file IS NOT NULL"
            ) == (0,)
        rows, keys = reader.row(
            "SELECT (SELECT count(*) FROM rollup_1m), (SELECT count(*) FROM (SELECT DISTINCT window_start, "
            "region, tenant, service_name, component, operation, kind FROM rollup_1m))"
        )
    assert rows < 20 * keys / 4
    assert_exact(lake)


def test_compaction_steps_back_where_another_was_faster(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "TIER_FILES", 100)
    for seed in range(8):
        add(lake, spans(40, seed))
        jobs.run_once(lake, CONFIG)
    monkeypatch.undo()
    write_rows, raced = compact.write_rows, []

    def slow(*arguments: object) -> Path:
        if not raced:
            raced.append(True)
            assert compact.compact(lake, BASE, BASE.minutes, "1m") == 8
        return write_rows(*arguments)  # type: ignore[arg-type]  # what was handed over

    monkeypatch.setattr(compact, "write_rows", slow)
    assert compact.compact(lake, BASE, BASE.minutes, "1m") == 0
    assert_exact(lake)


def test_parts_are_whole_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SLICE_ROWS", 10)
    rows = pl.DataFrame({"window_start": [5, 1, 2, 2, 9] * 6 + [7] * 25})
    parts = list(compact.by_windows(rows))
    assert sorted(pl.concat(parts)["window_start"]) == sorted(rows["window_start"])
    windows = [set(part["window_start"]) for part in parts]
    assert sum(map(len, windows)) == len(set.union(*windows)) == 5
    assert len(parts) > 2


def test_small_files_go_first_and_large_ones_stay() -> None:
    def files(*sizes: int) -> list[compact.File]:
        return [compact.File(f"{i}.parquet", size) for i, size in enumerate(sizes)]

    kib, mib = 2**10, 2**20
    assert compact.due(files(*[kib] * 7)) == []
    assert len(compact.due(files(*[kib] * 9))) == 9
    assert compact.due(files(*[20 * mib] * 50)) == []
    mixed = files(*[kib] * 8, *[2 * mib] * 8)
    assert compact.due(mixed) == mixed[:8]
    chosen = compact.due(files(*[5 * mib] * 8))
    assert sum(file.size_bytes for file in chosen) <= compact.INPUT_BYTES_MAX
    assert len(chosen) == 3


WORKER = """
import sys
from pathlib import Path
from analytics import jobs
from analytics.rollup.sets import BASE, DimensionSet, Length, configured
from collector.config import AnalyzeConfig, Config
from collector.lake.lake import Lake
from collector.lake.location import Location
few_sets = {"version": [], "destination": [], "error": []}
config = Config(analyze=AnalyzeConfig(spans_per_run_max=1000, dimension_sets=few_sets, trace_parts=()))
with Lake(Location(Path(sys.argv[1])), read_only=False) as lake:
    print("ready", flush=True)
    report = jobs.run_once(lake, config).jobs["rollup"]
print(report.spans)
"""


def worker(lake: Lake) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(lake.location.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_kills_at_any_moment_lose_and_double_nothing(lake: Lake) -> None:
    moments = random.Random(int(os.environ.get("SPANLAKE_TEST_SEED", "7")))
    for seed in range(24):
        add(lake, spans(200, seed))
    killed = 0
    for _ in range(4):
        process = worker(lake)
        timer = threading.Timer(moments.uniform(0.0, 0.5), process.send_signal, [signal.SIGKILL])
        timer.start()
        killed += process.wait(timeout=60) == -signal.SIGKILL
        timer.cancel()
        add(lake, spans(100, 100 + killed))
    assert killed > 0
    jobs.run_once(lake, SMALL_BITES)
    assert_exact(lake)


def test_racing_processes_share_the_work(lake: Lake) -> None:
    for seed in range(16):
        add(lake, spans(250, seed))
    processes = [worker(lake) for _ in range(2)]
    done = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(done) == 4000
    assert_exact(lake)


def test_lag_counts_what_is_not_rolled_up(lake: Lake) -> None:
    add(lake, spans(300, 1))
    with lake.read() as reader:
        (behind,) = jobs.lag(reader)
    assert (behind.job, behind.position, behind.spans_behind) == ("rollup", None, 300)
    assert 0 <= behind.seconds_behind < 60
    jobs.run_once(lake, CONFIG)
    with lake.read() as reader:
        (behind,) = jobs.lag(reader)
        assert behind.newest_snapshot == reader.snapshot_id()
    assert (behind.spans_behind, behind.seconds_behind) == (0, 0.0)


def test_run_forever_survives_errors_and_stops(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, calls = threading.Event(), []
    roll_up = jobs.roll_up

    def flaky(*arguments: object, memory: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk is away")
        report = roll_up(*arguments, memory=memory)  # type: ignore[arg-type]  # what was handed over
        stop.set()
        return report

    monkeypatch.setattr(jobs, "roll_up", flaky)
    add(lake, spans(50, 1))
    config = Config(analyze=AnalyzeConfig(interval_seconds=0.01, dimension_sets=FEW_SETS, trace_parts=()))
    thread = threading.Thread(target=jobs.run_forever, args=(lake, config, stop))
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(calls) == 2
    assert_exact(lake)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from analytics.cli import analyze; analyze()", *arguments]


def test_analyze_waits_rolls_up_and_stops_on_sigterm_while_once_works_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "data"
    process = subprocess.Popen(command("--data", str(root)), stderr=subprocess.PIPE)
    try:
        location = Location(root)
        location.prepare()
        with Lake(location, read_only=False) as lake:
            jobs.prepare(lake)
            add(lake, spans(400, 1))
            once = subprocess.run(command("--data", str(root), "--once"), capture_output=True, check=True)
            report = json.loads(once.stdout)["jobs"]["rollup"]
            assert set(report) == {"spans", "runs", "position"}
            assert_exact(lake)
            deadline = threading.Event()
            for _ in range(300):
                if location.jobs_lock.exists() and location.jobs_lock.read_text().strip() == str(process.pid):
                    break
                deadline.wait(0.1)
            assert location.jobs_lock.read_text().strip() == str(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_timestamps_are_utc(lake: Lake) -> None:
    add(lake, spans(10, 1, seconds=1))
    jobs.run_once(lake, CONFIG)
    with lake.read() as reader:
        assert reader.rows("SELECT DISTINCT window_start FROM rollup_1m") == [(datetime(2026, 3, 1, 12),)]
