"""JSON text of flat arrays and maps, by far the most frequent of nested values, in one walk over their bytes.

Recognised are those of texts, integers that are not negative, booleans and finite numbers, each part of less than 128
bytes in the one form that encoders in use give it. `anyvalue` takes everything else.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import math
import struct

import orjson

_ARRAY, _MAP = 0x2A, 0x32  # tags of AnyValue's members
_STRING, _BOOL, _INT, _DOUBLE = 0x0A, 0x10, 0x18, 0x21
_ITEM, _KEY, _VALUE = 0x0A, 0x0A, 0x12  # tags of ArrayValue.values and KeyValueList.values, and of KeyValue's members
_VARINT_BYTES_MAX = 9
"""So many bytes hold no negative number."""
_unpack_double = struct.Struct("<d").unpack_from

Scalar = str | int | float


class _NotFlatError(Exception):
    """The value is not one of those that are recognised."""


def flat_text(raw: bytes) -> tuple[str, int] | None:
    """JSON text of the AnyValue of these bytes, and how many fields were walked; None where it is not recognised."""
    try:
        start = _content(raw)
        return _array(raw, start) if raw[0] == _ARRAY else _map(raw, start)
    except (_NotFlatError, IndexError, UnicodeDecodeError):
        return None


def _content(raw: bytes) -> int:
    """Where the content of an array or map starts that fills all of `raw`."""
    size = len(raw)
    if size < 2 or raw[0] not in (_ARRAY, _MAP):
        raise _NotFlatError
    if raw[1] == size - 2 and size < 130:
        return 2
    if raw[1] >= 0x80 and raw[2] < 0x80 and (raw[1] & 0x7F | raw[2] << 7) == size - 3:
        return 3
    raise _NotFlatError


def _array(raw: bytes, position: int) -> tuple[str, int]:
    size, items = len(raw), list[Scalar]()
    while position < size:
        start = position + 2
        position = start + raw[position + 1]
        if raw[start - 2] != _ITEM or raw[start - 1] >= 0x80 or position > size:
            raise _NotFlatError
        items.append(_scalar(raw, start, position))
    return orjson.dumps(items).decode(), 1 + 2 * len(items)


def _map(raw: bytes, position: int) -> tuple[str, int]:
    size, count, items = len(raw), 0, dict[str, Scalar]()
    while position < size:
        start = position + 2
        position = start + raw[position + 1]
        if raw[start - 2] != _ITEM or raw[start - 1] >= 0x80 or position > size or raw[start] != _KEY:
            raise _NotFlatError
        key_end = start + 2 + raw[start + 1]
        if raw[start + 1] >= 0x80 or raw[key_end] != _VALUE or key_end + 2 + raw[key_end + 1] != position:
            raise _NotFlatError
        items[raw[start + 2 : key_end].decode()] = _scalar(raw, key_end + 2, position)
        count += 1
    return orjson.dumps(items).decode(), 1 + 3 * count + len(items)


def _scalar(raw: bytes, start: int, end: int) -> Scalar:
    if end - start < 2:
        raise _NotFlatError
    tag, first = raw[start], raw[start + 1]
    if tag == _STRING and first == end - start - 2 and first < 0x80:
        return raw[start + 2 : end].decode()
    if tag == _INT:
        return first if first < 0x80 and end - start == 2 else _varint(raw, start + 1, end)
    if tag == _BOOL and end - start == 2 and first <= 1:
        return first == 1
    if tag == _DOUBLE and end - start == 9:
        number: float = _unpack_double(raw, start + 1)[0]
        if math.isfinite(number):
            return number
    raise _NotFlatError


def _varint(raw: bytes, start: int, end: int) -> int:
    if end - start > _VARINT_BYTES_MAX or raw[end - 1] >= 0x80:
        raise _NotFlatError
    number = 0
    for shift, byte in enumerate(raw[start : end - 1]):
        if byte < 0x80:
            raise _NotFlatError
        number |= (byte & 0x7F) << 7 * shift
    return number | raw[end - 1] << 7 * (end - 1 - start)
