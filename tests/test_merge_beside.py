"""Merges beside commits: to every reader as if DuckLake itself had merged, and harmless where they come to nothing."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from subprocess import run
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collector.config import LimitsConfig, MappingConfig, StorageConfig
from collector.decode.decoder import Decoder
from collector.lake import maintain, rewrite, swap, tiers
from collector.lake.lake import Lake, Reader
from collector.lake.location import locate
from collector.lake.order import by_tenant_and_time
from collector.lake.rewrite import ROW_ID, SNAPSHOT_ID, write_merged
from collector.lake.segments import write_segment
from collector.lake.tables import COLLECTOR_DEFINITIONS
from collector.maintenance import Maintenance
from collector.pipeline import TraceRequest
from collector.telemetry.traces import Tracing
from sample_data.emit_files import requests

SECOND_NS = 10**9
META = "__ducklake_metadata_lake.main"


@pytest.fixture(params=[False, True], ids=["sorted anew", "copied"])
def is_copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether merges copy chunks, as they do with long runs."""
    if request.param:
        monkeypatch.setattr(rewrite, "COPIED_ROWS_MIN", 1)
        monkeypatch.setattr(rewrite, "COPIED_GROUP_ROWS_MIN", 1)
    return bool(request.param)


def store(lake: Lake, seed: int, spans: int = 60) -> Path:
    """A segment as a collector writes it, of simulated spans with attributes, events and links."""
    decoder = Decoder(MappingConfig(), LimitsConfig())
    received_ns = seed * SECOND_NS
    parts = [decoder.decode([TraceRequest(payload, received_ns)]).spans for payload in requests(seed, spans)]
    rows = by_tenant_and_time(pa.Table.from_batches(parts))
    path = write_segment(rows, lake.location.files / swap.folder_of("spans"))
    with lake.write() as transaction:
        transaction.add_files("spans", [path])
    return path


def remove(lake: Lake, path: Path) -> None:
    with lake.write() as transaction:
        transaction.execute("DELETE FROM spans WHERE filename = ?", [str(path)])


def merge(lake: Lake, *, upto: int | None = None) -> int:
    """Merge the first `upto` files, or all, whatever their sizes."""
    with lake.read() as reader:
        known = swap.known(reader)
        assert known is not None
        sources = swap.files(reader, known)[:upto]
    path, with_row_ids = write_merged(sources, lake.location.files / swap.folder_of("spans"), known.schema)
    assert swap.swap(lake, known, sources, path, with_row_ids=with_row_ids)
    return len(sources)


