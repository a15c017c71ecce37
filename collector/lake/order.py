"""The order of spans in a segment: by tenant, then by start_time.

Few row groups of a file then hold a tenant, which its statistics tell, and texts lie next to their like. Merges join
segments as they are, so a merged file is a few sorted runs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def by_tenant_and_time(spans: pa.Table) -> pa.Table:
    """`spans` in order, as one chunk a column; the columns `tenant` (dictionary) and `start_time` have no nulls.

    Column by column, so that no further copy of all of them is in memory at a time; who keeps no reference to `spans`
    has not even two.
    """
    if not spans.num_rows:
        return spans.unify_dictionaries().combine_chunks()
    schema, columns = spans.schema, spans.columns[::-1]
    tenants = _whole(spans.column("tenant"))
    names = tenants.dictionary.to_pylist()
    rank = np.empty(len(names), np.int32)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.int32)
    started_ns = _whole(spans.column("start_time")).cast(pa.int64()).to_numpy()
    order = pa.array(np.lexsort((started_ns, rank[tenants.indices.to_numpy()])))
    del spans
    return pa.table([_whole(columns.pop()).take(order) for _ in schema], schema=schema)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.unify_dictionaries().combine_chunks()
