"""Attribute values, all of a column at once: kind, text form, integer.

Text forms: strings as they are; bool `true` / `false`; int decimal; double the shortest text that reads back as
the same number (`NaN`, `Infinity`, `-Infinity`); bytes base64; arrays and maps compact JSON (bytes in them
base64, NaN and infinities strings, nesting cut to `"..."` below 32 levels); an unset value is the empty text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from collector.decode.anyvalue import Budget, Kind, Value, parse_value
from collector.decode.wire import Bytes, Int32s, KeyValues, checked, strip_string_header

Positions = npt.NDArray[Any]

_STRING, _BOOL, _INT, _DOUBLE = 0x0A, 0x10, 0x18, 0x21  # tags of AnyValue's members
_CONSTANTS = pa.array(["", "false", "true", "NaN", "Infinity", "-Infinity"])
_COMMA = ord(",")
_VARINT_BYTES_MAX = 10
_DOUBLE_BYTES = 9  # with its tag


@dataclass(frozen=True, slots=True)
class Values:
    """Values by position: `kind` (of Kind), `integer` (of INT and BOOL, else 0), text `pool[text_index]`.

    `pool` is not checked to be UTF-8; `texts` does that for those it is asked for.
    """

    kind: npt.NDArray[np.uint8]
    integer: npt.NDArray[np.int64]
    text_index: Int32s
    pool: pa.StringArray

    def texts(self, positions: npt.NDArray[Any]) -> pa.StringArray:
        """Texts at these positions. Raises InvalidRequestError where one is not UTF-8."""
        return checked(self.pool.take(pa.array(self.text_index.take(positions))))

    def chosen(self, positions: npt.NDArray[Any]) -> Values:
        """The values at these positions."""
        return Values(
            self.kind.take(positions), self.integer.take(positions), self.text_index.take(positions), self.pool
        )

    def replaced(self, positions: npt.NDArray[Any], texts: pa.StringArray) -> Values:
        """The values with other texts at these positions."""
        text_index = self.text_index.copy()
        text_index[positions] = np.arange(len(self.pool), len(self.pool) + len(texts), dtype=np.int32)
        return Values(self.kind, self.integer, text_index, pa.concat_arrays([self.pool, texts]))

    def appended(self, texts: pa.StringArray) -> Values:
        """These values and after them the given texts, as strings."""
        count = len(texts)
        index = np.arange(len(self.pool), len(self.pool) + count, dtype=np.int32)
        return Values(
            kind=np.concatenate([self.kind, np.full(count, Kind.STRING, np.uint8)]),
            integer=np.concatenate([self.integer, np.zeros(count, np.int64)]),
            text_index=np.concatenate([self.text_index, index]),
            pool=pa.concat_arrays([self.pool, texts]),
        )


class _Builder:
    """Collects texts of several origins in one pool; `rest` are positions no fast path has recognised."""

    def __init__(self, count: int) -> None:
        self.kind = np.full(count, Kind.OTHER, np.uint8)
        self.integer = np.zeros(count, np.int64)
        self.text_index = np.zeros(count, np.int32)
        self.chunks: list[pa.Array] = [_CONSTANTS]
        self.size = len(_CONSTANTS)

    def add(self, chunk: pa.Array) -> int:
        """Position in the pool of the chunk's first text."""
        first = self.size
        self.chunks.append(chunk)
        self.size += len(chunk)
        return first

    def values(self) -> Values:
        pool = pa.concat_arrays(self.chunks) if len(self.chunks) > 1 else self.chunks[0]
        return Values(self.kind, self.integer, self.text_index, pool)


def decode_values(source: KeyValues) -> Values:
    """Decode the AnyValue messages of `source`. Raises InvalidRequestError."""
    data, start, end = source.data, source.start, source.end
    built = _Builder(len(start))
    size = end - start
    tag = np.take(data, start, mode="clip") if data.size else np.zeros(len(start), np.uint8)
    tag[size == 0] = 0
    recognised, rest = 0, []
    for known, decode in _BY_TAG.items():
        which = np.flatnonzero(tag == known)
        if which.size:
            recognised += which.size
            rest.append(decode(built, source, which))
    if recognised < len(tag):
        rest.append(np.flatnonzero(_IS_RARE[tag] & (size > 0)))
    remaining = np.concatenate(rest) if rest else built.text_index
    if remaining.size:
        _others(built, source, remaining)
    return built.values()


def are_simple(source: KeyValues) -> bool:
    """Whether each value is a string, bool, int or double as encoders write it; such values always decode.

    Raises InvalidRequestError where a string is not UTF-8.
    """
    data, start, end = source.data, source.start, source.end
    if not data.size or not (start < end).all():
        return False
    tag = np.take(data, start, mode="clip")
    recognised = 0
    for known, are_plain in _ARE_PLAIN.items():
        which = np.flatnonzero(tag == known)
        if which.size:
            recognised += which.size
            if not are_plain(source, start.take(which), end.take(which)):
                return False
    return recognised == len(tag)


def _strings(built: _Builder, source: KeyValues, which: Positions) -> Positions:
    start, end = source.start.take(which), source.end.take(which)
    content, plain = strip_string_header(source.data, start, end)
    rest = which[:0]
    if not plain.all():
        rest, which, content, end = which[~plain], which[plain], content[plain], end[plain]
    if which.size:
        pieces = _pieces(source, content, end)
        built.kind[which] = np.where(content < end, np.uint8(Kind.STRING), np.uint8(Kind.EMPTY_STRING))
        built.text_index[which] = _every_other(built.add(pieces), len(which))
    return rest


