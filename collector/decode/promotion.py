"""Attributes that become columns: the rules of `semantics`, for all spans of a group at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collector.decode import semantics
from collector.decode.anyvalue import Kind
from collector.decode.attributes import Attributes
from collector.decode.labels import LabelColumns, Labels
from collector.decode.origins import Coded, Resource
from collector.decode.semantics import Candidate, Mapping
from collector.decode.wire import Int32s, lengths
from collector.tenants.names import NAME_CHARS_MAX, NAME_PATTERN

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[Any]
# positions of attributes -> (which of them convert, the values of all of them)
Convert = Callable[[Positions], tuple[Mask, npt.NDArray[Any]]]

_NONE = np.empty(0, np.intp)
_TOPIC_KINDS = (semantics.KINDS.index("producer"), semantics.KINDS.index("consumer"))
_DTYPES: dict[pa.DataType, type] = {pa.bool_(): np.bool_, pa.int32(): np.int32, pa.int64(): np.int64}
_HITS = pa.array(list(semantics.HITS))
_HIT_VALUES = np.array(list(semantics.HITS.values()))


class Promotion:
    """Columns of one group of spans; `moved` collects the positions of attributes that filled one."""

    def __init__(
        self, mapping: Mapping, attributes: Attributes, resources: Coded[Resource], columns: LabelColumns
    ) -> None:
        self._columns = columns
        self._mapping = mapping
        self._attributes = attributes
        self._values = attributes.values
        self._resources = resources.items
        self._resource = resources.codes
        self._count = attributes.owner_count
        self._by_key = self._locate()
        self._moved: list[Positions] = []

    @property
    def moved(self) -> Positions:
        """Positions of the attributes that filled a column so far; one may come more than once."""
        return np.concatenate(self._moved) if self._moved else _NONE

    def _locate(self) -> dict[str, Int32s]:
        """For each key that matters and occurs: the position of its attribute on every span, -1 where it has none."""
        attributes, keys = self._attributes, self._mapping.span_keys
        role_by_code = pc.index_in(attributes.names, self._mapping.span_key_array).fill_null(-1).to_numpy()
        present = np.unique(role_by_code[role_by_code >= 0])
        if not present.size:
            return {}
        # One row for each key that matters, and one for all others.
        row_by_role = np.full(len(keys) + 1, len(present), np.intp)
        row_by_role[present] = np.arange(len(present))
        cell = np.take(row_by_role[role_by_code] * self._count, attributes.code)
        cell += attributes.owner
        which = np.arange(len(cell), dtype=np.int32)
        if not attributes.keep.all():
            cell, which = cell[attributes.keep], which[attributes.keep]
        located = np.full((len(present) + 1, self._count), -1, np.int32)
        located.reshape(-1)[cell] = which
        return {keys[role]: located[i] for i, role in enumerate(present.tolist())}

    def text(self, column: str, given: Labels | None = None) -> pa.DictionaryArray:
        """LABEL column; where `given` has a text, that comes before all candidates."""
        default = semantics.DEFAULTS.get(column)
        texts = [resource.columns.get(column, (0, default))[1] for resource in self._resources]
        if given is None:
            rows, positions = self._text_winners(column)
            if not rows.size:
                return self._columns.of(self._resource, texts)
            found = self._values.texts(positions)
            if len(rows) == self._count:
                return Labels.encode(found).to_arrow()
            return Labels.of(self._resource, texts).overlaid(rows, found).to_arrow()
        rows, free = np.flatnonzero(given.codes >= 0), given.codes < 0
        base = Labels.of(self._resource, texts).overlaid(rows, given.dictionary.take(pa.array(given.codes[rows])))
        return self._overlaid(column, base, free).to_arrow()

    def operation(self, names: Labels, component: npt.NDArray[np.uint8]) -> pa.DictionaryArray:
        """LABEL column `operation`: candidates, else "METHOD route" of an HTTP span, else the span's name."""
        base = self._with_routes(names, component)
        texts = [resource.columns.get("operation", (0, None))[1] for resource in self._resources]
        if any(texts):
            by_resource = Labels.of(self._resource, texts)
            rows = np.flatnonzero(by_resource.codes >= 0)
            base = base.overlaid(rows, by_resource.dictionary.take(pa.array(by_resource.codes[rows])))
        return self._overlaid("operation", base, None).to_arrow()

    def _with_routes(self, names: Labels, component: npt.NDArray[np.uint8]) -> Labels:
        method = self._first_text(semantics.HTTP_METHOD_KEYS)
        route = self._first_text(semantics.HTTP_ROUTE_KEYS)
        if method is None or route is None:
            return names
        is_http = component == semantics.COMPONENTS.index("http")
        rows = np.flatnonzero(is_http & (method >= 0) & (route >= 0))
        if not rows.size:
            return names
        texts = pc.binary_join_element_wise(self._values.texts(method[rows]), self._values.texts(route[rows]), " ")
        return names.overlaid(rows, texts)

    def _first_text(self, keys: Iterable[str]) -> Int32s | None:
        """Position of the first of these keys that holds a text, by span; -1 where none does."""
        position = None
        for key in reversed(list(keys)):
            located = self._by_key.get(key)
            if located is None:
                continue
            if position is None:
                position = np.full(self._count, -1, np.int32)
            rows = np.flatnonzero(located >= 0)
            rows = rows[self._as_text(located[rows])[0]]
            position[rows] = located[rows]
        return position

    def _overlaid(self, column: str, base: Labels, free: Mask | None) -> Labels:
        rows, positions = self._text_winners(column, free)
        return base.overlaid(rows, self._values.texts(positions)) if rows.size else base

    def _text_winners(self, column: str, free: Mask | None = None) -> tuple[Positions, Positions]:
        return self._winners(column, self._as_tenant if column == "tenant" else self._as_text, free)

    def _winners(self, column: str, convert: Convert, free: Mask | None = None) -> tuple[Positions, Positions]:
        """Spans whose own attributes fill the column, and the positions of these. They count as moved."""
        candidates = self._present(column)
        if not candidates:
            return _NONE, _NONE
        if len(candidates) == 1 and free is None:
            return self._only_winners(column, candidates[0], convert)
        best = np.full(self._count, -1, np.int32)
        rank = np.zeros(self._count, np.int32)
        for candidate in reversed(candidates):
            located = self._by_key[candidate.key]
            rows = np.flatnonzero(located >= 0 if free is None else (located >= 0) & free)
            rows = rows[convert(located[rows])[0]]
            best[rows], rank[rows] = located[rows], candidate.rank
        rows = np.flatnonzero((best >= 0) & self._before_resource(column, rank))
        self._moved.append(best[rows])
        return rows, best[rows]

    def _only_winners(self, column: str, candidate: Candidate, convert: Convert) -> tuple[Positions, Positions]:
        located = self._by_key[candidate.key]
        rows = np.flatnonzero(located >= 0)
        best = located if len(rows) == self._count else located.take(rows)
        before = self._before_resource(column, candidate.rank)
        good = convert(best)[0] & (before[rows] if isinstance(before, np.ndarray) else before)
        if not good.all():
            rows, best = rows[good], best[good]
        self._moved.append(best)
        return rows, best

    def _present(self, column: str) -> list[Candidate]:
        """Candidates that occur on any span."""
        return [c for c in self._mapping.candidates[column] if c.on_span and c.key in self._by_key]

    def _before_resource(self, column: str, rank: Int32s | int) -> Mask | np.bool_:
        """Where a span's candidate of this rank comes before what its resource gives."""
        last = len(self._mapping.candidates[column])
        ranks = [resource.columns.get(column, (last, None))[0] for resource in self._resources]
        if min(ranks) == last:
            return np.True_
        return rank <= np.array(ranks, np.int32)[self._resource]

    def _as_text(self, at: Positions) -> tuple[Mask, npt.NDArray[Any]]:
        return self._values.kind.take(at) <= Kind.INT, at

    def _as_tenant(self, at: Positions) -> tuple[Mask, npt.NDArray[Any]]:
        good = self._as_text(at)[0]
        rows = np.flatnonzero(good)
        if rows.size:
            texts = Labels.encode(self._values.texts(at[rows]))
            are_names = pc.match_substring_regex(texts.dictionary, NAME_PATTERN).to_numpy(zero_copy_only=False)
            good[rows] = (are_names & (lengths(texts.dictionary) <= NAME_CHARS_MAX))[texts.codes]
        return good, at

    def _as_hit(self, at: Positions) -> tuple[Mask, npt.NDArray[Any]]:
        kind, number = self._values.kind.take(at), self._values.integer.take(at)
        good = ((kind == Kind.BOOL) | (kind == Kind.INT)) & (number >= 0) & (number <= 1)
        hit = number == 1
        strings = np.flatnonzero(kind == Kind.STRING)
        if strings.size:
            found = pc.index_in(pc.ascii_lower(self._values.texts(at[strings])), _HITS).fill_null(-1).to_numpy()
            good[strings] = found >= 0
            hit[strings] = _HIT_VALUES[found]
        return good, hit

    def _as_integer(self, column: str) -> Convert:
        low, high = semantics.INTEGER_RANGES[column]

        def convert(at: Positions) -> tuple[Mask, npt.NDArray[Any]]:
            kind, number = self._values.kind.take(at), self._values.integer.take(at)
            good = kind == Kind.INT
            strings = np.flatnonzero(kind == Kind.STRING)
            if strings.size:
                texts = self._values.texts(at[strings])
                decimal = pc.match_substring_regex(texts, f"^[0-9]{{1,{semantics.DIGITS_MAX}}}$")
                parsed = pc.if_else(decimal, texts, "0").cast(pa.int64())
                good[strings] = decimal.to_numpy(zero_copy_only=False)
                number[strings] = parsed.to_numpy()
            return good & (number >= low) & (number <= high), number

        return convert

    def cache_hit(self) -> pa.BooleanArray:
        """Column `cache_hit`."""
        return self._converted("cache_hit", self._as_hit, pa.bool_())

    def integer(self, column: str, arrow_type: pa.DataType) -> pa.Array:
        """Column `payload_bytes` or `http_status`."""
        return self._converted(column, self._as_integer(column), arrow_type)

    def _converted(self, column: str, convert: Convert, arrow_type: pa.DataType) -> pa.Array:
        rows, positions = self._winners(column, convert)
        from_resource = any(column in resource.columns for resource in self._resources)
        if not rows.size and not from_resource:
            return pa.nulls(self._count, arrow_type)
        dtype = _DTYPES[arrow_type]
        values: npt.NDArray[Any] = np.zeros(self._count, dtype)
        known = np.zeros(self._count, np.bool_)
        if from_resource:
            given = [resource.columns.get(column, (0, 0))[1] for resource in self._resources]
            values = np.array(given, dtype)[self._resource]
            known = np.array([column in resource.columns for resource in self._resources])[self._resource]
        values[rows], known[rows] = convert(positions)[1], True
        bits = np.packbits(values, bitorder="little") if dtype is np.bool_ else values
        buffers = [pa.py_buffer(np.packbits(known, bitorder="little")), pa.py_buffer(bits)]
        return pa.Array.from_buffers(arrow_type, self._count, buffers)

    def component(self, kinds: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """By span: index into semantics.COMPONENTS."""
        code = {name: np.uint8(i) for i, name in enumerate(semantics.COMPONENTS)}
        found = np.full(self._count, code["other"])
        for name, keys in (
            ("http", semantics.HTTP_METHOD_KEYS),
            ("rpc", semantics.RPC_KEYS),
            ("database", semantics.DATABASE_KEYS),
            ("cache", self._mapping.cache_keys),
        ):
            self._mark(found, keys, code[name])
        self._mark_caches(found, code["cache"])
        self._mark(found, semantics.TOPIC_KEYS, code["topic"])
        found[(kinds == _TOPIC_KINDS[0]) | (kinds == _TOPIC_KINDS[1])] = code["topic"]
        return found

    def _mark(self, found: npt.NDArray[np.uint8], keys: Iterable[str], code: np.uint8) -> None:
        for key in keys:
            located = self._by_key.get(key)
            if located is not None:
                found[located >= 0] = code

    def _mark_caches(self, found: npt.NDArray[np.uint8], code: np.uint8) -> None:
        attributes = self._attributes
        named = pc.starts_with(attributes.names, semantics.CACHE_PREFIX).to_numpy(zero_copy_only=False)
        if named.any():
            found[attributes.owner[named[attributes.code] & attributes.keep]] = code
        system = None
        for key in reversed(semantics.DATABASE_KEYS):
            located = self._by_key.get(key)
            if located is not None:
                system = located if system is None else np.where(located >= 0, located, system)
        if system is not None:
            rows = np.flatnonzero(system >= 0)
            texts = Labels.encode(self._values.texts(system[rows]))
            is_cache = pc.is_in(pc.utf8_lower(texts.dictionary), self._mapping.cache_system_array)
            found[rows[is_cache.to_numpy(zero_copy_only=False)[texts.codes]]] = code
