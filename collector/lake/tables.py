"""Tables, views and macros of the lake, each defined by one `.sql` file of the package that writes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Definition:
    """A table, view or macro of the lake and the package and file that hold its DDL.

    `inline_rows_max`: inserts of at most so many rows are kept in the catalog itself, which suits narrow
    tables of few rows; 0 writes every insert to a Parquet file.
    """

    name: str
    package: str
    inline_rows_max: int = 0
    kind: str = "table"

    def ddl(self) -> str:
        """The text of `<package>/sql/<name>.sql`."""
        return resources.files(self.package).joinpath("sql", f"{self.name}.sql").read_text(encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """What tells this DDL from that of another release."""
        return hashlib.blake2b(self.ddl().encode(), digest_size=8).hexdigest()


MADE = Definition("definitions", "collector.lake", inline_rows_max=1000)
"""Of which DDL each view and macro of the lake was made; the newest row of a name counts."""

COLLECTOR_DEFINITIONS: tuple[Definition, ...] = (
    Definition("schema_version", "collector.lake", inline_rows_max=100),
    MADE,
    Definition("progress", "collector.lake", inline_rows_max=100),
    Definition("spans", "collector.lake"),
    Definition("resources", "collector.lake", inline_rows_max=1000),
    Definition("removals", "collector.lake", inline_rows_max=1000),
    Definition("sampled_spans", "collector.lake"),
    Definition("samplings", "collector.lake", inline_rows_max=1000),
    Definition("sampling_traces", "collector.lake", inline_rows_max=1000),
    Definition("sampling_operations", "collector.lake", inline_rows_max=1000),
    Definition("ago", "collector.lake", kind="macro"),
    Definition("trace", "collector.lake", kind="macro"),
    Definition("traces", "collector.lake", kind="view"),
    Definition("errors", "collector.lake", kind="view"),
    Definition("cache_operations", "collector.lake", kind="view"),
    Definition("topic_deliveries", "collector.lake", kind="view"),
)
