"""Retention on the real DuckLake: what goes, what stays, who may still read it, and what tells of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rollup import spans
from collector.config import RetentionConfig, SamplingConfig, StorageConfig
from collector.lake import maintain, merging, retention
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.lake.retention import DAY_NS, DataFile
from collector.lake.segments import write_segment
from sample_data.emit_files import framed, requests

SPANLAKE = Path(sys.executable).with_name("spanlake")
HOUR = 3600.0
META = "__ducklake_metadata_lake"
FILES = st.lists(
    st.builds(
        DataFile,
        table=st.sampled_from(["spans", "rollup_1m", "rollup_1h"]),
        path=st.uuids().map(str),
        size_bytes=st.integers(1, 1000),
        rows=st.integers(1, 10),
        last_snapshot=st.integers(1, 20),
        newest_ns=st.none() | st.integers(0, 100 * DAY_NS),
    ),
    max_size=30,
    unique_by=lambda file: file.path,
)
CONFIGS = st.builds(
    RetentionConfig,
    spans_days=st.sampled_from([0, 0.5, 10, 60]),
    rollup_minutes_days=st.sampled_from([0, 20]),
    rollup_hours_days=st.sampled_from([0, 50]),
    total_bytes=st.integers(0, 8000),
)


@pytest.fixture
def lake(lake: Lake) -> Lake:
    with lake.write() as transaction:
        for name in ("rollup_1m", "rollup_1h"):
            columns = "window_start TIMESTAMP NOT NULL, count BIGINT, folded_series BIGINT"
            transaction.execute(f"CREATE TABLE {name} ({columns})")
    return lake


def store(lake: Lake, received_days_ago: float, count: int = 20) -> Path:
    """A file of spans that were received so long ago."""
    received_ns = time.time_ns() - int(received_days_ago * DAY_NS)
    table = spans(count, seed=count, start_ns=received_ns)
    column = pa.array([received_ns + i for i in range(count)], pa.timestamp("ns"))
    at = table.schema.get_field_index("received_at")
    table = table.set_column(at, table.schema.field(at), column)
    path = write_segment(table, lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])
    return path


def count(lake: Lake, table: str = "spans") -> int:
    with lake.read() as reader:
        return int(reader.row(f"SELECT count(*) FROM {table}")[0])


@given(FILES, CONFIGS, st.none() | st.integers(0, 20))
def test_what_goes_is_old_or_too_much_and_was_read(
    files: list[DataFile], config: RetentionConfig, read_upto: int | None
) -> None:
    now_ns = 100 * DAY_NS
    removals = retention.plan(files, config, now_ns, read_upto)
    gone = {removal.file.path for removal in removals}
    days = {"spans": config.spans_days, "rollup_1m": config.rollup_minutes_days, "rollup_1h": config.rollup_hours_days}
    assert len(gone) == len(removals)
    for removal in removals:
        file = removal.file
        assert file.newest_ns is not None
        assert file.table != "spans" or read_upto is None or file.last_snapshot <= read_upto
        if removal.reason == "age":
            assert file.newest_ns < now_ns - days[file.table] * DAY_NS
        else:
            assert file.table == "spans"
    left = [file for file in files if file.path not in gone]
    free = [f for f in left if f.table == "spans" and f.newest_ns is not None]
    free = [f for f in free if read_upto is None or f.last_snapshot <= read_upto]
    for file in free:
        assert not config.spans_days or (file.newest_ns or 0) >= now_ns - config.spans_days * DAY_NS
    size = sum(file.size_bytes for file in left)
    assert not config.total_bytes or size <= config.total_bytes or not free
    by_size = [removal.file for removal in removals if removal.reason == "size"]
    if by_size:
        assert size + by_size[-1].size_bytes > config.total_bytes, "the last one had to go too"
        assert all((f.newest_ns or 0) >= max(g.newest_ns or 0 for g in by_size) for f in free)


def test_a_file_that_cannot_be_merged_keeps_no_old_one(lake: Lake) -> None:
    old, torn = store(lake, 9), store(lake, 0, count=30)
    for more in range(1, 12):
        store(lake, 0, count=30 + more)
    torn.write_bytes(torn.read_bytes()[:-40])
    kept, memory_bytes_max = RetentionConfig(spans_days=3), merging.MEMORY_BYTES_MAX[0]
    assert maintain.due(lake, "spans").files
    with pytest.raises(OSError, match=torn.name):
        merging.work(lake.location, kept, SamplingConfig(), memory_bytes_max, threading.Event())
    with lake.read() as reader:
        live = [Path(file.path).name for file in retention.live_files(reader, lake.location.files)]
    assert old.name not in live
    assert torn.name in live


def test_old_files_go_whole_and_young_ones_stay(lake: Lake) -> None:
    store(lake, 9)
    store(lake, 8)
    young = store(lake, 1)
    config = RetentionConfig(spans_days=7)
    assert [removal.reason for removal in retention.apply(lake, config)] == ["age", "age"]
    with lake.read() as reader:
        assert reader.rows("SELECT filename, count(*) FROM spans GROUP BY filename") == [(str(young), 20)]
        assert reader.row("SELECT count(*) FROM __ducklake_metadata_lake.ducklake_delete_file") == (0,)
        found = reader.rows("SELECT table_name, reason, files, rows FROM removals")
    assert found == [("spans", "age", 2, 40)]
    assert retention.apply(lake, config) == []


def test_rollups_have_ages_of_their_own(lake: Lake) -> None:
    store(lake, 30)
    for table in ("rollup_1m", "rollup_1h"):
        for days in (40, 20):
            window = pa.array([(time.time_ns() - days * DAY_NS) // 1000], pa.timestamp("us"))
            one, none = pa.array([1], pa.int64()), pa.array([0], pa.int64())
            rows = pa.table({"window_start": window, "count": one, "folded_series": none})
            with lake.write() as transaction:
                transaction.add_files(table, [write_segment(rows, lake.location.files / "main" / table)])
    retention.apply(lake, RetentionConfig(rollup_minutes_days=10, rollup_hours_days=35))
    assert (count(lake), count(lake, "rollup_1m"), count(lake, "rollup_1h")) == (20, 0, 1)


@pytest.mark.parametrize(
    ("table", "column", "config"),
    [
        ("findings", "minute", RetentionConfig()),
        ("sighting_rows", "last_seen", RetentionConfig()),
        ("trace_rows", "window_start", RetentionConfig(traces_days=14)),
        ("hot_keys_1m", "window_start", RetentionConfig(rollup_minutes_days=14)),
    ],
)
def test_tables_of_jobs_go_by_ages_of_their_own(
    lake: Lake, table: str, column: str, config: RetentionConfig
) -> None:
    with lake.write() as transaction:
        transaction.execute(f"CREATE TABLE {table} ({column} TIMESTAMP NOT NULL)")
    for days in (410, 5):
        at = pa.array([(time.time_ns() - days * DAY_NS) // 1000], pa.timestamp("us"))
        with lake.write() as transaction:
            segment = write_segment(pa.table({column: at}), lake.location.files / "main" / table)
            transaction.add_files(table, [segment])
    assert [removal.file.table for removal in retention.apply(lake, config)] == [table]
    assert count(lake, table) == 1


@pytest.mark.parametrize(("newest_days", "left"), [(401, 0), (5, 2)])
def test_findings_that_an_older_release_kept_in_the_catalog_go_together(
    lake: Lake, newest_days: int, left: int
) -> None:
    with lake.write() as transaction:
        transaction.execute("CREATE TABLE findings (minute TIMESTAMP NOT NULL, sentence VARCHAR)")
    with lake.write() as transaction:
        transaction.execute("CALL lake.set_option('data_inlining_row_limit', 100, table_name => 'findings')")
    for days in (410, newest_days):
        with lake.write() as transaction:
            transaction.execute("INSERT INTO findings VALUES (now()::TIMESTAMP - to_days(?::INTEGER), 'slow')", [days])
    removed = retention.apply(lake, RetentionConfig())
    assert [(removal.file.table, removal.file.rows) for removal in removed] == [("findings", 2)] * (not left)
    assert count(lake, "findings") == left
    assert retention.apply(lake, RetentionConfig()) == []
    maintain.clean(lake, time.time() + maintain.SNAPSHOTS_KEPT_SECONDS + 60)
    with lake.read() as reader:
        (table,) = reader.row(
            f"SELECT i.table_name FROM {META}.ducklake_inlined_data_tables i "
            f"JOIN {META}.ducklake_table t USING (table_id) WHERE t.table_name = 'findings'"
        )
        assert reader.row(f"SELECT count(*) FROM {META}.{table}") == (left,)


def test_the_oldest_go_until_the_rest_fits(lake: Lake) -> None:
    paths = [store(lake, days) for days in (5, 4, 3, 2)]
    with lake.read() as reader:
        everything = sum(file.size_bytes for file in retention.live_files(reader, lake.location.files))
    size = everything - sum(path.stat().st_size for path in paths[:2])
    assert [removal.reason for removal in retention.apply(lake, RetentionConfig(total_bytes=size))] == ["size"] * 2
    with lake.read() as reader:
        left = {path for (path,) in reader.rows("SELECT DISTINCT filename FROM spans")}
    assert left == set(map(str, paths[2:]))


def test_what_a_job_has_not_read_stays(lake: Lake) -> None:
    store(lake, 9)
    with lake.read() as reader:
        first = reader.snapshot_id()
    with lake.write() as transaction:
        transaction.advance("slow", None, first)
    store(lake, 8)
    config = RetentionConfig(spans_days=7)
    retention.apply(lake, config)
    assert count(lake) == 20
    with lake.read() as reader:
        assert retention.held(lake, reader, config) == 1
        newest = reader.snapshot_id()
    with lake.write() as transaction:
        transaction.advance("slow", first, newest)
    retention.apply(lake, config)
    assert count(lake) == 0


def test_a_merged_file_counts_as_its_newest_row_and_snapshot(lake: Lake) -> None:
    snapshots = []
    for days in range(20, 20 - maintain.TIER_FILES, -1):
        store(lake, days)
        with lake.read() as reader:
            snapshots.append(reader.snapshot_id())
    assert maintain.merge_once(lake, "spans") == maintain.TIER_FILES
    with lake.write() as transaction:
        transaction.advance("slow", None, snapshots[-2])
    assert retention.apply(lake, RetentionConfig(spans_days=1)) == []
    with lake.write() as transaction:
        transaction.advance("slow", snapshots[-2], snapshots[-1])
    assert retention.apply(lake, RetentionConfig(spans_days=14)) == []
    assert len(retention.apply(lake, RetentionConfig(spans_days=12))) == 1


def test_merged_files_are_sorted_and_keep_the_snapshots_of_their_rows(lake: Lake) -> None:
    for days in range(maintain.TIER_FILES):
        store(lake, days, count=50 + days)
    with lake.read() as reader:
        before = reader.rows("SELECT snapshot_id, count(*) FROM spans GROUP BY ALL ORDER BY ALL")
        ordered = reader.rows("SELECT tenant, start_time FROM spans ORDER BY ALL")
    assert maintain.merge_once(lake, "spans") == maintain.TIER_FILES
    with lake.read() as reader:
        (path,) = reader.row("SELECT DISTINCT filename FROM spans")
        assert reader.rows("SELECT snapshot_id, count(*) FROM spans GROUP BY ALL ORDER BY ALL") == before
        assert reader.rows(f"SELECT tenant, start_time FROM read_parquet('{path}')") == ordered


def test_a_reader_on_a_file_that_goes_reads_it_to_its_end(lake: Lake) -> None:
    path = store(lake, 9, count=50_000)
    with Lake(lake.location, read_only=True) as other, other.read() as reader:
        assert reader.row("SELECT count(*) FROM spans") == (50_000,)
        assert len(retention.apply(lake, RetentionConfig(spans_days=7))) == 1
        maintain.clean(lake)
        assert count(lake) == 0
        assert reader.row("SELECT count(*), count(DISTINCT span_id) FROM spans")[0] == 50_000
    assert path.exists()


def test_readers_never_break_while_files_merge_and_go(lake: Lake) -> None:
    stop, looked, seen = threading.Event(), threading.Event(), list[int]()

    def read() -> None:
        with Lake(lake.location, read_only=True) as other:
            while not stop.is_set():
                with other.read() as reader:
                    first = reader.row("SELECT count(*), count(DISTINCT span_id) FROM spans")
                    assert reader.row("SELECT count(*), count(DISTINCT span_id) FROM spans") == first
                    seen.append(first[0])
                    looked.set()

    store(lake, 1)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        for _ in range(2):
            for number in range(maintain.TIER_FILES):
                store(lake, 9 + number)
            looked.clear()
            assert looked.wait(20)
            assert maintain.merge_once(lake, "spans")
            retention.apply(lake, RetentionConfig(spans_days=7))
            maintain.clean(lake)
            looked.clear()
            assert looked.wait(20)
        stop.set()
        reading.result()
    assert all(number % 20 == 0 for number in seen)
    assert len(set(seen)) > 1


def test_the_disk_gets_its_bytes_back_after_the_grace(lake: Lake) -> None:
    path = store(lake, 9)
    with lake.read() as reader:
        newest = reader.snapshot_id()
    with lake.write() as transaction:
        transaction.advance("idle", None, newest)
    retention.apply(lake, RetentionConfig(spans_days=7))
    later = time.time() + maintain.SNAPSHOTS_KEPT_SECONDS + 60
    maintain.clean(lake, now=later)
    maintain.clean(lake, now=later + maintain.FILES_GRACE_SECONDS + 60)
    assert not path.exists()


def test_a_trace_by_its_id_with_or_without_its_time(lake: Lake) -> None:
    store(lake, 1)
    store(lake, 5, count=21)  # other ids
    with lake.read() as reader:
        trace_id, moment = reader.row("SELECT trace_id, start_time FROM spans ORDER BY start_time LIMIT 1")
        expected = [(trace_id,)]
        assert reader.rows(f"SELECT trace_id FROM trace('{trace_id.upper()}')") == expected
        near = f"around := '{moment}', within := '1 minute'"
        assert reader.rows(f"SELECT trace_id FROM trace('{trace_id}', {near})") == expected
        assert reader.rows(f"SELECT trace_id FROM trace('{trace_id}', around := ago('1 day'))") == []


def maintained(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SPANLAKE, "maintain", "--data", folder, *more], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_merges_removes_and_tells(lake: Lake, tmp_path: Path) -> None:
    for days in range(maintain.TIER_FILES):
        store(lake, days)
    lake.close()
    config = tmp_path / "config.toml"
    config.write_text("[retention]\nspans_days = 0.000001\n")
    done = maintained(lake.location.root)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert (first["merges"], first["merged_files"], first["files"], first["removed"]) == (1, 8, 1, [])
    second = json.loads(maintained(lake.location.root, "--config", str(config)).stdout)
    (removed,) = second["removed"]
    assert (removed["table"], removed["reason"], removed["rows"], second["files"]) == ("spans", "age", 160, 0)
    status = [SPANLAKE, "status", "--data", lake.location.root, "--config", config]
    shown = subprocess.run(status, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "retention  spans 1e-06 days" in shown
    assert "removed 160 rows" in shown


def test_the_command_works_beside_a_collector(tmp_path: Path) -> None:
    file, data = tmp_path / "spans.pb", tmp_path / "data"
    file.write_bytes(b"".join(map(framed, requests(1, 500, 50))))
    command = [SPANLAKE, "collect", "--data", data, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        endpoint = json.loads(collector.stdout.readline())["grpc"]
        sent = subprocess.run([SPANLAKE, "import", file, "--endpoint", endpoint], check=False, capture_output=True)
        done = maintained(data)
        collector.terminate()
    assert (sent.returncode, done.returncode, done.stderr) == (0, 0, "")
    with Lake(locate(StorageConfig(data=str(data))), read_only=True) as lake:
        assert count(lake) == 500


def test_the_command_names_a_folder_without_a_lake(tmp_path: Path) -> None:
    done = maintained(tmp_path / "nothing")
    assert done.returncode == 1
    assert "no lake at storage.data" in done.stderr


@pytest.mark.parametrize("text", ["spans_days = -1", "spans_days = inf", "total_bytes = -5", "days = 3"])
def test_a_bound_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[retention]\n{text}\n")
    done = maintained(tmp_path, "--config", str(config))
    assert done.returncode == 1
    assert f"retention.{text.split(' ', maxsplit=1)[0]}" in done.stderr
    assert "Traceback" not in done.stderr
