"""The order of spans in files: by tenant, then by start_time; segments that are soon sorted anew stay as they came.

Few row groups of a file then hold a tenant, which its statistics tell, and texts lie next to their like. Merges join
segments as they are, so a merged file is a few sorted runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def by_tenant_and_time(spans: pa.Table) -> pa.Table:
    """`spans` in order, as one chunk a column; the columns `tenant` (dictionary) and `start_time` have no nulls.

    Column by column, so that no further copy of all of them is in memory at a time; who keeps no reference to `spans`
    has not even two.
    """
    if not spans.num_rows:
        return as_one(spans)
    schema, columns, order = spans.schema, spans.columns[::-1], _order(spans)
    del spans
    return pa.table([_taken(_whole(columns.pop()), order) for _ in schema], schema=schema)


def parts_by_tenant_and_time(spans: pa.Table, rows_max: int) -> Iterator[pa.Table]:
    """What `by_tenant_and_time` gives, in parts of at most so many rows; `spans` has at least one.

    No more than a part is in memory besides the spans, if nobody keeps a reference to what was yielded.
    """
    schema, columns, order = spans.schema, spans.columns[::-1], _order(spans)
    del spans
    whole = [_whole(columns.pop()) for _ in schema]
    for first in range(0, len(order), rows_max):
        rows = order.slice(first, rows_max)
        yield pa.table([_taken(column, rows) for column in whole], schema=schema)


def _order(spans: pa.Table) -> pa.Array:
    tenants = _whole(spans.column("tenant"))
    names = tenants.dictionary.to_pylist()
    rank = np.empty(len(names), np.int32)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names), dtype=np.int32)
    started_ns = _whole(spans.column("start_time")).cast(pa.int64()).to_numpy()
    return pa.array(ascending(rank[tenants.indices.to_numpy()], started_ns))


def as_one(spans: pa.Table) -> pa.Table:
    """`spans` in the order in which they are, as one chunk a column."""
    return spans.unify_dictionaries().combine_chunks()


def ascending(rank: npt.NDArray[np.int32], time_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions by rank, then time, then position; neither rank nor time is negative, and there is at least one.

    Where all three fit into 63 bits, as they do but for times days apart, they are sorted as one number, in a
    fraction of the time of numpy's `lexsort`.
    """
    since_ns = time_ns - time_ns.min()
    _, time_bits, position_bits = bits = [int(most).bit_length() for most in (rank.max(), since_ns.max(), len(rank))]
    if sum(bits) > 63:
        return np.lexsort((time_ns, rank))
    key: npt.NDArray[np.int64] = rank.astype(np.int64)
    for bits_of_next, following in ((time_bits, since_ns), (position_bits, np.arange(len(rank)))):
        key <<= bits_of_next
        key |= following
    key.sort()
    key &= (1 << position_bits) - 1
    return key


def _taken(column: pa.Array, order: pa.Array) -> pa.Array:
    """`column.take(order)`; of a column that is the same everywhere, as much of the column itself."""
    is_null = column.null_count == len(column)
    is_one_text = pa.types.is_dictionary(column.type) and len(column.dictionary) == 1 and not column.null_count
    return column.slice(0, len(order)) if is_null or is_one_text else column.take(order)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.unify_dictionaries().combine_chunks()
