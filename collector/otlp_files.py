"""OTLP in files: what the Collector's file exporter and other tools write, recognised by its content.

- protobuf: messages after a 4-byte big-endian length each (the file exporter), or one bare message;
- JSON: one request a line, or one request in a whole file, indented or not;
- any of these as a whole in gzip or zstd, and messages of the length-prefixed form in zstd each.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa

from collector.decode.otlp_json import to_protobuf
from collector.errors import InvalidRequestError

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
_HEAD_BYTES = 4096
_BARE_FIRST_BYTE = 0x0A
"""The tag of `resource_spans`; as the first byte of a length it would mean a message over 160 MiB."""
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r")
_BROKEN = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class Record:
    """One request: a serialized ExportTraceServiceRequest, or the problem in its place.

    `offset` is its place in the file in bytes, after decompression.
    """

    offset: int
    payload: bytes = b""
    problem: str = ""


def read_requests(
    path: Path, request_bytes_max: int, on_position: Callable[[int], None] = lambda _: None
) -> Iterator[Record]:
    """The requests of a file, in order, one at a time in memory; a bad one is a Record with a `problem`.

    `on_position` is told how many bytes of the file have been read. Raises OSError where it cannot be opened.
    """
    with path.open("rb") as raw:
        stream = _decompressed(raw)
        offset = 0
        try:
            for record in _records(stream, request_bytes_max):
                offset = record.offset
                on_position(raw.tell())
                yield record
        except _BROKEN as error:
            yield Record(offset, problem=f"the compressed data is broken after this place: {error}")
        on_position(raw.tell())


def _decompressed(raw: IO[bytes]) -> io.BufferedReader:
    magic = raw.read(4)
    raw.seek(0)
    if magic.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))
    if magic == ZSTD:
        return io.BufferedReader(_Readable(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")))
    return io.BufferedReader(_Readable(raw))


class _Readable(io.RawIOBase):
    """The reading side of a stream; closing it leaves the stream open."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _records(stream: io.BufferedReader, request_bytes_max: int) -> Iterator[Record]:
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if not head:
        return
    if not _is_text(head):
        bare = head[0] == _BARE_FIRST_BYTE
        yield from (_bare if bare else _prefixed)(stream, request_bytes_max)
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        yield from _json(stream, request_bytes_max)
    else:
        yield Record(0, problem="neither OTLP protobuf nor OTLP JSON")


def _is_text(head: bytes) -> bool:
    """Whether this begins a text. Protobuf spans always hold control characters, among them their field tags."""
    return not _CONTROL.intersection(head)


def _bare(stream: io.BufferedReader, request_bytes_max: int) -> Iterator[Record]:
    payload = stream.read(request_bytes_max + 1)
    yield (Record(0, problem=_too_large(request_bytes_max)) if len(payload) > request_bytes_max else Record(0, payload))


def _prefixed(stream: io.BufferedReader, request_bytes_max: int) -> Iterator[Record]:
    offset = 0
    while prefix := stream.read(4):
        size = int.from_bytes(prefix, "big")
        if len(prefix) == 4 and size > request_bytes_max:
            yield Record(offset, problem=f"a message of {size} bytes: {_too_large(request_bytes_max)}, or no OTLP file")
            return
        content = stream.read(size)
        if len(prefix) < 4 or len(content) < size:
            yield Record(offset, problem="the file ends within this message")
            return
        yield _request(offset, content, request_bytes_max)
        offset += 4 + size


def _json(stream: io.BufferedReader, request_bytes_max: int) -> Iterator[Record]:
    blank, first = b"", stream.readline(request_bytes_max + 1)
    while first and not first.strip() and len(blank) < request_bytes_max:
        blank, first = blank + first, stream.readline(request_bytes_max + 1)
    if _is_json(first):
        yield from _json_lines(blank + first, stream, request_bytes_max)
        return
    document = blank + first + stream.read(max(0, request_bytes_max + 1 - len(blank) - len(first)))
    if len(document) > request_bytes_max and first.strip() in (b"{", b"["):
        yield Record(0, problem=_too_large(request_bytes_max))
    elif len(document) <= request_bytes_max and (_is_json(document) or b"\n" not in document.strip()):
        yield _request(0, document, request_bytes_max)
    else:
        if not document.endswith(b"\n"):
            document += stream.readline(request_bytes_max + 1)
        yield from _json_lines(document, stream, request_bytes_max)


def _json_lines(begun: bytes, stream: io.BufferedReader, request_bytes_max: int) -> Iterator[Record]:
    """The lines of `begun`, which was read already, and of the rest of the stream."""
    offset = 0
    for source in (io.BytesIO(begun), stream):
        while line := source.readline(request_bytes_max + 1):
            start, size = offset, len(line)
            while not line.endswith(b"\n") and len(line) > request_bytes_max and (more := source.readline(2**20)):
                size += len(more)
                if more.endswith(b"\n"):
                    break
            offset += size
            if size > request_bytes_max:
                yield Record(start, problem=_too_large(request_bytes_max))
            elif line.strip():
                yield _request(start, line, request_bytes_max)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return False
    return True


def _request(offset: int, content: bytes, request_bytes_max: int) -> Record:
    """A record of what one message holds: protobuf or JSON, in zstd or not."""
    try:
        if content.startswith(ZSTD):
            content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read(request_bytes_max + 1)
            if len(content) > request_bytes_max:
                return Record(offset, problem=_too_large(request_bytes_max))
        content = content.removeprefix(b"\xef\xbb\xbf")
        if content.lstrip()[:1] in (b"{", b"[") and _is_text(content[:_HEAD_BYTES]):
            content = to_protobuf(content)
        return Record(offset, content)
    except (InvalidRequestError, *_BROKEN) as error:
        return Record(offset, problem=str(error))


def _too_large(request_bytes_max: int) -> str:
    return f"over collector.request_bytes_max = {request_bytes_max}"
