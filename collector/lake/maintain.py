"""Keeps the lake's files few and its folder clean, in bites short enough that a commit never waits long.

Spans, sampled ones too, are rewritten beside all commits (rewrite.py), by the tiers of tiers.py. Where the catalog is
not as swap.py knows it, and for other tables, DuckLake merges: that holds the commit lock while it rewrites, so each
merge makes one file of at most `MERGED_BYTES_MAX`, from files of a tier of TIER_BYTES. Tables whose rows are summed by
the jobs that write them have their large files joined (`join_once`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from collector.lake import engine, swap, tiers
from collector.lake.lake import Lake, Reader
from collector.lake.retention import SAMPLED, SPANS, read_upto
from collector.lake.rewrite import BLOCK_BYTES, table_schema, write_joined, write_merged
from collector.lake.segments import TEMPORARY_SUFFIX

log = logging.getLogger(__name__)

MERGED_BYTES_MAX = 12 * 10**6
TIER_BYTES: tuple[tuple[int, int], ...] = ((0, 2**17), (2**17, 2**20), (2**20, 2**22))
TIER_FILES = 8
FILES_GRACE_SECONDS = 600.0
# DuckLake 1.0 compares this age with a SQLite catalog as text, which ranks all times of one date alike: with two
# days it never forgets a file that is younger than one.
FORGET_FILES_SECONDS = 2 * 86_400.0
ORPHAN_GRACE_SECONDS = 3600.0
SNAPSHOTS_KEPT_SECONDS = 3600.0
PROGRESS_ROWS_MAX = 200
PURGED_ROWS_MAX = 100_000
"""Of a table at a time: to delete them takes a third of a second, in which nobody commits."""

_METADATA = f"__ducklake_metadata_{engine.CATALOG}"
_LIVE_FILES_SQL = f"""
SELECT f.file_size_bytes
FROM {_METADATA}.ducklake_data_file f JOIN {_METADATA}.ducklake_table t USING (table_id)
WHERE f.end_snapshot IS NULL AND t.end_snapshot IS NULL AND t.table_name = ?
ORDER BY f.data_file_id
"""
_LARGE_FILES_SQL = f"""
SELECT f.path
FROM {_METADATA}.ducklake_data_file f JOIN {_METADATA}.ducklake_table t USING (table_id)
WHERE f.end_snapshot IS NULL AND t.end_snapshot IS NULL AND t.table_name = ? AND f.file_size_bytes >= ?
ORDER BY f.data_file_id
"""
_UNREAD_SQL = f"""
SELECT count(*)
FROM {_METADATA}.ducklake_data_file f JOIN {_METADATA}.ducklake_table t USING (table_id)
WHERE f.end_snapshot IS NULL AND t.end_snapshot IS NULL AND t.table_name = '{SPANS}'
    AND COALESCE(f.partial_max, f.begin_snapshot) > ?
