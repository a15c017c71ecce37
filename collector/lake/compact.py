"""Apache Thrift's compact protocol, in which the footers of Parquet files are written: reads and writes any struct.

After the protocol's specification (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md),
without maps, of which Parquet has none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from collector.varint import varint

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET = range(1, 11)
STRUCT = 12
"""The types of fields. FALSE is how a boolean is written that is not true; as a type of Struct it is TRUE."""

Struct = dict[int, tuple[int, Any]]
"""Type and value by field id: integers, floats, bytes, Struct, and of a list the type of its elements and a list.

To be written, a Struct may also be bytes, as `write_struct` gave them.
"""


class CompactError(ValueError):
    """The bytes are not a struct of the compact protocol."""


def read_struct(data: bytes) -> Struct:
    """The struct at the beginning of `data`. Raises CompactError."""
    try:
        return _Reader(data).struct()
    except (IndexError, KeyError, struct.error, RecursionError) as error:
        raise CompactError(f"not a struct of Thrift's compact protocol: {error!r}") from error


def write_struct(value: Struct) -> bytes:
    """The bytes of a struct; its fields in the order of their ids."""
    out = bytearray()
    _write_struct(out, value)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._read: dict[int, Callable[[], Any]] = {
            TRUE: lambda: True,
            FALSE: lambda: False,
            BYTE: self._byte,
            **dict.fromkeys((I16, I32, I64), self._zigzag),
            DOUBLE: lambda: struct.unpack("<d", self._take(8))[0],
            BINARY: lambda: self._take(self._varint()),
            **dict.fromkeys((LIST, SET), self._list),
            STRUCT: self.struct,
        }

    def struct(self) -> Struct:
        found: Struct = {}
        field_id = 0
        while head := self._byte():
            kind = head & 15
            field_id = field_id + (head >> 4) if head >> 4 else self._zigzag()
            found[field_id] = TRUE if kind == FALSE else kind, self._value(kind)
        return found

    def _value(self, kind: int) -> Any:
        return self._read[kind]()

    def _list(self) -> tuple[int, list[Any]]:
        head = self._byte()
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self._varint()
        if kind in {TRUE, FALSE}:
            return TRUE, [self._byte() == TRUE for _ in range(count)]
        return kind, [self._value(kind) for _ in range(count)]

    def _byte(self) -> int:
        value = self._data[self._at]
        self._at += 1
        return value

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise IndexError("it ends too early")
        self._at += count
        return taken

    def _varint(self) -> int:
        byte = self._byte()
        value, shift = byte & 127, 7
        while byte > 127:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
        return value

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _write_struct(out: bytearray, value: Struct) -> None:
    before = 0
    for field_id, (kind, content) in sorted(value.items()):
        told = FALSE if kind == TRUE and not content else kind
        if 0 < field_id - before < 16:
            out.append((field_id - before) << 4 | told)
        else:
            out.append(told)
            _write_zigzag(out, field_id)
        if kind != TRUE:
            _write_value(out, kind, content)
        before = field_id
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if I16 <= kind <= I64:
        _write_zigzag(out, value)
    elif kind == BINARY:
        out += varint(len(value))
        out += value
    elif kind == STRUCT and isinstance(value, bytes):
        out += value
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind in {LIST, SET}:
        _write_list(out, *value)
    elif kind == BYTE:
        out.append(value)
    else:
        out += struct.pack("<d", value)


def _write_list(out: bytearray, kind: int, values: list[Any]) -> None:
    out.append(min(len(values), 15) << 4 | kind)
    if len(values) >= 15:
        out += varint(len(values))
    for value in values:
        if kind == TRUE:
            out.append(TRUE if value else FALSE)
        else:
            _write_value(out, kind, value)


def _write_zigzag(out: bytearray, value: int) -> None:
    out += varint(value << 1 if value >= 0 else (-value << 1) - 1)
