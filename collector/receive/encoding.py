"""Content encodings of OTLP/HTTP: decompression in bounded pieces, so that no bomb is ever inflated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa
from zlib_ng import zlib_ng as zlib

from collector.errors import InvalidRequestError, RequestTooLargeError
from collector.receive.status import UnsupportedEncodingError

PIECE_BYTES = 1 << 20
GZIP_MEMBERS_MAX = 1000


class Decompressor(Protocol):
    """Turns chunks of a compressed body into pieces of at most PIECE_BYTES (identity: of any size).

    `collects` says whether the chunks are kept until the end.
    """

    collects: bool

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What this chunk completes. Raises InvalidRequestError where the data is corrupt."""
        ...

    def rest(self) -> Iterator[bytes]:
        """What the end of the body completes. Raises InvalidRequestError where the data is cut short."""
        ...


class _Identity:
    collects = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk

    def rest(self) -> Iterator[bytes]:
        yield from ()


class _Zlib:
    """gzip (RFC 1952, several members) and deflate, which in HTTP is the zlib format (RFC 1950, one)."""

    collects = False

    def __init__(self, name: str, window_bits: int, members_max: int) -> None:
        self._name = name
        self._window_bits = window_bits
        self._members_left = members_max
        self._inflate = zlib.decompressobj(window_bits)
        self._started = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        more = bool(chunk)
        while more:
            self._begin()
            try:
                piece = self._inflate.decompress(chunk, PIECE_BYTES)
            except zlib.error as error:  # type: ignore[misc]  # its stub names no class
                raise InvalidRequestError(f"the {self._name} body is corrupt: {error}") from error
            ended = self._inflate.eof
            chunk = self._inflate.unused_data if ended else self._inflate.unconsumed_tail
            more = bool(chunk) or (not ended and len(piece) == PIECE_BYTES)
            yield piece

    def _begin(self) -> None:
        if self._started and not self._inflate.eof:
            return
        if not self._members_left:
            raise InvalidRequestError(f"the {self._name} body has bytes after its end")
        self._members_left -= 1
        self._started = True
        self._inflate = zlib.decompressobj(self._window_bits)

    def rest(self) -> Iterator[bytes]:
        if self._started and not self._inflate.eof:
            raise InvalidRequestError(f"the {self._name} body is cut short")
        yield from ()


class _Zstd:
    """Zstandard (RFC 8878). The compressed body is collected first: the library pulls its input."""

    collects = True

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        self._chunks.append(chunk)
        yield from ()

    def rest(self) -> Iterator[bytes]:
        compressed = b"".join(self._chunks)
        self._chunks.clear()
        if not compressed:
            return
        try:
            with pa.input_stream(pa.py_buffer(compressed), compression="zstd", buffer_size=0) as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise InvalidRequestError(f"the zstd body is corrupt or cut short: {error}") from error


_ENCODINGS: dict[str, Callable[[], Decompressor]] = {
    "": _Identity,
    "identity": _Identity,
    "gzip": lambda: _Zlib("gzip", 16 + zlib.MAX_WBITS, GZIP_MEMBERS_MAX),
    "x-gzip": lambda: _Zlib("gzip", 16 + zlib.MAX_WBITS, GZIP_MEMBERS_MAX),
    "deflate": lambda: _Zlib("deflate", zlib.MAX_WBITS, 1),
    "zstd": _Zstd,
}
ACCEPT_ENCODING = "gzip, deflate, zstd, identity"


def decompressor(content_encoding: str) -> Decompressor:
    """For the value of a Content-Encoding header. Raises UnsupportedEncodingError."""
    make = _ENCODINGS.get(content_encoding.strip().lower())
    if make is None:
        raise UnsupportedEncodingError(
            f"Content-Encoding: {content_encoding!r} is not supported: use one of {ACCEPT_ENCODING}"
        )
    return make()


def sniff(message: bytes) -> str:
    """The encoding of a message that does not tell it: gzip, deflate or identity.

    Safe for OTLP requests, which begin with field 1 of wire type 2: the first byte of gzip is no protobuf tag
    at all (wire type 7), that of zlib (RFC 1950, 2.2) is one of wire type 0.
    """
    if message[:2] == b"\x1f\x8b":
        return "gzip"
    if len(message) > 1 and message[0] & 0x8F == 0x08 and (message[0] << 8 | message[1]) % 31 == 0:
        return "deflate"
    return "identity"


class Body:
    """Collects one request body, decompressed, within its bound.

    `hold` is told of every piece before the next is inflated, and may raise to refuse it.
    """

    def __init__(self, decoder: Decompressor, bytes_max: int, hold: Callable[[int], None]) -> None:
        self.compressed = not isinstance(decoder, _Identity)
        self._decoder = decoder
        self._bytes_max = bytes_max
        self._hold = hold
        self._received_bytes = 0
        self._size_bytes = 0
        self._pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Add a chunk as received. Raises InvalidRequestError, RequestTooLargeError, what `hold` raises."""
        self._received_bytes += len(chunk)
        if self._received_bytes > self._bytes_max:
            raise self._too_large()
        if self._decoder.collects:
            self._hold(len(chunk))
        self._add(self._decoder.pieces(chunk))

    def finish(self) -> bytes:
        """The whole body. Raises as feed() does."""
        self._add(self._decoder.rest())
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _add(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            self._size_bytes += len(piece)
            if self._size_bytes > self._bytes_max:
                raise self._too_large()
            self._hold(len(piece))
            self._pieces.append(piece)

    def _too_large(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"the request is over collector.request_bytes_max = {self._bytes_max} bytes (decompressed): "
            "send smaller batches, or raise it"
        )
