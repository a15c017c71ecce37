"""Decompression of request bodies: any chunking gives the same bytes, nothing passes its bound."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.errors import InvalidRequestError, RequestTooLargeError
from collector.receive.encoding import GZIP_MEMBERS_MAX, PIECE_BYTES, Body, decompressor, sniff
from collector.receive.status import UnsupportedEncodingError

LIMIT = 4 * PIECE_BYTES
Held = list[int]


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "GZIP ": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd,
}
compressed_only = pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])


def read(encoding: str, chunks: list[bytes], bytes_max: int = LIMIT, held: Held | None = None) -> bytes:
    body = Body(decompressor(encoding), bytes_max, (held if held is not None else []).append)
    for chunk in chunks:
        body.feed(chunk)
    return body.finish()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@pytest.mark.parametrize("encoding", COMPRESS)
@given(data=st.binary(max_size=5000), times=st.integers(1, 300), places=st.lists(st.integers(0), max_size=5))
def test_any_chunking_gives_the_same_bytes(encoding: str, data: bytes, times: int, places: list[int]) -> None:
    plain = data * times
    chunks = cut(COMPRESS[encoding](plain), places)
    assert read(encoding, chunks) == plain


@compressed_only
@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, LIMIT])
def test_sizes_around_a_piece(encoding: str, size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert read(encoding, [COMPRESS[encoding](plain)]) == plain


@given(parts=st.lists(st.binary(max_size=200), max_size=5), places=st.lists(st.integers(0), max_size=5))
def test_gzip_of_several_members(parts: list[bytes], places: list[int]) -> None:
    whole = b"".join(gzip.compress(part) for part in parts)
    assert read("gzip", cut(whole, places)) == b"".join(parts)


def test_gzip_members_are_bounded() -> None:
    member = gzip.compress(b"")
    assert read("gzip", [member * GZIP_MEMBERS_MAX]) == b""
    with pytest.raises(InvalidRequestError, match="after its end"):
        read("gzip", [member * (GZIP_MEMBERS_MAX + 1)])


@compressed_only
def test_a_bomb_is_not_inflated(encoding: str) -> None:
    bomb = COMPRESS[encoding](bytes(50 * LIMIT))
    held: Held = []
    with pytest.raises(RequestTooLargeError, match="request_bytes_max"):
        read(encoding, [bomb], held=held)
    assert sum(held) <= LIMIT + len(bomb)


@pytest.mark.parametrize("encoding", COMPRESS)
def test_the_limit_is_exact(encoding: str) -> None:
    plain = bytes(range(250)) * 8
    assert read(encoding, [COMPRESS[encoding](plain)], bytes_max=2000) == plain
    with pytest.raises(RequestTooLargeError):
        read(encoding, [COMPRESS[encoding](plain)], bytes_max=1999)


def test_compressed_bytes_count_too() -> None:
    with pytest.raises(RequestTooLargeError):
        read("gzip", [gzip.compress(b"")] * 200, bytes_max=1024)


@compressed_only
@given(data=st.binary(min_size=1, max_size=2000), keep=st.floats(0.01, 0.99))
def test_cut_short(encoding: str, data: bytes, keep: float) -> None:
    compressed = COMPRESS[encoding](data)
    with pytest.raises(InvalidRequestError):
        read(encoding, [compressed[: max(1, int(len(compressed) * keep))]])


@compressed_only
@given(garbage=st.binary(min_size=1, max_size=500))
def test_garbage_is_refused_or_read_never_worse(encoding: str, garbage: bytes) -> None:
    with suppress(InvalidRequestError):
        assert len(read(encoding, [garbage])) <= LIMIT


@pytest.mark.parametrize("level", range(10))
@pytest.mark.parametrize("window_bits", [9, 12, 15, 25, 28, 31])
def test_sniffing_compressed_messages(level: int, window_bits: int) -> None:
    compressor = zlib.compressobj(level, wbits=window_bits)
    compressed = compressor.compress(b"\x0a\x02xy" * 9) + compressor.flush()
    assert sniff(compressed) == ("gzip" if window_bits > 15 else "deflate")


@given(length=st.integers(0, 2**21), rest=st.binary(max_size=3))
def test_sniffing_plain_messages(length: int, rest: bytes) -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add(schema_url="x" * length)
    assert sniff(request.SerializeToString()[:4] + rest) == "identity"
    assert sniff(b"") == sniff(b"\x0a") == "identity"


@compressed_only
def test_an_empty_body_is_an_empty_request(encoding: str) -> None:
    assert read(encoding, [b""]) == b""


def test_every_byte_is_held_before_it_is_kept() -> None:
    held: Held = []
    plain = bytes(3 * PIECE_BYTES)
    read("gzip", [gzip.compress(plain)], held=held)
    assert sum(held) == len(plain)
    assert max(held) <= PIECE_BYTES


@pytest.mark.parametrize("encoding", ["br", "snappy", "gzip, gzip", "lz4", "\xff"])
def test_unknown_encodings(encoding: str) -> None:
    with pytest.raises(UnsupportedEncodingError, match="gzip, deflate, zstd, identity"):
        decompressor(encoding)
