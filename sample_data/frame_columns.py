"""Columns of a frame of spans from numpy arrays: labels, ids, attributes and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from sample_data.encoding import REMOTE_PARENT_FLAGS
from sample_data.topology import Ints, Topology

_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_LOW, _HIGH = np.arange(2**16) & 0xFF, np.arange(2**16) >> 8
# For two bytes, read as a little-endian number, their four hex digits.
_HEX_OF_TWO = np.stack([_DIGITS[d] for d in (_LOW >> 4, _LOW & 15, _HIGH >> 4, _HIGH & 15)], axis=1).view("<u4")[:, 0]
_LINK = pa.struct(
    [
        pa.field("trace_id", pa.string()),
        pa.field("span_id", pa.string()),
        pa.field("trace_state", pa.string()),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("dropped_attributes_count", pa.uint32()),
        pa.field("flags", pa.uint32()),
    ]
)
_PROCESS_COLUMNS = {
    "service_name": "service.name",
    "service_namespace": "service.namespace",
    "service_version": "service.version",
    "service_instance_id": "service.instance.id",
    "environment": "deployment.environment.name",
    "region": "cloud.region",
    "zone": "cloud.availability_zone",
    "host": "host.name",
}


class Texts:
    """Numbers for texts, given in the order in which they come."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The number of this text."""
        return self._codes.setdefault(text, len(self._codes))

    def labels(self, codes: Ints) -> pl.Series:
        """Categorical of the texts with these numbers, null for a negative one."""
        return labels(list(self._codes), codes)

    def array(self, codes: Ints) -> pa.StringArray:
        """The texts with these numbers."""
        return pa.array(list(self._codes), pa.string()).take(pa.array(codes))


def labels(texts: Sequence[str], codes: Ints) -> pl.Series:
    """Categorical of `texts` (no two the same) at these positions, null at a negative one."""
    narrow = codes.astype(np.int32)
    missing = narrow < 0
    indices = pa.array(narrow, mask=missing) if missing.any() else pa.array(narrow)
    return pl.Series(pa.DictionaryArray.from_arrays(indices, pa.array(texts, pa.string())))


def process_columns(topology: Topology, instances: Ints) -> dict[str, pl.Series]:
    """The columns that the resources of these processes (by `instance_index`) fill."""
    first = int(instances.min()) if len(instances) else 0
    counts = np.bincount(instances - first)
    present = np.flatnonzero(counts)
    row = (np.cumsum(counts > 0) - 1)[instances - first]
    resources = [dict(topology.instances[int(index)].attributes) for index in present + first]
    columns = {}
    for column, key in _PROCESS_COLUMNS.items():
        texts = Texts()
        code = np.array([texts.code(resource[key]) for resource in resources], np.int64)
        columns[column] = texts.labels(code[row])
    return columns


def hex_texts(ids: bytes | npt.NDArray[np.generic], size: int) -> pa.StringArray:
    """Ids of `size` bytes each as lower-case hex."""
    digits = _HEX_OF_TWO[np.frombuffer(ids, "<u2")]
    count = digits.nbytes // (2 * size)
    offsets = np.arange(0, 2 * size * count + 1, 2 * size, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(digits))


@dataclass(frozen=True, slots=True)
class Entries:
    """Attributes with one key: the rows that have it, ascending, and the values."""

    key: str
    rows: Ints
    values: pa.StringArray


def attributes(count: int, entries: Sequence[Entries]) -> pl.Series:
    """Map(String, String) of `count` rows."""
    rows = np.concatenate([e.rows for e in entries])
    order = np.argsort(rows, kind="stable")
    codes = np.repeat(np.arange(len(entries), dtype=np.int32), [len(e.rows) for e in entries])
    keys = pa.array([e.key for e in entries]).take(pa.array(codes[order]))
    values = pa.concat_arrays([e.values for e in entries]).take(pa.array(order))
    return pl.Series(pa.MapArray.from_arrays(_offsets(count, rows), keys, values))


def links(count: int, rows: Ints, trace_ids: pa.StringArray, span_ids: pa.StringArray) -> pl.Series:
    """List of links of `count` rows: these rows have one each, the others none."""
    n = len(rows)
    columns: Mapping[str, pa.Array] = {
        "trace_id": trace_ids,
        "span_id": span_ids,
        "trace_state": pa.nulls(n, pa.string()),
        "attributes": pa.MapArray.from_arrays(
            pa.array(np.zeros(n + 1, np.int32)), pa.array([], pa.string()), pa.array([], pa.string())
        ),
        "dropped_attributes_count": pa.array(np.zeros(n, np.uint32)),
        "flags": pa.array(np.full(n, REMOTE_PARENT_FLAGS, np.uint32)),
    }
    structs = pa.StructArray.from_arrays(list(columns.values()), fields=list(_LINK))
    return pl.Series(pa.ListArray.from_arrays(_offsets(count, rows), structs))


def _offsets(count: int, rows: Ints) -> pa.Int32Array:
    return pa.array(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int32))
