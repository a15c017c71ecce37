"""Resources and scopes: parsed once each, remembered by their raw bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from collector.config import LimitsConfig
from collector.decode.anyvalue import Budget, Origin, Value, parse_resource, parse_scope
from collector.decode.guards import TRUNCATED, bounded_origin, mark
from collector.decode.wire import Int32s, content, text
from collector.spans import RESOURCE_SCHEMA

Item = TypeVar("Item")
ENTRIES_MAX = 4096
BYTES_MAX = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource: its id, what it gives to columns of spans (rank of the candidate, value), and its row.

    The id is 32 hex digits of BLAKE2b-128 (RFC 7693) over the serialized Resource, keyed with the digest of
    its schema URL where it has one. The same attributes in another order are another resource. `row` holds
    arrays of one element, RESOURCE_SCHEMA but for the last column.
    """

    id: str
    columns: dict[str, tuple[int, Any]]
    row: tuple[pa.Array, ...]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """An instrumentation scope; `extras` are its parts without a column, as attributes for its spans."""

    name: str
    version: str
    extras: tuple[tuple[str, str], ...]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Coded(Generic[Item]):
    """The distinct items of a group, and for each of its messages which of them it is."""

    items: list[Item]
    codes: Int32s


class Origins(Generic[Item]):
    """A bounded cache, least recently used out first, of what a function makes of (raw bytes, schema URL)."""

    def __init__(self, parse: Callable[[bytes, str, Budget], Item]) -> None:
        self._parse = parse
        self._items: OrderedDict[tuple[bytes, str], Item] = OrderedDict()
        self._bytes = 0

    def code(self, raw: pa.BinaryArray, schema_urls: pa.BinaryArray) -> Coded[Item]:
        """Distinct items of these messages. Raises InvalidRequestError."""
        budget = Budget()
        if len(raw) == 1:
            return Coded([self._get(raw[0].as_py(), text(schema_urls)[0].as_py(), budget)], np.zeros(1, np.int32))
        messages = raw.dictionary_encode()
        codes = messages.indices.to_numpy(zero_copy_only=False)
        if not content(schema_urls).size:
            return Coded([self._get(key, "", budget) for key in messages.dictionary.to_pylist()], codes)
        urls = text(schema_urls).dictionary_encode()
        cell = codes.astype(np.int64) * len(urls.dictionary) + urls.indices.to_numpy(zero_copy_only=False)
        _, first, inverse = np.unique(cell, return_index=True, return_inverse=True)
        items = [self._get(raw[i].as_py(), schema_urls[i].as_py().decode(), budget) for i in first.tolist()]
        return Coded(items, inverse.astype(np.int32))

    def _get(self, raw: bytes, schema_url: str, budget: Budget) -> Item:
        key = (raw, schema_url)
        item = self._items.get(key)
        if item is not None:
            self._items.move_to_end(key)
            return item
        item = self._items[key] = self._parse(raw, schema_url, budget)
        self._bytes += len(raw) + len(schema_url)
        while len(self._items) > ENTRIES_MAX or self._bytes > BYTES_MAX:
            (old_raw, old_url), _ = self._items.popitem(last=False)
            self._bytes -= len(old_raw) + len(old_url)
        return item


def make_resource(
    raw: bytes,
    schema_url: str,
    budget: Budget,
    limits: LimitsConfig,
    columns: Callable[[dict[str, Value]], dict[str, tuple[int, Any]]],
) -> Resource:
    """Parse a Resource; `columns` says what its attributes give to columns. Raises InvalidRequestError."""
    key = hashlib.blake2b(schema_url.encode()).digest() if schema_url else b""
    digest = hashlib.blake2b(raw, digest_size=16, key=key).hexdigest()
    origin = bounded_origin(sent := parse_resource(raw, budget), limits)
    attributes = {key: value.text for key, value in origin.attributes.items()} | _mark(origin)
    values = (digest, schema_url or None, list(attributes.items()), origin.dropped_attributes_count)
    row = tuple(pa.array([value], field.type) for value, field in zip(values, RESOURCE_SCHEMA, strict=False))
    return Resource(digest, columns(origin.attributes), row, is_cut=_is_cut(sent, origin))


def make_scope(raw: bytes, schema_url: str, budget: Budget, limits: LimitsConfig) -> Scope:
    """Parse an InstrumentationScope. Raises InvalidRequestError."""
    origin = bounded_origin(sent := parse_scope(raw, budget), limits)
    texts = {key: value.text for key, value in origin.attributes.items()} | _mark(origin)
    extras = [(f"otel.scope.{key}", text) for key, text in texts.items()]
    if origin.dropped_attributes_count:
        extras.append(("otel.scope.dropped_attributes_count", str(origin.dropped_attributes_count)))
    if schema_url:
        extras.append(("otel.scope.schema_url", schema_url))
    return Scope(origin.name, origin.version, tuple(extras), is_cut=_is_cut(sent, origin))


def _mark(origin: Origin) -> dict[str, str]:
    return {TRUNCATED: mark(origin.cut_sizes)} if origin.cut_sizes else {}


def _is_cut(sent: Origin, kept: Origin) -> bool:
    return bool(kept.cut_sizes) or len(kept.attributes) < len(sent.attributes)
