"""Commits by rows of the catalog: those that DuckLake writes, all or nothing, and left to DuckLake where in doubt."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from math import inf
from pathlib import Path
from subprocess import run
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.config import LimitsConfig, MappingConfig, StorageConfig
from collector.decode.decoder import Decoder
from collector.lake import append, column_stats, segments
from collector.lake.append import Appender
from collector.lake.column_stats import FileStats, Leaf, TableStats
from collector.lake.lake import Lake, StaleProgressError
from collector.lake.location import Location, locate
from collector.lake.order import by_tenant_and_time
from collector.lake.rewrite import field
from collector.lake.segments import write_segment
from collector.pipeline import TraceRequest
from sample_data.emit_files import requests

JOB = "spool/test"
SECOND_NS = 10**9
META = "__ducklake_metadata_lake.main"


def spans_of(seed: int, spans: int = 60, payloads: list[bytes] | None = None) -> pa.Table:
    """Simulated spans with attributes, events and links."""
    decoder = Decoder(MappingConfig(), LimitsConfig())
    parts = [decoder.decode([TraceRequest(p, seed * SECOND_NS)]).spans for p in payloads or requests(seed, spans)]
    return by_tenant_and_time(pa.Table.from_batches(parts))


def segment(lake: Lake, spans: pa.Table) -> Path:
    return write_segment(spans, lake.location.files / "main/spans")


def by_ducklake(lake: Lake, path: Path, expected: int | None, position: int) -> None:
    with lake.write() as transaction:
        transaction.add_files("spans", [path])
        transaction.advance(JOB, expected, position)


def left_to_ducklake(appender: Appender, lake: Lake, path: Path) -> None:
    """The segment is not taken, and DuckLake commits it at the place it would have had."""
    assert not appender.commit(path, JOB, 1, 2)
    by_ducklake(lake, path, 1, 2)


def learnt(lake: Lake) -> Appender:
    """An appender after a first commit of DuckLake, of position 1."""
    appender, path = Appender(lake), segment(lake, spans_of(0))
    by_ducklake(lake, path, None, 1)
    appender.learn(path)
    return appender


def tables(location: Location) -> dict[str, list[tuple[Any, ...]]]:
    """All of the catalog."""
    with closing(sqlite3.connect(f"file:{location.catalog}?mode=ro", uri=True)) as catalog:
        names = [name for (name,) in catalog.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(catalog.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in names}


def without_times(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Times of commits, and the next id of a file, of which DuckLake leaves some out, are not to be compared."""
    (marks,) = [name for name in found if name.startswith("ducklake_inlined_data_") and "tables" not in name]
    progress_id = int(marks.split("_")[3])
    found["ducklake_snapshot"] = [(id_, *rest[:-1]) for id_, _, *rest in found["ducklake_snapshot"]]
    found[marks] = [row[:-1] for row in found[marks]]
    found["ducklake_table_column_stats"] = [
        row for row in found["ducklake_table_column_stats"] if row[:2] != (progress_id, 3)
    ]
    return found


def copy_of(location: Location, folder: Path) -> Location:
    other = locate(StorageConfig(data=str(folder)))
    shutil.copytree(location.root, other.root)
    return other


PARTS: dict[str, Callable[[], pa.Table]] = {
    "simulated": lambda: spans_of(1),
    "one span": lambda: spans_of(2).slice(0, 1),
    "earlier": lambda: with_column(spans_of(3, 20), "start_time", [1, 10**9, 123_000]),
    "many row groups": lambda: spans_of(4, 200),
    "weights": lambda: with_column(spans_of(5), "sample_weight", [1.0, 1e16, 0.1, 123456789.25, None]),
    "long": lambda: with_column(spans_of(5), "status_message", ["x" * 5000]),
    "flags": lambda: with_column(spans_of(6), "flags", [2**32 - 1, 0, 7]),
    "cache hits": lambda: with_column(spans_of(7), "cache_hit", [True]),
    "other letters": lambda: with_column(spans_of(8), "status_message", ['it\'s "so"', "Ærø 🚀", "\ufffd\n"]),
    "sizes": lambda: with_column(spans_of(9), "payload_bytes", [9, 10, -(2**63), 2**63 - 1]),
}


