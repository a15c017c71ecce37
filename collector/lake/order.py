"""The order of spans in a segment: by tenant, then by start_time.

Few row groups of a file then hold a tenant, which its statistics tell, and texts lie next to their like. Merges join
segments as they are, so a merged file is a few sorted runs.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def by_tenant_and_time(spans: pa.Table) -> pa.Table:
    """`spans` in order, as one chunk a column; the columns `tenant` (dictionary) and `start_time` have no nulls."""
    whole = spans.unify_dictionaries().combine_chunks()
    if not whole.num_rows:
        return whole
    tenants = whole.column("tenant").chunk(0)
    names = tenants.dictionary.to_pylist()
    rank = np.empty(len(names), np.int32)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.int32)
    started_ns = whole.column("start_time").chunk(0).cast(pa.int64()).to_numpy()
    return whole.take(pa.array(np.lexsort((started_ns, rank[tenants.indices.to_numpy()]))))
