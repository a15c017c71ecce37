"""Attributes of many spans (or events, or links) as one table: a row each, in the order sent.

A key is unique within its owner, as MAP demands: the last one sent wins and stands where it was sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector.config import LimitsConfig
from collector.decode.guards import TEXT_GROWTH_MAX, Losses, beyond, cut, too_long
from collector.decode.values import Values, decode_values
from collector.decode.wire import Int32s, checked, lengths, split_key_values
from collector.spans import SPAN_ATTRIBUTES

_DENSE_CELLS_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class Extra:
    """Something to append to the attributes of some owners: `texts[i]` under `key` to `owners[i]`."""

    key: str
    owners: npt.NDArray[Any]
    texts: pa.StringArray


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes by position, ordered by owner: `names[code]`, `values`, and the number of its owner.

    `keep` marks those that are not overridden by a later one of the same key, and were not dropped; `losses` tells
    what was.
    """

    owner_count: int
    owner: Int32s
    code: Int32s
    names: pa.StringArray
    values: Values
    keep: npt.NDArray[np.bool_]
    losses: Losses = field(default_factory=Losses)

    def without(self, positions: npt.NDArray[Any]) -> Attributes:
        """These attributes but for those at the positions."""
        if not len(positions):
            return self
        keep = self.keep.copy()
        keep[positions] = False
        return replace(self, keep=keep)

    def to_maps(self) -> pa.MapArray:
        """SPAN_ATTRIBUTES of every owner. Raises InvalidRequestError."""
        kept = np.flatnonzero(self.keep)
        bounds = np.zeros(self.owner_count + 1, np.int32)
        np.cumsum(np.bincount(self.owner.take(kept), minlength=self.owner_count), out=bounds[1:])
        keys = pa.DictionaryArray.from_arrays(pa.array(self.code.take(kept)), self.names, safe=False)
        return pa.MapArray.from_arrays(pa.array(bounds), keys, self.values.texts(kept), type=SPAN_ATTRIBUTES)

    def with_extras(self, extras: list[Extra]) -> Attributes:
        """These attributes and after them, owner by owner, the extras in their order."""
        added = pa.array([extra.key for extra in extras], pa.string())
        names = pa.concat_arrays([self.names, added]).dictionary_encode()
        recode = names.indices.to_numpy()
        kept = np.flatnonzero(self.keep)
        owner, code = [self.owner[kept]], [recode[self.code[kept]]]
        for extra, extra_code in zip(extras, recode[len(self.names) :], strict=True):
            owner.append(extra.owners.astype(np.int32))
            code.append(np.full(len(extra.owners), extra_code, np.int32))
        values = self.values.chosen(kept).appended(pa.concat_arrays([extra.texts for extra in extras]))
        owners = np.concatenate(owner)
        order = np.argsort(owners, kind="stable")
        return _unique(
            self.owner_count,
            owners[order],
            np.concatenate(code)[order],
            names.dictionary,
            values.chosen(order),
        )


def decode_attributes(lists: pa.ListArray, limits: LimitsConfig) -> Attributes:
    """Decode lists of KeyValue messages, one list an owner, within the limits. Raises InvalidRequestError."""
    split = split_key_values(lists.values)
    values = decode_values(split)
    encoded = split.keys.dictionary_encode()
    dictionary = encoded.dictionary
    names = checked(pa.Array.from_buffers(pa.string(), len(dictionary), dictionary.buffers()))
    code = encoded.indices.to_numpy(zero_copy_only=False)
    counts = lengths(lists)
    owner = np.repeat(np.arange(len(lists), dtype=np.int32), counts)
    attributes = _unique(len(lists), owner, code, names, values)
    if too_long(names, limits.attribute_key_bytes_max).size or (counts.size and counts.max() > limits.attributes_max):
        attributes = _with_fewer(attributes, limits)
    size = split.end - split.start
    bytes_max = limits.attribute_value_bytes_max
    if size.size and size.max() > bytes_max // TEXT_GROWTH_MAX:
        suspects = np.flatnonzero(attributes.keep & (size > bytes_max // TEXT_GROWTH_MAX))
        attributes = _with_shorter_values(attributes, suspects, bytes_max)
    return attributes


def _with_fewer(attributes: Attributes, limits: LimitsConfig) -> Attributes:
    """Without keys that are too long, and with so many attributes of an owner as it may have, the first ones."""
    is_long = lengths(attributes.names) > limits.attribute_key_bytes_max
    keep = attributes.keep & ~is_long[attributes.code]
    keep[beyond(attributes.owner, keep, limits.attributes_max)] = False
    gone = attributes.owner[attributes.keep & ~keep]
    if not gone.size:
        return attributes
    attributes.values.texts(np.flatnonzero(attributes.keep & ~keep))  # what is dropped must be valid too
    dropped = np.bincount(gone, minlength=attributes.owner_count)
    return replace(attributes, keep=keep, losses=Losses(dropped=dropped, kinds=Counter(attributes=len(gone))))


def _with_shorter_values(attributes: Attributes, suspects: npt.NDArray[np.intp], bytes_max: int) -> Attributes:
    texts = attributes.values.texts(suspects)
    size = lengths(texts)
    rows = np.flatnonzero(size > bytes_max)
    if not rows.size:
        return attributes
    shorter = pa.array([cut(text, bytes_max) for text in texts.take(pa.array(rows)).to_pylist()], pa.string())
    positions = suspects[rows]
    for position, size_bytes in zip(positions.tolist(), size[rows].tolist(), strict=True):
        name = attributes.names[int(attributes.code[position])].as_py()
        attributes.losses.sizes.setdefault(int(attributes.owner[position]), {})[name] = size_bytes
    attributes.losses.kinds["values"] += len(rows)
    return replace(attributes, values=attributes.values.replaced(positions, shorter))


def _unique(owner_count: int, owner: Int32s, code: Int32s, names: pa.StringArray, values: Values) -> Attributes:
    cell = owner.astype(np.int64) * len(names) + code
    keep = np.ones(len(owner), np.bool_)
    if _has_duplicates(cell, owner_count * len(names)):
        _, last = np.unique(cell[::-1], return_index=True)
        keep[:] = False
        keep[len(cell) - 1 - last] = True
        values.texts(np.flatnonzero(~keep))  # what is overridden must be valid too
    return Attributes(owner_count, owner, code, names, values, keep)


def _has_duplicates(cell: npt.NDArray[np.int64], cell_count: int) -> bool:
    if cell_count > _DENSE_CELLS_MAX:
        return len(np.unique(cell)) < len(cell)
    seen = np.zeros(cell_count, np.bool_)
    seen[cell] = True
    return int(np.count_nonzero(seen)) < len(cell)