"""
_INLINED_TABLES_SQL = f"SELECT table_name FROM {_METADATA}.ducklake_inlined_data_tables"
_OLDEST_SNAPSHOT_SQL = f"""
FROM (SELECT snapshot_id, snapshot_time FROM {_METADATA}.ducklake_snapshot ORDER BY snapshot_id LIMIT 1)
SELECT snapshot_id WHERE epoch(snapshot_time::TIMESTAMPTZ) < ?
"""
_REPLACED_FILES_SQL = f"""
SELECT path FROM {_METADATA}.ducklake_files_scheduled_for_deletion
WHERE path_is_relative AND epoch(schedule_start::TIMESTAMPTZ) < ?
"""
_KNOWN_FILES_SQL = f"""
SELECT parse_filename(path) FROM {_METADATA}.ducklake_data_file
UNION ALL SELECT parse_filename(path) FROM {_METADATA}.ducklake_delete_file
UNION ALL SELECT parse_filename(path) FROM {_METADATA}.ducklake_files_scheduled_for_deletion
"""


def configure(lake: Lake) -> None:
    """Set how DuckLake writes merged files; kept in the catalog."""
    options = {
        "parquet_compression": "zstd",
        "parquet_compression_level": "1",
        "parquet_version": "2",
        "parquet_row_group_size": "20480",
        "target_file_size": f"{MERGED_BYTES_MAX // 10**6}MB",
    }
    with lake.read() as reader:
        present = dict(reader.rows(f"SELECT option_name, value FROM {engine.CATALOG}.options() WHERE scope = 'GLOBAL'"))
    if all(name in present for name in options):
        return
    with lake.write() as transaction:
        for name, value in options.items():
            transaction.execute(f"CALL {engine.CATALOG}.set_option(?, ?)", [name, value])


def plan(sizes: Sequence[int]) -> tuple[int, int] | None:
    """The tier [bytes_min, bytes_max) to merge next for files of these sizes in bytes; None where none is due. Pure."""
    for bytes_min, bytes_max in TIER_BYTES:
        if sum(bytes_min <= size < bytes_max for size in sizes) >= TIER_FILES:
            return bytes_min, bytes_max
    return None


class Due(NamedTuple):
    """Files that are to be merged: how many, their bytes together, and whether DuckLake is to do it."""

    files: int
    bytes: int
    is_for_ducklake: bool = False


def due(lake: Lake, table: str) -> Due:
    """What of `table` is to be merged. Raises duckdb.Error."""
    with lake.read() as reader:
        if known := _known(reader, table):
            sizes = [file.size_bytes for group in tiers.due(swap.files(reader, known)) for file in group]
            return Due(len(sizes), sum(sizes))
        sizes = _sizes(reader, table)
    in_tiers = [[size for size in sizes if low <= size < high] for low, high in TIER_BYTES]
    full = [tier for tier in in_tiers if len(tier) >= TIER_FILES]
    return Due(sum(map(len, full)), sum(map(sum, full)), is_for_ducklake=True)


def merge_once(lake: Lake, table: str, block_bytes: int = BLOCK_BYTES) -> int:
    """Do the next due merge of `table`; return how many files went in, 0 where none was due, or one was removed.

    What is not merged by DuckLake is sorted anew in blocks of so many encoded bytes. Raises duckdb.Error and OSError.
    """
    with lake.read() as reader:
        known = _known(reader, table)
        groups = tiers.due(swap.files(reader, known)) if known else []
        tier = None if known else plan(_sizes(reader, table))
    if known and groups:
        return _merge_beside(lake, known, groups[0], block_bytes)
    return _merge_by_ducklake(lake, table, tier) if tier else 0


def _known(reader: Reader, table: str) -> swap.Known | None:
    """The table, where its files are merged as those of spans are."""
    return swap.known(reader, table) if table in {SPANS, SAMPLED} else None


def join_once(lake: Lake, table: str, bytes_min: int) -> int:
    """Join files of `table` of `bytes_min` and more into one, as they are, where they are due by the tiers of spans.

    Returns how many, 0 where none are due or they cannot be copied. Raises duckdb.Error and OSError.
    """
    folder = lake.location.files / swap.folder_of(table)
    with lake.read() as reader:
        large = reader.rows(_LARGE_FILES_SQL, [table, bytes_min])
        if len(large) < 2:
            return 0
        known = swap.known(reader, table, table_schema(folder / large[0][0]))
        if known is None:
            return 0
        files = [file for file in swap.files(reader, known) if file.size_bytes >= bytes_min]
    for group in tiers.due(files):
        if joined := write_joined(group, folder, known.schema):
            return _swapped(lake, known, group, *joined)
    return 0


def _sizes(reader: Reader, table: str) -> list[int]:
    return [size for (size,) in reader.rows(_LIVE_FILES_SQL, [table])]


def _merge_beside(lake: Lake, known: swap.Known, files: Sequence[tiers.File], block_bytes: int) -> int:
    """Merge without the commit lock, but for the swap. After an exception the new file is an orphan for `clean`."""
    written = write_merged(files, lake.location.files / known.folder, known.schema, block_bytes)
    return _swapped(lake, known, files, *written)


def _swapped(lake: Lake, known: swap.Known, files: Sequence[tiers.File], path: Path, with_row_ids: bool) -> int:
    """How many files `path` took the place of: all, or none where that is no longer possible."""
    if swap.swap(lake, known, files, path, with_row_ids=with_row_ids):
        return len(files)
    path.unlink()
    return 0


def _merge_by_ducklake(lake: Lake, table: str, tier: tuple[int, int]) -> int:
    with lake.maintenance() as connection:
        # DuckLake's max_compacted_files counts the files that come out.
        merged = connection.execute(
            "CALL ducklake_merge_adjacent_files("
            "?, ?, max_compacted_files => 1, min_file_size => ?, max_file_size => ?)",
            [engine.CATALOG, table, *tier],
        ).fetchall()
    return sum(int(row[2]) for row in merged)


def clean(lake: Lake, now: float | None = None) -> int:
    """Expire old snapshots that no job still needs, with rows that only these had in the catalog; delete replaced files
    and orphans after their grace.

    Returns the number of orphan files that were removed. `now` is a Unix time in seconds.
    """
    now = time.time() if now is None else now
    _forget_passed_marks(lake)
    _expire_snapshots(lake, now)
    _purge_inlined(lake, now)
    with lake.read() as reader:
        replaced = reader.rows(_REPLACED_FILES_SQL, [now - FILES_GRACE_SECONDS])
    for (path,) in replaced:
        (lake.location.files / path).unlink(missing_ok=True)
    with lake.maintenance() as connection:
        connection.execute(
            "CALL ducklake_cleanup_old_files(?, older_than => to_timestamp(?))",
            [engine.CATALOG, now - FORGET_FILES_SECONDS],
        )
    return _remove_orphans(lake, now)


def _forget_passed_marks(lake: Lake) -> None:
    """Of the marks of each job only the last counts."""
    with lake.read() as reader:
        if reader.row("SELECT count(*) FROM progress")[0] <= PROGRESS_ROWS_MAX:
            return
    with lake.write() as transaction:
        transaction.execute(
            "DELETE FROM progress WHERE (job, position) NOT IN (SELECT job, max(position) FROM progress GROUP BY job)"
        )


def _expire_snapshots(lake: Lake, now: float) -> None:
    """Expire what is old. Jobs note the snapshot they have come to; while spans wait behind it, so do snapshots."""
    with lake.maintenance() as connection:
        reader = Reader(connection)
        upto = read_upto(reader)
        if upto is None or not reader.row(_UNREAD_SQL, [upto])[0]:
            upto = reader.snapshot_id()
        versions = [
            snapshot_id
            for (snapshot_id,) in reader.rows(
                f"SELECT snapshot_id FROM {engine.CATALOG}.snapshots() "
                "WHERE snapshot_time < to_timestamp(?) AND snapshot_id < ? ORDER BY snapshot_id",
                [now - SNAPSHOTS_KEPT_SECONDS, upto],
            )
        ]
        if versions:
            connection.execute(
                "CALL ducklake_expire_snapshots(?, versions => ?::UBIGINT[])", [engine.CATALOG, versions]
            )


def _purge_inlined(lake: Lake, now: float) -> None:
    """Delete rows of inlined tables that ended by the oldest snapshot; DuckLake 1.0 keeps them for ever.

    Who is on an older one began before that was made, and has had the grace.
    """
    with lake.catalog() as connection:
        oldest = connection.execute(_OLDEST_SNAPSHOT_SQL, [now - FILES_GRACE_SECONDS]).fetchone()
        if oldest is None:
            return
        for (table,) in connection.execute(_INLINED_TABLES_SQL).fetchall():
            ended = f'SELECT rowid FROM {_METADATA}."{table}" WHERE end_snapshot <= ? LIMIT {PURGED_ROWS_MAX}'
            connection.execute(f'DELETE FROM {_METADATA}."{table}" WHERE rowid IN ({ended})', oldest)


def _remove_orphans(lake: Lake, now: float) -> int:
    """Remove files that a killed process left: old, and unknown to the catalog.

    Under the commit lock: a file that looks old because the clock was set forward may be about to be registered.
    """
    candidates = [
        path
        for path in lake.location.files.rglob("*")
        if path.suffix in {".parquet", TEMPORARY_SUFFIX} and _is_older(path, now - ORPHAN_GRACE_SECONDS)
    ]
    if not candidates:
        return 0
    with lake.maintenance() as connection:
        known = {name for (name,) in connection.execute(_KNOWN_FILES_SQL).fetchall()}
        orphans = [path for path in candidates if path.name not in known]
        for path in orphans:
            path.unlink(missing_ok=True)
            log.info("removed %s: no snapshot refers to it", path.name)
    return len(orphans)


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False  # another process was faster
