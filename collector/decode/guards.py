"""Bounds on what single spans carry: what is beyond is cut or dropped, marked where it was, and counted.

A text that is cut keeps as many whole characters as fit. The attribute `spanlake.truncated` of its span, event, link or
resource then tells what was cut and how many bytes it had, as a JSON object such as {"db.query.text":40000}; a name or
a message has an `@` before it there, as "@name". Attributes, events and links that are dropped count in
`otel.dropped_attributes_count`, `otel.dropped_events_count` and `otel.dropped_links_count`, as those do that an SDK
dropped. All of this costs a look at the largest size of a column; only what is too large is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from collector.config import LimitsConfig
from collector.decode.anyvalue import Origin
from collector.decode.labels import Labels
from collector.decode.wire import Int32s, lengths, offsets

TRUNCATED = "spanlake.truncated"
TEXT_GROWTH_MAX = 6
"""The text of a value has at most so many times the bytes of its message: a control character in JSON."""
UINT32_MAX = (1 << 32) - 1

Mask = npt.NDArray[np.bool_]


def cut(text: str, bytes_max: int) -> str:
    """As many whole characters from its start as fit into `bytes_max` bytes of UTF-8."""
    return text.encode()[:bytes_max].decode(errors="ignore")


@dataclass(slots=True)
class Losses:
    """What owners (spans, events or links) lost: `sizes` of texts before they were cut, by owner and name; the
    number of attributes that were dropped, by owner, None where none was; and how much of each kind.
    """

    sizes: dict[int, dict[str, int]] = field(default_factory=dict)
    dropped: npt.NDArray[np.int64] | None = None
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, name: str, owners: npt.NDArray[Any], sizes_bytes: npt.NDArray[Any]) -> None:
        """Note that a text of these owners was cut, which had these sizes."""
        self.kinds[kind] += len(owners)
        for owner, size_bytes in zip(owners.tolist(), sizes_bytes.tolist(), strict=True):
            self.sizes.setdefault(owner, {})[name] = size_bytes

    def marks(self) -> tuple[npt.NDArray[np.int32], pa.StringArray]:
        """Owners of what was cut, ascending, and the text of TRUNCATED for each."""
        owners = sorted(self.sizes)
        texts = [mark(self.sizes[owner]) for owner in owners]
        return np.array(owners, np.int32), pa.array(texts, pa.string())

    def merged(self, other: Losses) -> Losses:
        """The losses of both."""
        sizes = dict(self.sizes)
        for owner, found in other.sizes.items():
            sizes[owner] = sizes.get(owner, {}) | found
        dropped = self.dropped if other.dropped is None else other.dropped
        return Losses(sizes, dropped, self.kinds + other.kinds)


def plus_dropped(sent: npt.NDArray[np.uint32], dropped: npt.NDArray[np.int64] | None) -> npt.NDArray[np.uint32]:
    """By owner: how many of something the client dropped, and how many were dropped here."""
    return sent if dropped is None else np.minimum(sent + dropped, UINT32_MAX).astype(np.uint32)


def mark(sizes_bytes: Mapping[str, int]) -> str:
    """The text of TRUNCATED."""
    return orjson.dumps(dict(sizes_bytes)).decode()


def too_long(strings: pa.Array, bytes_max: int) -> npt.NDArray[np.intp]:
    """Positions of the elements of a string or binary array that have more bytes."""
    size = lengths(strings)
    return np.flatnonzero(size > bytes_max) if size.size and size.max() > bytes_max else np.empty(0, np.intp)


def cut_texts(strings: pa.StringArray, bytes_max: int, kind: str, losses: Losses) -> pa.StringArray:
    """The same texts, those cut that are too long; the losses are told of them under `kind` and `@kind`."""
    rows = too_long(strings, bytes_max)
    if not rows.size:
        return strings
    losses.add(kind, f"@{kind}", rows, lengths(strings)[rows])
    mask = np.zeros(len(strings), np.bool_)
    mask[rows] = True
    shorter = [cut(text, bytes_max) for text in strings.take(pa.array(rows)).to_pylist()]
    return pc.replace_with_mask(strings, pa.array(mask), pa.array(shorter, pa.string()))


def cut_labels(labels: Labels, bytes_max: int, kind: str, losses: Losses) -> Labels:
    """As cut_texts, for texts in a dictionary, none of them NULL."""
    codes = too_long(labels.dictionary, bytes_max)
    if not codes.size:
        return labels
    size = lengths(labels.dictionary)
    rows = np.flatnonzero(size[labels.codes] > bytes_max)
    losses.add(kind, f"@{kind}", rows, size[labels.codes[rows]])
    return Labels.of(labels.codes, [cut(text, bytes_max) for text in labels.dictionary.to_pylist()])


def first_of_each(lists: pa.ListArray, count_max: int) -> tuple[pa.ListArray, npt.NDArray[np.int64] | None]:
    """The lists with at most their first `count_max` items, and how many were dropped of each; None for none."""
    count = lengths(lists)
    if not count.size or count.max() <= count_max:
        return lists, None
    place = np.arange(len(lists.values)) - np.repeat(offsets(lists)[:-1], count)
    bounds = np.zeros(len(lists) + 1, np.int32)
    np.cumsum(np.minimum(count, count_max), out=bounds[1:])
    items = lists.values.filter(pa.array(place < count_max))
    return pa.ListArray.from_arrays(pa.array(bounds), items), np.maximum(count.astype(np.int64) - count_max, 0)


def beyond(owner: Int32s, keep: Mask, count_max: int) -> npt.NDArray[np.intp]:
    """Positions of what is kept, but for the first `count_max` of each owner; `owner` ascends."""
    kept = np.flatnonzero(keep)
    of = owner[kept]
    excess: npt.NDArray[np.intp] = kept[np.arange(len(kept)) - np.searchsorted(of, of) >= count_max]
    return excess


def bounded_origin(origin: Origin, limits: LimitsConfig) -> Origin:
    """A resource or scope within the limits, marked with TRUNCATED where a text was cut."""
    sizes: dict[str, int] = {}

    def within(name: str, text: str, bytes_max: int) -> str:
        size_bytes = len(text.encode())
        if size_bytes <= bytes_max:
            return text
        sizes[name] = size_bytes
        return cut(text, bytes_max)

    short = {k: v for k, v in origin.attributes.items() if len(k.encode()) <= limits.attribute_key_bytes_max}
    kept = dict(list(short.items())[: limits.attributes_max])
    attributes = {k: replace(v, text=within(k, v.text, limits.attribute_value_bytes_max)) for k, v in kept.items()}
    dropped = origin.dropped_attributes_count + len(origin.attributes) - len(kept)
    return Origin(
        attributes,
        min(dropped, UINT32_MAX),
        within("@name", origin.name, limits.name_bytes_max),
        within("@version", origin.version, limits.name_bytes_max),
        sizes,
    )
