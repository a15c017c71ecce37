"""Protobuf fields of many messages at once: arrays of bytes in, arrays of bytes out.

The wire format is https://protobuf.dev/programming-guides/encoding/. A field is a null where it is not set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collector.varint import varint

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_EMPTY = pa.scalar(b"", pa.large_binary())


def delimited(number: int, values: pa.Array) -> pa.LargeBinaryArray:
    """A length-delimited field of texts, bytes or messages; unset where a value is null."""
    values = values.cast(pa.large_binary())
    prefixes = _by_distinct(pc.binary_length(values), varint(number << 3 | _DELIMITED))
    return joined([prefixes, values], null_handling="emit_null")


def varints(number: int, values: pa.Array) -> pa.LargeBinaryArray:
    """A field of unsigned numbers; unset where null or 0."""
    return _by_distinct(pc.if_else(pc.equal(values, 0), None, values), varint(number << 3 | _VARINT))


def fixed64(number: int, values: npt.NDArray[Any]) -> pa.LargeBinaryArray:
    """A fixed64 field of every message."""
    return _prefixed(varint(number << 3 | _FIXED64), np.ascontiguousarray(values, "<u8").view(np.uint8).reshape(-1, 8))


def fixed32(number: int, values: npt.NDArray[Any]) -> pa.LargeBinaryArray:
    """A fixed32 field of every message."""
    return _prefixed(varint(number << 3 | _FIXED32), np.ascontiguousarray(values, "<u4").view(np.uint8).reshape(-1, 4))


def from_hex(texts: pa.Array) -> pa.LargeBinaryArray:
    """The bytes of texts of hex digits, of whatever even length; null where null."""
    filled = pc.fill_null(texts.cast(pa.large_string()), "")
    content = b"".join(filled.cast(pa.large_binary()).to_pylist())
    sizes = pc.binary_length(filled).to_numpy(zero_copy_only=False) // 2
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    decoded = _large_binary(offsets, bytes.fromhex(content.decode()))
    return pc.if_else(texts.is_valid(), decoded, pa.scalar(None, pa.large_binary()))


def joined(parts: Sequence[pa.Array], null_handling: str = "replace") -> pa.LargeBinaryArray:
    """The parts of each message one after the other; a null part is nothing, or makes the whole null (`emit_null`)."""
    return pc.binary_join_element_wise(*parts, _EMPTY, null_handling=null_handling, null_replacement=b"")


def gathered(offsets: npt.NDArray[Any], items: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """For each owner all its items one after the other: items[offsets[i] : offsets[i + 1]]. No item may be null."""
    items = pa.concat_arrays([items])  # from offset 0
    bounds = np.frombuffer(items.buffers()[1], np.int64, len(items) + 1)
    return _large_binary(bounds[offsets], items.buffers()[2])


def _large_binary(offsets: npt.NDArray[np.int64], content: Any) -> pa.LargeBinaryArray:
    buffer = content if isinstance(content, pa.Buffer) else pa.py_buffer(content if content is not None else b"")
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), buffer])


def _prefixed(tag: bytes, content: npt.NDArray[np.uint8]) -> pa.LargeBinaryArray:
    count, size = content.shape
    rows = np.empty((count, len(tag) + size), np.uint8)
    rows[:, : len(tag)] = np.frombuffer(tag, np.uint8)
    rows[:, len(tag) :] = content
    return _large_binary(np.arange(count + 1, dtype=np.int64) * rows.shape[1], rows.tobytes())


def _by_distinct(numbers: pa.Array, tag: bytes) -> pa.LargeBinaryArray:
    """The tag and the number as a varint, made once for each distinct number."""
    encoded = numbers.dictionary_encode()
    texts = pa.array([tag + varint(number) for number in encoded.dictionary.to_pylist()], pa.large_binary())
    return texts.take(encoded.indices)
