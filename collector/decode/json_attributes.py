"""The usual attributes of an OTLP/JSON request, straight to protobuf's wire format.

An attribute with one text, integer, boolean or number takes less than a microsecond so, and three where an object of
python-protobuf is made for it; nearly all attributes are like that.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from functools import lru_cache

from collector.varint import varint

LENGTH_MAX = 1 << 13
"""Bytes of what is written here; more is left to python-protobuf."""


LENGTHS = [varint(length) for length in range(LENGTH_MAX + 64)]
"""Varints of lengths."""
_DIGITS_MAX = 18
"""So many decimal digits are always an int64."""
_BOOLS = {True: b"\x12\x02\x10\x01", False: b"\x12\x02\x10\x00"}
_pack_double = struct.Struct("<d").pack


def plain_attributes(items: object, tag: bytes) -> bytes | None:
    """KeyValue messages under `tag` (the byte of a length-delimited field) of a JSON array of attributes.

    None where any of them is not plain: of another type, not valid, or longer than LENGTH_MAX.
    """
    if type(items) is not list:
        return None
    parts: list[bytes] = []
    for item in items:
        try:
            key, value = item["key"], item["value"]
            ((name, content),) = value.items()
        except (KeyError, TypeError, AttributeError, ValueError):
            return None
        written = _key(key) if type(key) is str else None
        member = _text(content) if name == "stringValue" and type(content) is str else _member(name, content)
        if written is None or member is None:
            return None
        length = len(written) + len(member)
        if length > LENGTH_MAX:
            return None
        parts += (tag, LENGTHS[length], written, member)
    return b"".join(parts)


@lru_cache(4096)
def _key(key: str) -> bytes | None:
    text = key.encode()
    return b"\x0a" + LENGTHS[len(text)] + text if len(text) < 256 else None


def _member(name: str, content: object) -> bytes | None:
    """Field `value` of a KeyValue that holds no text."""
    if name == "intValue":
        return _integer(content)
    if name == "boolValue" and type(content) is bool:
        return _BOOLS[content]
    if name == "doubleValue" and type(content) is float:
        return b"\x12\x09\x21" + _pack_double(content)
    return None


def _text_head(size: int) -> bytes:
    length = LENGTHS[size]
    return b"\x12" + LENGTHS[1 + len(length) + size] + b"\x0a" + length


_SHORT_HEADS = [_text_head(size) for size in range(256)]


def _text(content: str) -> bytes | None:
    text = content.encode()
    size = len(text)
    if size < len(_SHORT_HEADS):
        return _SHORT_HEADS[size] + text
    return _text_head(size) + text if size < LENGTH_MAX else None


def _integer(content: object) -> bytes | None:
    """Of a whole number that is not negative and has at most _DIGITS_MAX digits."""
    if type(content) is str and len(content) <= _DIGITS_MAX and content.isascii() and content.isdigit():
        number = int(content)
    elif type(content) is int and 0 <= content < 10**_DIGITS_MAX:
        number = content
    else:
        return None
    written = LENGTHS[number] if number < LENGTH_MAX else varint(number)
    return b"\x12" + LENGTHS[1 + len(written)] + b"\x18" + written