def everything(reader: Reader) -> dict[str, Any]:
    """What can be asked of the table and its history, whatever files it lies in."""
    snapshots = [i for (i,) in reader.rows("SELECT snapshot_id FROM lake.snapshots() ORDER BY 1") if i > 1]
    found: dict[str, Any] = {
        "spans": sorted(map(repr, reader.rows("SELECT *, snapshot_id FROM spans"))),
        "counts": reader.rows("SELECT count(*), count(DISTINCT rowid), min(rowid), max(rowid) FROM spans"),
        "bounds": reader.rows("SELECT min(start_time), max(duration_ns), min(tenant), count(cache_hit) FROM spans"),
    }
    for snapshot in snapshots:
        at = f"SELECT count(*), bit_xor(hash(span_id)) FROM spans AT (VERSION => {snapshot})"
        found[f"at {snapshot}"] = reader.rows(at)
        since = "SELECT snapshot_id, span_id FROM ducklake_table_insertions('lake', 'main', 'spans', ?, ?) ORDER BY ALL"
        found[f"from {snapshot}"] = reader.rows(since, [snapshot, snapshots[-1]])
    return found


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A merge adds a snapshot and changes nothing else."""
    assert {name: after[name] for name in before} == before


def catalog(reader: Reader) -> dict[str, Any]:
    """What the catalog has of the one live file of spans, but for its name, its sizes and the time."""
    (file,) = reader.rows(
        f"SELECT begin_snapshot, end_snapshot, file_order, path_is_relative, file_format, record_count, row_id_start, "
        f"partition_id, encryption_key, mapping_id, partial_max, data_file_id FROM {META}.ducklake_data_file "
        f"WHERE table_id = (SELECT table_id FROM {META}.ducklake_table WHERE table_name = 'spans')"
    )
    columns = "column_id, value_count, null_count, min_value, max_value"
    return {
        "file": file,
        "stats": reader.rows(
            f"SELECT {columns} FROM {META}.ducklake_file_column_stats WHERE data_file_id = ? ORDER BY column_id",
            [file[-1]],
        ),
        "snapshot": reader.rows(
            "SELECT snapshot_id, schema_version, next_catalog_id, next_file_id, c.* EXCLUDE (snapshot_id) "
            f"FROM {META}.ducklake_snapshot s JOIN {META}.ducklake_snapshot_changes c USING (snapshot_id) "
            "ORDER BY snapshot_id DESC LIMIT 1"
        ),
        "scheduled": reader.rows(
            f"SELECT data_file_id, path LIKE 'main/spans/segment-%', path_is_relative "
            f"FROM {META}.ducklake_files_scheduled_for_deletion ORDER BY ALL"
        ),
    }


def test_the_catalog_is_as_after_a_merge_of_ducklake(lake: Lake, tmp_path: Path) -> None:
    other = locate(StorageConfig(data=str(tmp_path / "other")))
    other.prepare()
    found = []
    with Lake(other, read_only=False) as by_ducklake:
        by_ducklake.ensure(COLLECTOR_DEFINITIONS)
        maintain.configure(by_ducklake)
        for each in (lake, by_ducklake):
            for seed in range(3):
                store(each, seed)
        merge(lake)
        with by_ducklake.maintenance() as connection:
            connection.execute("CALL ducklake_merge_adjacent_files('lake', 'spans')")
        for each in (lake, by_ducklake):
            with each.read() as reader:
                found.append(catalog(reader))
    ours, theirs = found
    assert (ours["file"], ours["snapshot"]) == (theirs["file"], theirs["snapshot"])
    assert ours["scheduled"] == theirs["scheduled"]
    as_added = {"0": "false", "1": "true"}
    cache_hit = 24
    assert ours["stats"] == [
        (id_, *counts, as_added[low], as_added[high]) if id_ == cache_hit else (id_, *counts, low, high)
        for id_, *counts, low, high in theirs["stats"]
    ]


def test_a_merge_changes_nothing_that_can_be_asked(lake: Lake, is_copied: bool) -> None:
    for seed in range(4):
        store(lake, seed)
    with lake.read() as reader:
        before = everything(reader)
    assert merge(lake, upto=3) == 3
    with lake.read() as reader:
        same(before, everything(reader))
    store(lake, 4)
    with lake.read() as reader:
        before = everything(reader)
        rows = reader.rows("SELECT rowid, snapshot_id, span_id FROM spans ORDER BY ALL")
    assert merge(lake) == 3
    with lake.read() as reader:
        same(before, everything(reader))
        assert len(rows) == len(reader.rows("SELECT rowid, snapshot_id, span_id FROM spans"))
        (path,) = reader.row("SELECT DISTINCT filename FROM spans")
        footer = f"SELECT footer_size FROM {META}.ducklake_data_file WHERE path = ?"
        footer_bytes = reader.row(footer, [Path(path).name])[0]
    assert Path(path).read_bytes()[-8:-4] == footer_bytes.to_bytes(4, "little")
    merged = pq.read_table(path, columns=["tenant", "start_time"])
    keys = list(zip(merged["tenant"].to_pylist(), merged["start_time"].cast(pa.int64()).to_pylist(), strict=True))
    assert (keys == sorted(keys)) is not is_copied


@pytest.mark.usefixtures("is_copied")
def test_rows_keep_their_ids_where_files_do_not_follow_each_other(lake: Lake) -> None:
    paths = [store(lake, seed) for seed in range(4)]
    remove(lake, paths[1])
    with lake.read() as reader:
        before, ids = everything(reader), reader.rows("SELECT span_id, rowid, snapshot_id FROM spans ORDER BY ALL")
    merge(lake)
    store(lake, 5)
    merge(lake)
    with lake.read() as reader:
        (path,) = reader.row("SELECT DISTINCT filename FROM spans")
        assert {SNAPSHOT_ID, ROW_ID} < set(pq.read_schema(path).names)
        last = before["counts"][0][3]
        old = f"SELECT span_id, rowid, snapshot_id FROM spans WHERE rowid <= {last} ORDER BY ALL"
        assert reader.rows(old) == ids
        assert reader.row("SELECT count(*) = count(DISTINCT rowid) FROM spans") == (True,)


@pytest.mark.usefixtures("is_copied")
def test_ducklake_merges_on_what_was_merged_beside(lake: Lake) -> None:
    for seed in range(3):
        store(lake, seed)
    merge(lake, upto=2)
    with lake.read() as reader:
        before = everything(reader)
    with lake.maintenance() as connection:
        connection.execute("CALL ducklake_merge_adjacent_files('lake', 'spans')")
    with lake.read() as reader:
        same(before, everything(reader))
    store(lake, 3)
    merge(lake)
    with lake.read() as reader:
        same(
            {"spans": before["spans"]},
            {"spans": [row for row in everything(reader)["spans"] if row in before["spans"]]},
        )
        assert reader.row("SELECT count(DISTINCT filename) FROM spans") == (1,)


def test_a_file_whose_source_went_meanwhile_is_not_swapped_in(lake: Lake) -> None:
    paths = [store(lake, seed) for seed in range(3)]
    with lake.read() as reader:
        known = swap.known(reader)
        assert known is not None
        sources = swap.files(reader, known)
    new, with_row_ids = write_merged(sources, lake.location.files / swap.folder_of("spans"), known.schema)
    remove(lake, paths[0])
    with lake.read() as reader:
        before = everything(reader)
    assert not swap.swap(lake, known, sources, new, with_row_ids=with_row_ids)
    with lake.read() as reader:
        assert everything(reader) == before


def test_a_process_killed_in_the_swap_leaves_an_orphan(lake: Lake) -> None:
    for seed in range(tiers.TIER_FILES):
        store(lake, seed)
    with lake.read() as reader:
        before = everything(reader)
    code = (
        "import os, sys; from pathlib import Path; from collector.lake import maintain, swap\n"
        "from collector.lake.lake import Lake; from collector.lake.location import Location\n"
        "swap._add = lambda *_, **__: os._exit(9)\n"
        f"maintain.merge_once(Lake(Location(Path({str(lake.location.root)!r})), read_only=False), 'spans')\n"
    )
    assert run([sys.executable, "-c", code], check=False, timeout=60).returncode == 9
    with lake.read() as reader:
        assert everything(reader) == before
    (merged,) = lake.location.files.rglob("merged-*")
    assert maintain.clean(lake, merged.stat().st_mtime + maintain.ORPHAN_GRACE_SECONDS + 60) == 1
    assert not merged.exists()
    assert maintain.merge_once(lake, "spans") == tiers.TIER_FILES
    with lake.read() as reader:
        assert everything(reader)["spans"] == before["spans"]


def test_sources_stay_on_disk_for_their_readers_then_go(lake: Lake) -> None:
    paths = [store(lake, seed) for seed in range(3)]
    merge(lake)
    with lake.read() as reader:
        before = everything(reader)["spans"]
    maintain.clean(lake)
    assert all(path.exists() for path in paths)
    maintain.clean(lake, time.time() + maintain.FILES_GRACE_SECONDS + 60)
    assert not any(path.exists() for path in paths)
    with lake.read() as reader:
        assert everything(reader)["spans"] == before


def test_a_catalog_of_another_version_is_left_to_ducklake(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(maintain.TIER_FILES):
        store(lake, seed)
    monkeypatch.setattr(swap, "CATALOG_VERSION", "1.1")
    with lake.read() as reader:
        assert swap.known(reader) is None
        before = everything(reader)
    assert maintain.merge_once(lake, "spans") == maintain.TIER_FILES
    assert not list(lake.location.files.rglob("merged-*"))
    with lake.read() as reader:
        same(before, everything(reader))


def test_a_trace_is_found_by_bloom_filters(lake: Lake) -> None:
    for seed in range(4):
        store(lake, seed)
    merge(lake, upto=3)
    with lake.read() as reader:
        for path, trace in reader.rows("SELECT filename, min(trace_id) FROM spans GROUP BY ALL"):
            probe = "SELECT bool_and(bloom_filter_excludes) FROM parquet_bloom_probe(?, 'trace_id', ?)"
            assert reader.row(probe, [path, trace]) == (False,)
            assert sum(reader.row(probe, [path, f"{i:032x}"])[0] for i in range(50)) > 40


def test_few_small_files_wait_for_the_next_look_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0, 0), (30, 20), (45, 40), (30, 20), (0, 0), (30, 20), (60, 20), (8, 2**27), (30, 20), (30, 20)])
    monkeypatch.setattr(maintain, "due", lambda *_: maintain.Due(*next(looks)))
    maintenance = Maintenance(lake, StorageConfig(), 30.0, Tracing())
    found = [maintenance._due().files > 0 for _ in range(10)]
    assert found == [False, False, True, False, False, False, True, True, False, True]


def test_little_is_merged_without_a_process(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(maintain.TIER_FILES):
        store(lake, seed)
    with lake.read() as reader:
        before = everything(reader)
    maintenance = Maintenance(lake, StorageConfig(), 30.0, Tracing())
    monkeypatch.setattr(maintenance, "_do_in_process", lambda: pytest.fail("a process is started"))
    maintenance._merge(maintain.due(lake, "spans"))
    assert (maintenance.merges, maintenance.merged_files) == (1, maintain.TIER_FILES)
    assert maintain.due(lake, "spans").files == 0
    with lake.read() as reader:
        same(before, everything(reader))


@pytest.mark.parametrize("due", [maintain.Due(60, 2**28), maintain.Due(8, 2**20, is_for_ducklake=True)])
def test_much_and_what_ducklake_merges_is_left_to_a_process(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, due: maintain.Due
) -> None:
    maintenance, started = Maintenance(lake, StorageConfig(), 30.0, Tracing()), []
    monkeypatch.setattr(maintenance, "_do_in_process", lambda: started.append(True))
    maintenance._merge(due)
    assert started == [True]
    assert maintenance.merges == 0


def test_merges_that_fail_do_not_keep_the_lake_from_being_cleaned(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError("a file is torn")

    cleaned = threading.Event()
    monkeypatch.setattr(maintain, "due", fail)
    monkeypatch.setattr(maintain, "clean", lambda _: cleaned.set())
    maintenance = Maintenance(lake, StorageConfig(), 0.001, Tracing())
    maintenance.start()
    try:
        assert cleaned.wait(30)
    finally:
        maintenance.stop()
    assert maintenance.consecutive_failures
