"""The usual spans of an OTLP/JSON request, straight to protobuf's wire format, without a message object for each.

Usual is a span without events and links whose fields have the type that the mapping gives first (numbers of 64 bits as
text, ids as hex of the right length) and whose attributes are plain (see json_attributes.py).
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from collector.decode.json_attributes import LENGTH_MAX, LENGTHS, plain_attributes
from collector.varint import varint

Write = Callable[[Any], bytes | None]

_DIGITS_MAX = 19
"""So many decimal digits are always a uint64."""
_UINT32_MAX = (1 << 32) - 1
_ENUM_MAX = 127
_pack_uint64, _pack_uint32 = struct.Struct("<Q").pack, struct.Struct("<I").pack


def plain_span(source: dict[str, Any]) -> bytes | None:
    """The serialized Span of a JSON object. None where it is not usual, or not valid."""
    parts: list[bytes] = []
    for key, value in source.items():
        write = _SPAN.get(key)
        if write is not None and value is not None:
            written = write(value)
            if written is None:
                return None
            parts.append(written)
    return b"".join(parts)


def delimited(tag: bytes, messages: Iterable[bytes]) -> list[bytes]:
    """Pieces of serialized messages, each in a length-delimited field of this tag (one byte)."""
    pieces: list[bytes] = []
    for message in messages:
        length = len(message)
        pieces += (tag, LENGTHS[length] if length < LENGTH_MAX else varint(length), message)
    return pieces


def _id(tag: bytes, digits: int) -> Write:
    head = tag + bytes([digits // 2])

    def write(value: object) -> bytes | None:
        if value == "":
            return b""
        if type(value) is not str or len(value) != digits:
            return None
        try:
            raw = bytes.fromhex(value)
        except ValueError:
            return None
        # Whitespace between digits is passed over, and is missing then.
        return head + raw if len(raw) * 2 == digits else None

    return write


def _text(tag: bytes) -> Write:
    def write(value: object) -> bytes | None:
        if type(value) is not str:
            return None
        text = value.encode()
        return tag + LENGTHS[len(text)] + text if len(text) < LENGTH_MAX else None

    return write


def _time(tag: bytes) -> Write:
    def write(value: object) -> bytes | None:
        if type(value) is str and len(value) <= _DIGITS_MAX and value.isascii() and value.isdigit():
            return tag + _pack_uint64(int(value))
        return None

    return write


def _number(tag: bytes, most: int) -> Write:
    def write(value: object) -> bytes | None:
        if type(value) is not int or not 0 <= value <= most:
            return None
        return tag + (LENGTHS[value] if value < LENGTH_MAX else varint(value))

    return write


def _flags(value: object) -> bytes | None:
    return b"\x85\x01" + _pack_uint32(value) if type(value) is int and 0 <= value <= _UINT32_MAX else None


def _attributes(value: object) -> bytes | None:
    return plain_attributes(value, b"\x4a")


def _none(value: object) -> bytes | None:
    return b"" if value == [] else None


def _status(value: object) -> bytes | None:
    if type(value) is not dict:
        return None
    code, message = value.get("code"), value.get("message")
    written = b"" if code is None else _status_code(code)
    told = b"" if message is None else _status_message(message)
    if written is None or told is None or len(told) > LENGTH_MAX - 8:
        return None
    return b"\x7a" + LENGTHS[len(written) + len(told)] + written + told


_status_code, _status_message = _number(b"\x18", _ENUM_MAX), _text(b"\x12")

_SPAN: dict[str, Write] = {
    "traceId": _id(b"\x0a", 32),
    "spanId": _id(b"\x12", 16),
    "traceState": _text(b"\x1a"),
    "parentSpanId": _id(b"\x22", 16),
    "flags": _flags,
    "name": _text(b"\x2a"),
    "kind": _number(b"\x30", _ENUM_MAX),
    "startTimeUnixNano": _time(b"\x39"),
    "endTimeUnixNano": _time(b"\x41"),
    "attributes": _attributes,
    "droppedAttributesCount": _number(b"\x50", _UINT32_MAX),
    "events": _none,
    "droppedEventsCount": _number(b"\x60", _UINT32_MAX),
    "links": _none,
    "droppedLinksCount": _number(b"\x70", _UINT32_MAX),
    "status": _status,
}
