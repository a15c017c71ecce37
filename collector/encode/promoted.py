"""Attributes for columns that would not come back by themselves when a span is decoded again.

A column that the resource gives, or the span's name, needs none, unless the attribute tells the component. Any other is
written as an attribute under one of the candidates of its mapping, on the span: a standard name that fits the span's
component, or where another candidate stands on the span or its resource already, the first that is tried before that.

What the lake does not tell, it cannot bring back: an attribute that was no text, integer or boolean, and so filled no
column, is a text now and may fill one; and where a request's header named the tenant and the span itself another one,
that other one is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collector.decode import semantics
from collector.decode.anyvalue import Kind, Value
from collector.decode.semantics import Candidate, ColumnValue, Mapping

# By component; "" for those that are not listed. A component whose attributes all moved is known by these again.
PREFERRED: dict[str, dict[str, str]] = {
    "operation": {"topic": "messaging.operation.name", "cache": "cache.operation", "rpc": "rpc.method"},
    "destination": {"topic": "messaging.destination.name", "cache": "cache.name", "": "db.collection.name"},
    "cache_hit": {"": "cache.hit"},
    "payload_bytes": {"topic": "messaging.message.body.size", "cache": "cache.item.size", "": "payload.bytes"},
}

_NOTHING = np.empty(0, np.int64), np.empty(0, np.bool_)


@dataclass(frozen=True)
class Restored:
    """Attributes of some spans: rows ascending, a key each, and the values, as the column has them."""

    rows: npt.NDArray[np.int64]
    keys: pa.StringArray
    values: pa.Array


def restored(spans: pa.Table, resources: dict[str, dict[str, str]], mapping: Mapping) -> list[Restored]:
    """What to add to the attributes of spans (SPAN_SCHEMA, one chunk a column), a part for each column that needs it.

    `resources` has the attributes of each resource by `resource_id`.
    """
    given = _Given(spans, resources, mapping)
    components = spans.column("component").combine_chunks().cast(pa.string())
    parts = []
    for column in semantics.COLUMNS:
        candidates = [c for c in mapping.candidates[column] if c.on_span]
        rows, is_given = given.to_tell(column) if candidates else _NOTHING
        if not rows.size:
            continue
        values = spans.column(column).combine_chunks()
        values = values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values
        rows, keys = given.keys(column, rows, is_given, components.take(pa.array(rows)))
        parts.append(Restored(rows, keys, values.take(pa.array(rows))))
    return parts


class _Given:
    """What spans would have in their columns without any attribute that was moved there."""

    def __init__(self, spans: pa.Table, resources: dict[str, dict[str, str]], mapping: Mapping) -> None:
        self._spans = spans
        self._mapping = mapping
        ids = spans.column("resource_id").combine_chunks().cast(pa.string()).dictionary_encode()
        self._resource = ids.indices
        texts = [resources.get(name, {}) for name in ids.dictionary.to_pylist()]
        self._columns = [
            mapping.resource_columns({key: Value(_kind(text), text) for key, text in found.items()}) for found in texts
        ]
        maps = spans.column("attributes").combine_chunks()
        self._keys = maps.keys
        counts = np.diff(maps.offsets.to_numpy())
        self._owner = np.repeat(np.arange(len(maps)), counts)
        self._values = maps.items

    def to_tell(self, column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The rows whose value, not null, may need an attribute, and which of them are given the same value anyway."""
        actual = self._spans.column(column).combine_chunks()
        if pa.types.is_dictionary(actual.type):
            actual = actual.cast(pa.string())
        if actual.null_count == len(actual):
            return _NOTHING
        default = semantics.DEFAULTS.get(column)
        by_resource: list[ColumnValue | None] = [found.get(column, (0, default))[1] for found in self._columns]
        given = pa.array(by_resource, actual.type).take(self._resource)
        if column == "operation":
            given = pc.coalesce(given, self._routes(), self._spans.column("name").combine_chunks().cast(pa.string()))
        same = pc.fill_null(pc.equal(actual, given), False)
        told = actual.is_valid()
        if pa.types.is_string(actual.type):  # an empty text never came from an attribute
            told = pc.and_(told, pc.not_equal(actual, "").fill_null(False))
        different = pc.and_(told, pc.invert(same))
        if column in PREFERRED:
            different = pc.or_(different, pc.and_(told, self._is_known_by_attributes()))
        rows = np.flatnonzero(different.to_numpy(zero_copy_only=False))
        return rows, same.to_numpy(zero_copy_only=False)[rows]

    def _is_known_by_attributes(self) -> pa.BooleanArray:
        """Which spans may be of their component by nothing but an attribute that a column took, for all it repeats."""
        components = self._spans.column("component").combine_chunks().cast(pa.string())
        return pc.is_in(components, pa.array(["cache", "topic"]))

    def _routes(self) -> pa.StringArray:
        """`METHOD route` of HTTP spans that have both, as the decoder makes it."""
        is_http = pc.equal(self._spans.column("component").combine_chunks().cast(pa.string()), "http")
        method, route = self._first(semantics.HTTP_METHOD_KEYS), self._first(semantics.HTTP_ROUTE_KEYS)
        return pc.if_else(is_http, pc.binary_join_element_wise(method, route, " "), pa.scalar(None, pa.string()))

    def _first(self, keys: tuple[str, ...]) -> pa.StringArray:
        """The first of these attributes that is not empty, by span; null where there is none."""
        position = np.full(self._spans.num_rows, -1)
        filled = pc.greater(pc.binary_length(self._values), 0).fill_null(False)
        for key in reversed(keys):
            found = np.flatnonzero(pc.and_(pc.equal(self._keys, key), filled).to_numpy(zero_copy_only=False))
            position[self._owner[found]] = found
        return self._values.take(pa.array(position, mask=position < 0))

    def keys(
        self,
        column: str,
        rows: npt.NDArray[np.int64],
        is_given: npt.NDArray[np.bool_],
        components: pa.StringArray,
    ) -> tuple[npt.NDArray[np.int64], pa.StringArray]:
        """Of these rows those that need a key, and the key under which the column's value comes back.

        What the resource gives wins over a span's candidate that is tried after it: no such one was moved.
        """
        candidates = [c for c in self._mapping.candidates[column] if c.on_span]
        present, filled = (matrix[rows] for matrix in self._present([c.key for c in candidates]))
        before = self._before_resource(column, candidates)[rows]
        first_filled = np.where(filled.any(axis=1), filled.argmax(axis=1), len(candidates))
        free = before & ~present
        first_free = free.argmax(axis=1)
        position = {c.key: i for i, c in enumerate(candidates)}
        preferences = PREFERRED.get(column, {})
        encoded = components.dictionary_encode()
        wanted = np.array(
            [position.get(preferences.get(name, preferences.get("", "")), 0) for name in encoded.dictionary.to_pylist()]
        )[encoded.indices.to_numpy()]
        fits = (wanted < first_filled) & free[np.arange(len(rows)), wanted]
        chosen = np.where(fits, wanted, first_free)
        needed = fits | (free.any(axis=1) & ~is_given)
        return rows[needed], pa.array([c.key for c in candidates]).take(pa.array(chosen[needed]))

    def _before_resource(self, column: str, candidates: list[Candidate]) -> npt.NDArray[np.bool_]:
        """Which candidates come before what the resource gives: a matrix of spans by candidates."""
        last = len(self._mapping.candidates[column])
        ranks = np.array([found.get(column, (last, None))[0] for found in self._columns])
        before: npt.NDArray[np.bool_] = (
            np.array([c.rank for c in candidates]) <= ranks[self._resource.to_numpy()][:, None]
        )
        return before

    def _present(self, keys: list[str]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which spans have which of these attributes, and which of them hold a text: matrices of spans by keys."""
        present = np.zeros((self._spans.num_rows, len(keys)), np.bool_)
        which = pc.index_in(self._keys, pa.array(keys)).fill_null(-1).to_numpy(zero_copy_only=False)
        at = np.flatnonzero(which >= 0)
        present[self._owner[at], which[at]] = True
        filled = np.zeros_like(present)
        has_text = pc.greater(pc.binary_length(self._values), 0).fill_null(False).to_numpy(zero_copy_only=False)
        filled[self._owner[at], which[at]] = has_text[at]
        return present, filled


def _kind(text: str) -> Kind:
    return Kind.STRING if text else Kind.EMPTY_STRING
