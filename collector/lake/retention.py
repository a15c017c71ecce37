"""Retention: which data files have had their time, and their removal, a whole file at a time.

Ages and sizes come from the catalog's statistics, so no file is opened to choose. A span's age counts from when it
was received: that grows with the order of files, whatever clocks the senders have. A rollup's counts from its window, a
finding's from its minute, that of a stretch of judged minutes from its end, and that of a version or host from when it
was last seen.
A removed file stays on disk for readers that are on it, until `maintain.clean` finds its snapshots expired.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from collector.config import RetentionConfig
from collector.lake import engine
from collector.lake.lake import Lake, Reader, Transaction

SPANS = "spans"
SAMPLED = "sampled_spans"
RECEIVED = "received_at"
WINDOW = "window_start"
AGES = {
    SPANS: RECEIVED, SAMPLED: RECEIVED, "findings": "minute", "judged_minutes": "until", "sighting_rows": "last_seen",
}  # fmt: skip
"""The column of a table that its rows' ages count from, where it is not WINDOW."""
HOUR_SUFFIX = "_1h"
FILES_PER_COMMIT = 64
REMOVALS_KEPT_DAYS = 90
DAY_NS = 86_400 * 10**9

Reason = Literal["age", "size"]

_AGE_CASES = " ".join(f"WHEN '{table}' THEN '{column}'" for table, column in AGES.items())
_METADATA = f"__ducklake_metadata_{engine.CATALOG}"
_FILES_SQL = f"""
SELECT
    t.table_name, f.path, f.path_is_relative, f.file_size_bytes, f.record_count,
    COALESCE(f.partial_max, f.begin_snapshot) AS last_snapshot,
    epoch_ns(s.max_value::TIMESTAMP_NS) AS newest_ns
FROM {_METADATA}.ducklake_data_file f
JOIN {_METADATA}.ducklake_table t ON t.table_id = f.table_id AND t.end_snapshot IS NULL
LEFT JOIN {_METADATA}.ducklake_column c
    ON c.table_id = f.table_id AND c.end_snapshot IS NULL AND c.parent_column IS NULL
    AND c.column_name = CASE t.table_name {_AGE_CASES} ELSE '{WINDOW}' END
LEFT JOIN {_METADATA}.ducklake_file_column_stats s
    ON s.data_file_id = f.data_file_id AND s.column_id = c.column_id
WHERE f.end_snapshot IS NULL
ORDER BY f.data_file_id
"""
_INLINED_SQL = f"""
SELECT t.table_name, i.table_name
FROM {_METADATA}.ducklake_inlined_data_tables i
JOIN {_METADATA}.ducklake_table t ON t.table_id = i.table_id AND t.end_snapshot IS NULL
WHERE list_contains(?, t.table_name)
"""
_READ_UPTO_SQL = """
WITH jobs AS (
    SELECT job, max(position) AS position, max(committed_at) AS committed_at
    FROM progress WHERE job NOT LIKE 'spool/%' AND job <> 'insight' GROUP BY job
)
SELECT min(position) FROM jobs
WHERE committed_at >= (SELECT max(committed_at) FROM jobs) - INTERVAL 1 DAY
"""


@dataclass(frozen=True)
class DataFile:
    """A live data file: `newest_ns` is the greatest age column of its rows (Unix ns), None where nobody knows.

    `last_snapshot` is the newest snapshot that inserted any of its rows.
    """

    table: str
    path: str
    size_bytes: int
    rows: int
    last_snapshot: int
    newest_ns: int | None


@dataclass(frozen=True)
class Removal:
    """A file that is to go, and why."""

    file: DataFile
    reason: Reason


def read_upto(reader: Reader) -> int | None:
    """The snapshot that the slowest job has come to; None where no job has ever run.

    A job that did nothing for a day while another did is taken for one that was turned off.
    """
    position = reader.row(_READ_UPTO_SQL)[0]
    return None if position is None else int(position)


def live_files(reader: Reader, folder: Path) -> list[DataFile]:
    """The data files of all tables that the reader sees, oldest first; `folder` is that of all data files.

    Rows of a table in AGES that the catalog itself has, of older releases, are a file of no bytes.
    """
    return _inlined(reader) + [
        DataFile(
            table=table,
            path=str(folder / "main" / table / path) if is_relative else path,
            size_bytes=int(size),
            rows=int(rows),
            last_snapshot=int(last),
            newest_ns=None if newest is None else int(newest),
        )
        for table, path, is_relative, size, rows, last, newest in reader.rows(_FILES_SQL)
    ]


def _inlined(reader: Reader) -> list[DataFile]:
    found = []
    for table, path in reader.rows(_INLINED_SQL, [list(AGES)]):
        rows, last, newest_ns = reader.row(
            f"SELECT count(*), max(begin_snapshot), epoch_ns(max({AGES[table]})::TIMESTAMP) "
            f'FROM {_METADATA}."{path}" WHERE end_snapshot IS NULL'
        )
        if rows:
            found.append(DataFile(table, path, 0, int(rows), int(last), int(newest_ns)))
    return found


