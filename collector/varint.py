"""Base-128 varints, as Protocol Buffers and Thrift write numbers that are not negative."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """A base-128 varint of a number that is not negative."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
