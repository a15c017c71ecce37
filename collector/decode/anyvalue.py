"""Single messages in Python: resources, scopes, and attribute values of rare shapes.

Walks the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) instead of building messages,
so that a value nested beyond any parser's limit costs nothing but itself.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import orjson

from collector.decode.flat_values import flat_text
from collector.errors import InvalidRequestError

DEPTH_MAX = 32
CUT = "..."
FIELDS_MAX = 400_000
_GROUPS_MAX = 100


class Kind(IntEnum):
    """What an AnyValue holds. The first three kinds can fill a text column."""

    STRING = 0
    BOOL = 1
    INT = 2
    EMPTY_STRING = 3
    DOUBLE = 4
    OTHER = 5


@dataclass(frozen=True, slots=True)
class Value:
    """An AnyValue: its kind, its text form, and its integer (of INT, and 0 or 1 of BOOL)."""

    kind: Kind
    text: str
    integer: int = 0


class Budget:
    """How many more fields are walked: each takes microseconds in Python, and an empty one two bytes of a request."""

    __slots__ = ("left",)

    def __init__(self, fields_max: int = FIELDS_MAX) -> None:
        self.left = fields_max

    def take(self, fields: int = 1) -> None:
        """Count fields. Raises InvalidRequestError where it is one too many."""
        self.left -= fields
        if self.left < 0:
            raise InvalidRequestError(
                f"nested values and attributes of resources and scopes: more than {FIELDS_MAX} elements in one "
                "request; send smaller batches"
            )


def _invalid(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"not an ExportTraceServiceRequest: {what}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while shift < 70:
        if position >= len(data):
            raise _invalid("a number is cut off")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    raise _invalid("a number is longer than 10 bytes")


def _fields(data: bytes, budget: Budget) -> Iterator[tuple[int, int, int | bytes]]:
    """Yield (field number, wire type, value) of a message; numbers for wire types 0, 1, 5, bytes for 2."""
    position, groups = 0, list[int]()
    while position < len(data):
        budget.take()
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise _invalid(f"field number {number}")
        value: int | bytes = 0
        if wire == 0:
            value, position = _varint(data, position)
        elif wire in (1, 2, 5):
            size = 8 if wire == 1 else 4
            if wire == 2:
                size, position = _varint(data, position)
            if position + size > len(data):
                raise _invalid("a field is cut off")
            value = data[position : position + size]
            position += size
            if wire != 2:
                value = int.from_bytes(value, "little")
        elif wire == 3 and len(groups) < _GROUPS_MAX:
            groups.append(number)
        elif wire == 4 and groups and groups[-1] == number:
            groups.pop()
            continue
        else:
            raise _invalid(f"wire type {wire} in field {number}")
        if not groups:
            yield number, wire, value
    if groups:
        raise _invalid("a group is not closed")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"a string is not UTF-8 ({error})") from error


def parse_value(raw: bytes, budget: Budget) -> Value:
    """The AnyValue of these bytes. Raises InvalidRequestError."""
    if flat := flat_text(raw):
        budget.take(flat[1])
        return Value(Kind.OTHER, flat[0])
    number, content = _chosen(raw, budget)
    if number == 1:
        text = _text(_bytes(content))
        return Value(Kind.STRING if text else Kind.EMPTY_STRING, text)
    if number == 2:
        return Value(Kind.BOOL, "true" if content else "false", int(bool(content)))
    if number == 3:
        integer = _signed(content)
        return Value(Kind.INT, str(integer), integer)
    if number == 0:
        return Value(Kind.OTHER, "")
    found = _json(number, content, 1, budget)
    text = found if isinstance(found, str) else orjson.dumps(found).decode()
    return Value(Kind.DOUBLE if number == 4 else Kind.OTHER, text)


_WIRE_TYPES = {1: 2, 2: 0, 3: 0, 4: 1, 5: 2, 6: 2, 7: 2}


def _chosen(raw: bytes, budget: Budget) -> tuple[int, int | bytes]:
    """Number and content of the member that is set, (0, 0) where none is: the last one wins, messages merge."""
    chosen, parts = 0, list[int | bytes]()
    for number, wire, value in _fields(raw, budget):
        if _WIRE_TYPES.get(number) != wire:
            continue
        if number == 1:
            _text(_bytes(value))
        if number not in (5, 6) or number != chosen:
            parts.clear()
        chosen = number
        parts.append(value)
    if chosen in (5, 6):
        return chosen, b"".join(_bytes(part) for part in parts)
    return (chosen, parts[-1]) if chosen else (0, 0)


def _bytes(content: int | bytes) -> bytes:
    if not isinstance(content, bytes):
        raise TypeError(f"expected the content of a length-delimited field, got {content!r}")
    return content


def _signed(content: int | bytes) -> int:
    number = int(content) if isinstance(content, int) else 0
    return number - (1 << 64) if number >> 63 else number


def _json(number: int, content: int | bytes, depth: int, budget: Budget) -> object:
    """The chosen member of an AnyValue as orjson takes it."""
    if isinstance(content, int):
        plain = {0: lambda: None, 2: lambda: bool(content), 3: lambda: _signed(content)}
        return plain.get(number, lambda: _double(content))()
    if number == 1:
        return _text(content)
    if number == 7:
        return base64.b64encode(content).decode()
    if depth > DEPTH_MAX:
        return CUT
    items = [_bytes(value) for field, wire, value in _fields(content, budget) if (field, wire) == (1, 2)]
    if number == 5:
        return [_json(*_chosen(item, budget), depth + 1, budget) for item in items]
    # Of a key that comes twice the last value counts, as JSON has it.
    last = dict(_key_value(item, budget) for item in items)
    return {key: _json(*_chosen(raw, budget), depth + 1, budget) for key, raw in last.items()}


def _double(bits: int) -> float | str:
    number: float = struct.unpack("<d", bits.to_bytes(8, "little"))[0]
    if number != number:  # noqa: PLR0124 - NaN is the number unequal to itself
        return "NaN"
    if number in (float("inf"), float("-inf")):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _key_value(raw: bytes, budget: Budget) -> tuple[str, bytes]:
    """Key and serialized AnyValue of a KeyValue; a value sent in parts is merged, as protobuf says."""
    key, parts = "", list[bytes]()
    for number, wire, value in _fields(raw, budget):
        if (number, wire) == (1, 2):
            key = _text(_bytes(value))
        elif (number, wire) == (2, 2):
            parts.append(_bytes(value))
    return key, b"".join(parts)


@dataclass(frozen=True, slots=True)
class Origin:
    """A Resource or InstrumentationScope: attributes by key (the last of a key wins), and its few fields.

    `cut_sizes` has the bytes of the texts that were cut, before they were.
    """

    attributes: dict[str, Value]
    dropped_attributes_count: int = 0
    name: str = ""
    version: str = ""
    cut_sizes: dict[str, int] = field(default_factory=dict)


def parse_resource(raw: bytes, budget: Budget) -> Origin:
    """The Resource of these bytes. Raises InvalidRequestError."""
    attributes: dict[str, Value] = {}
    dropped = 0
    for number, wire, value in _fields(raw, budget):
        if (number, wire) == (1, 2):
            _add(attributes, _bytes(value), budget)
        elif (number, wire) == (2, 0) and isinstance(value, int):
            dropped = value & 0xFFFF_FFFF
    return Origin(attributes, dropped)


def parse_scope(raw: bytes, budget: Budget) -> Origin:
    """The InstrumentationScope of these bytes. Raises InvalidRequestError."""
    attributes: dict[str, Value] = {}
    dropped = 0
    texts = {1: "", 2: ""}
    for number, wire, value in _fields(raw, budget):
        if number in texts and wire == 2:
            texts[number] = _text(_bytes(value))
        elif (number, wire) == (3, 2):
            _add(attributes, _bytes(value), budget)
        elif (number, wire) == (4, 0) and isinstance(value, int):
            dropped = value & 0xFFFF_FFFF
    return Origin(attributes, dropped, texts[1], texts[2])


def _add(attributes: dict[str, Value], raw: bytes, budget: Budget) -> None:
    key, serialized = _key_value(raw, budget)
    # The last of a key stands where it was sent, not where the first one was.
    attributes.pop(key, None)
    attributes[key] = parse_value(serialized, budget)