def plan(files: Sequence[DataFile], config: RetentionConfig, now_ns: int, read_upto: int | None) -> list[Removal]:
    """The files that are to go now. Pure.

    First those whose rows are all older than their table's days; then, while all that is left is larger than
    `total_bytes`, the oldest of spans, sampled or not. Spans that a job has not read (beyond `read_upto`) stay in any
    case.
    """
    free = [file for file in files if is_read(file, read_upto)]
    removals = [Removal(file, "age") for file in free if _is_too_old(file, config, now_ns)]
    if not config.total_bytes:
        return removals
    gone = {removal.file.path for removal in removals}
    excess = sum(file.size_bytes for file in files if file.path not in gone) - config.total_bytes
    tables = (SPANS, SAMPLED)
    spans = [file for file in free if file.table in tables and file.path not in gone and file.newest_ns is not None]
    for file in sorted(spans, key=lambda file: file.newest_ns or 0):
        if excess <= 0:
            break
        removals.append(Removal(file, "size"))
        excess -= file.size_bytes
    return removals


def is_read(file: DataFile, read_upto: int | None) -> bool:
    """Whether every job has read the file, as `read_upto` says; jobs read spans only."""
    return file.table != SPANS or read_upto is None or file.last_snapshot <= read_upto


def _is_too_old(file: DataFile, config: RetentionConfig, now_ns: int) -> bool:
    days = _days(file.table, config)
    return bool(days) and file.newest_ns is not None and file.newest_ns < now_ns - int(days * DAY_NS)


def _days(table: str, config: RetentionConfig) -> float:
    own = {
        SPANS: config.spans_days,
        SAMPLED: config.sampled_spans_days,
        "trace_rows": config.traces_days,
        "findings": config.findings_days,
        "judged_minutes": config.findings_days,
        "sighting_rows": config.sightings_days,
    }
    others = config.rollup_hours_days if table.endswith(HOUR_SUFFIX) else config.rollup_minutes_days
    return own.get(table, others)


def due(lake: Lake, config: RetentionConfig, now: float | None = None) -> list[Removal]:
    """What `apply` would remove now (a Unix time in seconds). Raises duckdb.Error."""
    if not is_on(config):
        return []
    with lake.read() as reader:
        return _plan(lake, reader, config, now)


def is_on(config: RetentionConfig) -> bool:
    """Whether anything is ever to be removed."""
    return any(config.model_dump().values())


def apply(
    lake: Lake,
    config: RetentionConfig,
    now: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Removal]:
    """Remove what is due, FILES_PER_COMMIT files a transaction, and note it in table `removals`.

    `now` is a Unix time in seconds. Safe beside all other writers and readers. Raises duckdb.Error.
    """
    removed: list[Removal] = []
    while not stopped() and due(lake, config, now):
        with lake.write() as transaction:
            chosen = _plan(lake, transaction, config, now)[:FILES_PER_COMMIT]
            _remove(transaction, chosen)
        if not chosen:
            break
        removed += chosen
    return removed


def held(lake: Lake, reader: Reader, config: RetentionConfig) -> int:
    """How many files would go now, if a job had read them."""
    if not is_on(config):
        return 0
    files, now_ns = live_files(reader, lake.location.files), time.time_ns()
    return len(plan(files, config, now_ns, None)) - len(plan(files, config, now_ns, read_upto(reader)))


def _plan(lake: Lake, reader: Reader, config: RetentionConfig, now: float | None) -> list[Removal]:
    now_ns = time.time_ns() if now is None else int(now * 10**9)
    return plan(live_files(reader, lake.location.files), config, now_ns, read_upto(reader))


def delete_files(transaction: Transaction, table: str, files: Sequence[DataFile]) -> None:
    """Delete all rows of these files: DuckLake drops a file whose rows all go, and writes no delete file for it."""
    # The bound on the age lets the catalog's statistics skip all younger files.
    transaction.execute(
        f'DELETE FROM "{table}" WHERE filename IN (SELECT unnest(?::VARCHAR[])) '
        f"AND {AGES.get(table, WINDOW)} <= make_timestamp_ns(?)",
        [[file.path for file in files], max(file.newest_ns or 0 for file in files)],
    )


def _remove(transaction: Transaction, removals: Sequence[Removal]) -> None:
    for (table, reason), group in groupby(sorted(removals, key=key), key=key):
        files = [removal.file for removal in group]
        newest_ns = max(file.newest_ns or 0 for file in files)
        delete_files(transaction, table, files)
        transaction.execute(
            "INSERT INTO removals VALUES (now()::TIMESTAMP, ?, ?, ?, ?, ?, make_timestamp_ns(?)::TIMESTAMP)",
            [table, reason, len(files), sum(f.rows for f in files), sum(f.size_bytes for f in files), newest_ns],
        )
    if removals:
        transaction.execute(f"DELETE FROM removals WHERE removed_at < ago('{REMOVALS_KEPT_DAYS} days')")


def key(removal: Removal) -> tuple[str, str]:
    """Table and reason: what removals are summed by."""
    return removal.file.table, removal.reason