def _pieces(source: KeyValues, start: Int32s, end: Int32s) -> pa.StringArray:
    """Every other one is a string; those between are what separates them in the request."""
    bounds = np.empty(2 * len(start), np.int32)
    bounds[0::2], bounds[1::2] = start, end
    return pa.Array.from_buffers(pa.string(), len(bounds) - 1, [None, pa.py_buffer(bounds), source.buffer])


def _are_strings(source: KeyValues, start: Int32s, end: Int32s) -> bool:
    content, plain = strip_string_header(source.data, start, end)
    if not plain.all():
        return False
    checked(_pieces(source, content, end).take(pa.array(_every_other(0, len(content)))))
    return True


def _every_other(first: int, count: int) -> Int32s:
    return np.arange(first, first + 2 * count, 2, dtype=np.int32)


def _bools(built: _Builder, source: KeyValues, which: Positions) -> Positions:
    flag, plain = _flags(source, source.start.take(which), source.end.take(which))
    good = which[plain]
    built.kind[good] = Kind.BOOL
    built.integer[good] = flag[plain]
    built.text_index[good] = flag[plain] + np.int32(1)
    rest: Positions = which[~plain]
    return rest


def _flags(source: KeyValues, start: Int32s, end: Int32s) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """The byte of each bool, and whether it is one."""
    flag = np.take(source.data, start + 1, mode="clip")
    return flag, (end - start == 2) & (flag <= 1)


def _ints(built: _Builder, source: KeyValues, which: Positions) -> Positions:
    number, plain = _varints(source, source.start.take(which), source.end.take(which))
    rest = which[:0]
    if not plain.all():
        rest, which, number = which[~plain], which[plain], number[plain]
    if which.size:
        built.kind[which] = Kind.INT
        built.integer[which] = number
        built.text_index[which] = _every_other(built.add(_number_texts(number)), len(which))
    return rest


def _varints(source: KeyValues, start: Int32s, end: Int32s) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Numbers whose varints fill the values behind their tags, and which really do."""
    data, start = source.data, start + 1
    size = end - start
    number = np.zeros(len(start), np.uint64)
    plain = (size >= 1) & (size <= _VARINT_BYTES_MAX)
    longest = int(size[plain].max()) if plain.any() else 0
    active = np.flatnonzero(plain)
    for i in range(longest):
        byte = np.take(data, start[active] + i, mode="clip")
        last = size[active] == i + 1
        plain[active[(byte < 0x80) != last]] = False
        number[active] |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * i)
        active = active[~last]
    return number.view(np.int64), plain


def _doubles(built: _Builder, source: KeyValues, which: Positions) -> Positions:
    start = source.start.take(which)
    plain = source.end.take(which) - start == _DOUBLE_BYTES
    good, start = which[plain], start[plain]
    if good.size:
        raw = np.take(source.data, start[:, None] + np.arange(1, 9, dtype=np.int32), mode="clip")
        number = raw.view("<f8").ravel()
        built.kind[good] = Kind.DOUBLE
        built.text_index[good] = _every_other(built.add(_number_texts(number)), len(good))
        built.text_index[good[np.isnan(number)]] = 3
        built.text_index[good[number == np.inf]] = 4
        built.text_index[good[number == -np.inf]] = 5
    rest: Positions = which[~plain]
    return rest


_BY_TAG = {_STRING: _strings, _BOOL: _bools, _INT: _ints, _DOUBLE: _doubles}
_ARE_PLAIN: dict[int, Callable[[KeyValues, Int32s, Int32s], bool]] = {
    _STRING: _are_strings,
    _BOOL: lambda source, start, end: bool(_flags(source, start, end)[1].all()),
    _INT: lambda source, start, end: bool(_varints(source, start, end)[1].all()),
    _DOUBLE: lambda _, start, end: bool((end - start == _DOUBLE_BYTES).all()),
}
_IS_RARE = np.array([tag not in _BY_TAG for tag in range(256)])


def _number_texts(numbers: npt.NDArray[Any]) -> pa.StringArray:
    """Decimal texts of the numbers at every other position, JSON's commas between them."""
    written = orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)
    commas = np.flatnonzero(np.frombuffer(written, np.uint8) == _COMMA)
    bounds = np.empty(2 * len(numbers), np.int32)
    bounds[0], bounds[2::2] = 1, commas + 1
    bounds[1:-1:2], bounds[-1] = commas, len(written) - 1
    return pa.Array.from_buffers(pa.string(), len(bounds) - 1, [None, pa.py_buffer(bounds), pa.py_buffer(written)])


def _others(built: _Builder, source: KeyValues, which: Positions) -> None:
    """Rare shapes (nested values, bytes, unusual encodings), each distinct one once, in Python."""
    raw = memoryview(source.buffer)
    bounds = zip(source.start[which].tolist(), source.end[which].tolist(), strict=True)
    slots: dict[bytes, int] = {}
    slot = np.array([slots.setdefault(bytes(raw[start:end]), len(slots)) for start, end in bounds], np.int32)
    budget = Budget()
    found: list[Value] = [parse_value(key, budget) for key in slots]
    first = built.add(pa.array([value.text for value in found], pa.string()))
    built.kind[which] = np.array([value.kind for value in found], np.uint8)[slot]
    built.integer[which] = np.array([value.integer for value in found], np.int64)[slot]
    built.text_index[which] = slot + np.int32(first)
