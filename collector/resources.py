"""Which resources the lake has already, so that each is stored once."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from collector.lake.lake import Transaction

_SEEN_MAX = 100_000


class SeenResources:
    """Remembers resource ids up to a bound; the table `resources` itself decides."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def unseen(self, batches: Sequence[pa.RecordBatch]) -> pa.Table:
        """The resources of `batches` not seen before, each once. Columns as in RESOURCE_SCHEMA."""
        table = pa.Table.from_batches(batches)
        first: dict[str, int] = {}
        for row, resource_id in enumerate(table["resource_id"].to_pylist()):
            if resource_id not in self._seen:
                first.setdefault(resource_id, row)
        return table.take(pa.array(first.values(), pa.int64()))

    def insert(self, transaction: Transaction, resources: pa.Table) -> None:
        """Insert those of `resources` that the table does not have."""
        ids = resources["resource_id"].to_pylist()
        found = transaction.rows("SELECT resource_id FROM resources WHERE resource_id IN (SELECT unnest(?))", [ids])
        stored = {resource_id for (resource_id,) in found}
        rows = [row for row, resource_id in enumerate(ids) if resource_id not in stored]
        if rows:
            transaction.insert("resources", resources.take(rows))

    def remember(self, resources: pa.Table) -> None:
        """Call once the transaction of `insert` is committed."""
        if len(self._seen) > _SEEN_MAX:
            self._seen.clear()
        self._seen.update(resources["resource_id"].to_pylist())
