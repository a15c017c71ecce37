"""Rows of a damaged spool, found page by page in its files, whatever has become of the tree above them.

Source of the formats: https://www.sqlite.org/fileformat2.html (b-tree pages, records, write-ahead log). Nothing
here trusts what it reads: what does not parse is skipped, and a row counts only if its checksum says that it is whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from collector.spool import DIGEST_BYTES, PAGE_BYTES, Row, is_whole

WAL_HEADER_BYTES = 32
WAL_FRAME_HEADER_BYTES = 24
WAL_FRAME_BYTES = WAL_FRAME_HEADER_BYTES + PAGE_BYTES
_FILE_HEADER_BYTES = 100
_LEAF_OF_TABLE, _LEAF_OF_INDEX, _INNER_OF_INDEX = 13, 10, 2
_TABLE_LOCAL_MAX = PAGE_BYTES - 35
_INDEX_LOCAL_MAX = (PAGE_BYTES - 12) * 64 // 255 - 23
_LOCAL_MIN = (PAGE_BYTES - 12) * 32 // 255 - 23
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Value = int | str | bytes | None


class _DamagedError(ValueError):
    """These bytes are not what they should be."""


@dataclass(frozen=True)
class Digest:
    """A row of a table of digests."""

    digest: bytes
    rejected_spans: int
    message: str


class Carver:
    """The pages of a database file and of its write-ahead log, both as they are on disk."""

    def __init__(self, database: bytes, wal: bytes) -> None:
        """Raises nothing: either may be empty, cut short or garbage."""
        self._pages: list[tuple[int, memoryview]] = []
        content = memoryview(database)
        for number, start in enumerate(range(0, len(content) - PAGE_BYTES + 1, PAGE_BYTES), 1):
            self._pages.append((number, content[start : start + PAGE_BYTES]))
        frames = memoryview(wal)
        for start in range(WAL_HEADER_BYTES, len(frames) - WAL_FRAME_BYTES + 1, WAL_FRAME_BYTES):
            (number,) = struct.unpack_from(">I", frames, start)
            self._pages.append((number, frames[start + WAL_FRAME_HEADER_BYTES : start + WAL_FRAME_BYTES]))
        self._newest = dict(self._pages)

    def requests(self) -> dict[int, Row]:
        """The whole rows of the table `requests` by sequence number, some of them perhaps deleted before."""
        found: dict[int, Row] = {}
        for number, page in self._pages:
            for seq, values in self._records(number, page, _LEAF_OF_TABLE):
                row = _request(seq, values)
                if row is not None:
                    found[seq] = row
        return found

    def digests(self) -> dict[bytes, Digest]:
        """What reads like a row of a table of digests, some of them perhaps deleted before."""
        found: dict[bytes, Digest] = {}
        for number, page in self._pages:
            for kind in (_LEAF_OF_INDEX, _INNER_OF_INDEX):
                for _, values in self._records(number, page, kind):
                    match values:
                        case [bytes(digest), int(rejected), str(message)] if len(digest) == DIGEST_BYTES:
                            found[digest] = Digest(digest, rejected, message)
        return found

    def _records(self, number: int, page: memoryview, kind: int) -> Iterator[tuple[int, list[Value]]]:
        """(rowid, values) of the cells of a page of this kind; those that do not parse are left out."""
        start = _FILE_HEADER_BYTES if number == 1 else 0
        if page[start] != kind:
            return
        (cells,) = struct.unpack_from(">H", page, start + 3)
        pointers = start + (12 if kind == _INNER_OF_INDEX else 8)
        for i in range(min(cells, (PAGE_BYTES - pointers) // 2)):
            (offset,) = struct.unpack_from(">H", page, pointers + 2 * i)
            try:
                yield self._cell(page, offset + (4 if kind == _INNER_OF_INDEX else 0), kind == _LEAF_OF_TABLE)
            except (_DamagedError, IndexError, struct.error, UnicodeDecodeError):
                continue

    def _cell(self, page: memoryview, offset: int, is_table: bool) -> tuple[int, list[Value]]:
        size, offset = _varint(page, offset)
        rowid = 0
        if is_table:
            rowid, offset = _varint(page, offset)
        return rowid, _values(self._payload(page, offset, size, _TABLE_LOCAL_MAX if is_table else _INDEX_LOCAL_MAX))

    def _payload(self, page: memoryview, offset: int, size: int, local_max: int) -> bytes:
        """The bytes of a record, those on overflow pages included."""
        if size > len(self._pages) * PAGE_BYTES:
            raise _DamagedError("longer than the file")
        local = size
        if size > local_max:
            local = _LOCAL_MIN + (size - _LOCAL_MIN) % (PAGE_BYTES - 4)
            local = local if local <= local_max else _LOCAL_MIN
        parts = [page[offset : offset + local]]
        missing = size - local
        following = page[offset + local : offset + local + 4]
        while missing:
            overflow = self._newest.get(int.from_bytes(following, "big"))
            if overflow is None:
                raise _DamagedError("a page is missing")
            parts.append(overflow[4 : 4 + min(missing, PAGE_BYTES - 4)])
            missing -= len(parts[-1])
            following = overflow[:4]
        return b"".join(parts)


def _request(seq: int, values: list[Value]) -> Row | None:
    match values:
        case [None, int(received_at_ns), str() | None as tenant, bytes(payload), bytes(checksum)]:
            row = Row(seq, received_at_ns, tenant, payload, checksum)
            return row if is_whole(row) else None
    return None


def _values(record: bytes) -> list[Value]:
    """The columns of a record. Raises _DamagedError, IndexError or UnicodeDecodeError."""
    content = memoryview(record)
    offset, position = _varint(content, 0)[::-1]
    body = position
    values: list[Value] = []
    while offset < body:
        kind, offset = _varint(content, offset)
        size = _INTEGER_BYTES.get(kind, max(0, (kind - 12) // 2))
        if position + size > len(content):
            raise _DamagedError("longer than its record")
        values.append(_value(kind, record[position : position + size]))
        position += size
    return values


def _value(kind: int, content: bytes) -> Value:
    if kind == 0:
        return None
    if kind in (8, 9):
        return kind - 8
    if kind in _INTEGER_BYTES:
        return int.from_bytes(content, "big", signed=True)
    if kind >= 12:
        return content.decode() if kind % 2 else content
    raise _DamagedError("a kind of value that the spool does not have")


def _varint(content: memoryview, offset: int) -> tuple[int, int]:
    """A variable-length integer, and the offset behind it."""
    value = 0
    for i in range(8):
        byte = content[offset + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + i + 1
    return value << 8 | content[offset + 8], offset + 9