def with_column(spans: pa.Table, name: str, values: list[Any]) -> pa.Table:
    number = spans.schema.get_field_index(name)
    column = pa.array((values * spans.num_rows)[: spans.num_rows], spans.schema.field(name).type)
    return spans.set_column(number, spans.schema.field(name), column)


def test_the_catalog_is_as_after_commits_of_ducklake(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = segment(lake, spans_of(0))
    by_ducklake(lake, first, None, 1)
    lake.close()
    monkeypatch.setattr(segments, "SEGMENT_ROWS_PER_GROUP_MAX", 80)
    ours, theirs = copy_of(lake.location, tmp_path / "ours"), copy_of(lake.location, tmp_path / "theirs")
    with Lake(ours, read_only=False) as our_lake, Lake(theirs, read_only=False) as their_lake:
        appender = Appender(our_lake)
        appender.learn(ours.files / "main/spans" / first.name)
        for position, (name, spans) in enumerate(PARTS.items(), 2):
            path = segment(our_lake, spans())
            if name == "long":
                assert not appender.commit(path, JOB, position - 1, position)
                by_ducklake(our_lake, path, position - 1, position)
            else:
                assert appender.commit(path, JOB, position - 1, position), name
            other = theirs.files / "main/spans" / path.name
            shutil.copy(path, other)
            by_ducklake(their_lake, other, position - 1, position)
    found, expected = (without_times(numbered(tables(each))) for each in (ours, theirs))
    for name, rows in expected.items():
        assert found[name] == rows, name


def numbered(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    """Ids of files counted without gaps."""
    number = {id_: n for n, id_ in enumerate(sorted(row[0] for row in found["ducklake_data_file"]))}
    for name in ("ducklake_data_file", "ducklake_file_column_stats"):
        found[name] = sorted(((number[id_], *rest) for id_, *rest in found[name]), key=repr)
    return found


def test_ducklake_goes_on_where_rows_were_written(lake: Lake) -> None:
    appender = learnt(lake)
    assert appender.commit(segment(lake, spans_of(1)), JOB, 1, 2)
    by_ducklake(lake, segment(lake, spans_of(2)), 2, 3)
    assert appender.commit(segment(lake, spans_of(3)), JOB, 3, 4)
    with lake.maintenance() as connection:
        connection.execute("CALL ducklake_merge_adjacent_files('lake', 'spans')")
    assert appender.commit(segment(lake, spans_of(4)), JOB, 4, 5)
    with lake.read() as reader:
        expected = [row for seed in range(5) for row in spans_of(seed)["span_id"].to_pylist()]
        assert sorted(id_ for (id_,) in reader.rows("SELECT span_id FROM spans")) == sorted(expected)
        assert reader.rows("SELECT count(DISTINCT rowid), max(rowid) + 1 FROM spans") == [(len(expected),) * 2]
        assert reader.position(JOB) == 5
        inserted = "SELECT count(*) FROM ducklake_table_insertions('lake', 'main', 'spans', 0, ?)"
        assert reader.row(inserted, [reader.snapshot_id()]) == (len(expected),)


def test_another_schema_is_learnt_anew(lake: Lake) -> None:
    appender = learnt(lake)
    with lake.write() as transaction:
        transaction.execute("CREATE TABLE another (i BIGINT)")
    path = segment(lake, spans_of(1))
    left_to_ducklake(appender, lake, path)
    appender.learn(path)
    assert appender.commit(segment(lake, spans_of(2)), JOB, 2, 3)


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b"], ids=["long", "with NUL"])
def test_a_segment_whose_bounds_are_in_doubt_is_left_to_ducklake(lake: Lake, text: str) -> None:
    appender = learnt(lake)
    odd = segment(lake, with_column(spans_of(1), "status_message", [text]))
    left_to_ducklake(appender, lake, odd)
    with lake.read() as reader:
        assert set(reader.rows("SELECT status_message FROM spans WHERE received_at >= to_timestamp(1)::TIMESTAMP")) == {
            (text,)
        }
    assert appender.commit(segment(lake, spans_of(2)), JOB, 2, 3)


def test_marks_that_went_to_a_file_are_left_to_ducklake(lake: Lake) -> None:
    appender = learnt(lake)
    with lake.maintenance() as connection:
        connection.execute("CALL ducklake_flush_inlined_data('lake', table_name => 'progress')")
    path = segment(lake, spans_of(1))
    left_to_ducklake(appender, lake, path)


def test_a_catalog_of_other_columns_is_left_to_ducklake(lake: Lake) -> None:
    with lake.maintenance() as connection:
        connection.execute(f"ALTER TABLE {META}.ducklake_table_stats ADD COLUMN surprise BIGINT")
    path, appender = segment(lake, spans_of(0)), Appender(lake)
    assert not appender.commit(path, JOB, None, 1)
    appender.learn(path)
    assert not appender.commit(path, JOB, None, 1)


def test_rows_that_ducklake_wrote_otherwise_are_left_to_ducklake(lake: Lake) -> None:
    path, appender = segment(lake, spans_of(0)), Appender(lake)
    by_ducklake(lake, path, None, 1)
    with lake.catalog() as connection:
        connection.execute(f"UPDATE {META}.ducklake_file_column_stats SET null_count = 7 WHERE column_id = 5")
    appender.learn(path)
    assert not appender.commit(segment(lake, spans_of(1)), JOB, 1, 2)


def test_a_mark_that_another_process_moved_commits_nothing(lake: Lake) -> None:
    appender = learnt(lake)
    with Lake(lake.location, read_only=False) as other:
        by_ducklake(other, segment(other, spans_of(1)), 1, 2)
    before = tables(lake.location)
    with pytest.raises(StaleProgressError, match="stands at 2, not at 1"):
        appender.commit(segment(lake, spans_of(2)), JOB, 1, 2)
    assert tables(lake.location) == before
    assert appender.commit(segment(lake, spans_of(2)), JOB, 2, 3)


def test_a_segment_that_is_gone_commits_nothing(lake: Lake) -> None:
    appender, path = learnt(lake), segment(lake, spans_of(1))
    path.unlink()
    before = tables(lake.location)
    with pytest.raises(FileNotFoundError):
        appender.commit(path, JOB, 1, 2)
    assert tables(lake.location) == before


@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_error_in_any_statement_commits_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    appender, calls, original = learnt(lake), [0], append._sqlite
    before = tables(lake.location)

    def failing(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > at:
            raise duckdb.IOException("disk I/O error")
        return original(*arguments)

    path = segment(lake, spans_of(1))
    with monkeypatch.context() as patch:
        patch.setattr(append, "_sqlite", failing)
        with pytest.raises(duckdb.IOException):
            appender.commit(path, JOB, 1, 2)
    assert tables(lake.location) == before
    left_to_ducklake(appender, lake, path)
    appender.learn(path)
    assert not appender.commit(segment(lake, spans_of(2)), JOB, 2, 3), "it is not tried again at once"


KILLED = """
import os, sys
from pathlib import Path
from collector.config import StorageConfig
from collector.lake import append
from collector.lake.append import Appender
from collector.lake.lake import Lake
from collector.lake.location import locate
data, first, second, at = sys.argv[1:]
lake = Lake(locate(StorageConfig(data=data)), read_only=False)
appender = Appender(lake)
appender.learn(Path(first))
original, calls = append._sqlite, [0]
def killed(*arguments):
    found = original(*arguments)
    calls[0] += 1
    if calls[0] == int(at):
        os._exit(9)
    return found
append._sqlite = killed
assert appender.commit(Path(second), "spool/test", 1, 2)
os._exit(9)
"""


@pytest.mark.parametrize(("at", "position"), [(8, 1), (99, 2)])
def test_a_kill_leaves_all_of_a_commit_or_nothing(lake: Lake, at: int, position: int) -> None:
    first, second = segment(lake, spans_of(0)), segment(lake, spans_of(1))
    by_ducklake(lake, first, None, 1)
    rows = {1: spans_of(0).num_rows, 2: spans_of(0).num_rows + spans_of(1).num_rows}
    lake.close()
    arguments = [str(lake.location.root), str(first), str(second), str(at)]
    done = run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    with Lake(lake.location, read_only=False) as again, again.read() as reader:
        assert reader.position(JOB) == position
        assert reader.row("SELECT count(*) FROM spans") == (rows[position],)


COLUMNS = st.one_of(
    st.just((pa.float64(), [inf, 1.0])),
    st.tuples(st.just(pa.float64()), st.lists(st.none() | st.floats(allow_nan=False, width=64), min_size=1)),
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1)),
    st.tuples(st.just(pa.uint32()), st.lists(st.none() | st.integers(0, 2**32 - 1), min_size=1)),
    st.tuples(st.just(pa.bool_()), st.lists(st.none() | st.booleans(), min_size=1)),
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text(max_size=5), min_size=1)),
    st.just((pa.timestamp("ns"), [2**63 - 1, 1])),
    st.tuples(st.just(pa.timestamp("ns")), st.lists(st.none() | st.integers(-(2**62), 2**63 - 1), min_size=1)),
)


