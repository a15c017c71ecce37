"""What a lake holds and who works on it, as `spanlake status` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from collector.lake import engine
from collector.lake.lake import Reader
from collector.lake.location import Location


@dataclass(frozen=True)
class TableStatus:
    """A table's live data files, and their bytes."""

    name: str
    files: int
    bytes: int


@dataclass(frozen=True)
class RemovedStatus:
    """What retention has removed from a table in the last `retention.REMOVALS_KEPT_DAYS` days.

    `last_removed_at` and `newest`, the time of the newest row that went, are in UTC.
    """

    table: str
    reason: str
    files: int
    rows: int
    bytes: int
    last_removed_at: datetime
    newest: datetime


@dataclass(frozen=True)
class LakeStatus:
    """Contents of a lake at one snapshot. `latest_span` is the newest start (UTC, in whole microseconds)."""

    snapshot_id: int
    spans: int
    latest_span: datetime | None
    tables: tuple[TableStatus, ...]
    schema_version: int


def lake_status(reader: Reader) -> LakeStatus:
    """The contents that `reader` sees."""
    spans, latest = reader.row("SELECT count(*), max(start_time)::TIMESTAMP FROM spans")
    tables = reader.rows(
        f"SELECT table_name, file_count, file_size_bytes FROM {engine.CATALOG}.table_info() ORDER BY table_name"
    )
    return LakeStatus(
        snapshot_id=reader.snapshot_id(),
        spans=int(spans),
        latest_span=latest,
        tables=tuple(TableStatus(name, int(files), int(size or 0)) for name, files, size in tables),
        schema_version=int(reader.row("SELECT max(version) FROM schema_version")[0]),
    )


def lake_removals(reader: Reader) -> tuple[RemovedStatus, ...]:
    """What retention has removed, by table and reason."""
    if not reader.has("removals"):
        return ()  # written by a release that had no retention
    rows = reader.rows(
        "SELECT table_name, reason, sum(files)::BIGINT, sum(rows)::BIGINT, sum(bytes)::BIGINT, max(removed_at), "
        "max(newest) FROM removals GROUP BY table_name, reason ORDER BY table_name, reason"
    )
    return tuple(RemovedStatus(*row) for row in rows)


def damaged_files(reader: Reader) -> list[Path]:
    """Live data files that are missing, or not of the size that the catalog has. Looks at sizes, not into files."""
    tables = reader.rows(f"SELECT table_name FROM {engine.CATALOG}.table_info() ORDER BY table_name")
    return [
        Path(file)
        for (table,) in tables
        for file, size_bytes in reader.rows(
            "SELECT data_file, data_file_size_bytes FROM ducklake_list_files(?, ?) ORDER BY data_file",
            [engine.CATALOG, table],
        )
        if _size_bytes(Path(file)) != size_bytes
    ]


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


def spool_bytes(location: Location) -> int:
    """Bytes of the spool on disk."""
    sizes = []
    for path in location.spool.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            continue  # trimmed just now
    return sum(sizes)


def versions() -> dict[str, str]:
    """The releases that make up this installation."""
    packages = {"spanlake": "spanlake", "duckdb": "duckdb", "ducklake": "duckdb-extension-ducklake"}
    return {name: version(package) for name, package in packages.items()} | {"python": python_version()}