@settings(max_examples=30)
@given(column=COLUMNS)
def test_bounds_are_written_as_duckdb_writes_them(
    column: tuple[pa.DataType, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, values = column
    path = tmp_path_factory.mktemp("bounds") / "one.parquet"
    table = pa.table({"a": pa.array(values, kind)}, schema=pa.schema([field("a", kind, True, 1)]))
    pq.write_table(table, path, use_dictionary=False)
    found = column_stats.of_file(pq.read_metadata(path), column_stats.leaves(table.schema))
    with duckdb.connect() as connection:
        low, high, size, nulls = connection.execute(
            "SELECT coalesce(stats_min, stats_min_value), coalesce(stats_max, stats_max_value), "
            "total_compressed_size, stats_null_count FROM parquet_metadata(?)",
            [str(path)],
        ).fetchall()[0]
    infinite = kind == pa.float64() and any(value in (inf, -inf) for value in values)
    words = {"inf", "-inf", "infinity", "-infinity"}
    if infinite or any("\0" in bound or bound in words for bound in (low, high) if bound):
        assert found is None
    else:
        assert found == [FileStats(1, size, len(values) - nulls, nulls, low, high)]


def test_the_last_time_there_is_breaks_no_query(lake: Lake) -> None:
    """DuckDB writes it as infinity, and reads it in no other way."""
    path = segment(lake, with_column(spans_of(1), "start_time", [2**63 - 1, 1]))
    left_to_ducklake(learnt(lake), lake, path)
    with lake.read() as reader:
        found = reader.row("SELECT count(*) FROM spans WHERE start_time < '2001-01-01' OR start_time > '2100-01-01'")[0]
    assert found == pq.read_metadata(path).num_rows


def test_bounds_of_row_groups_are_one_bound_of_the_file(tmp_path: Path) -> None:
    leaf = Leaf(1, pa.uint32())

    def stats(groups: list[list[int | None]]) -> FileStats:
        with pq.ParquetWriter(tmp_path / "a", pa.schema([("a", pa.uint32())])) as writer:
            for values in groups:
                writer.write_table(pa.table({"a": pa.array(values, pa.uint32())}))
        found = column_stats.of_file(pq.read_metadata(tmp_path / "a"), [leaf])
        assert found
        return found[0]

    assert stats([[9, None], [10, 2**31 + 5]])[2:] == (3, 1, "9", str(2**31 + 5))
    assert stats([[9], [None]])[2:] == (1, 1, None, None)


@given(
    old=st.lists(st.integers(-99, 99), max_size=3),
    new=st.lists(st.integers(-99, 99) | st.none(), min_size=1, max_size=3),
)
def test_the_bounds_of_a_table_are_those_of_all_its_files(old: list[int], new: list[int | None]) -> None:
    there = [value for value in new if value is not None]
    nulls = len(new) - len(there)
    low, high = (str(min(old)), str(max(old))) if old else (None, None)
    added = FileStats(1, 0, len(there), nulls, str(min(there)) if there else None, str(max(there)) if there else None)
    found = column_stats.merged(TableStats(0, low, high), added, pa.int64())
    both = [*old, *there]
    assert found == TableStats(int(nulls > 0), str(min(both)) if both else None, str(max(both)) if both else None)


def test_a_bound_that_a_file_does_not_tell_is_told_of_none() -> None:
    untold = FileStats(1, 0, 3, 0, None, None)
    assert column_stats.merged(TableStats(0, "1", "2"), untold, pa.int64()) == TableStats(0, None, None)
