"""Whether SQLite would read a write-ahead log to its end.

At the first frame whose checksum is wrong SQLite stops reading and says nothing: right for what a power cut left of
a transaction that was never acknowledged, wrong for a damaged frame with whole transactions behind it.
Source of the format and of the checksum: https://www.sqlite.org/fileformat2.html#walformat, sections 4.1 and 4.2.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from collector.carve import WAL_FRAME_BYTES, WAL_FRAME_HEADER_BYTES, WAL_HEADER_BYTES

_Words = npt.NDArray[np.uint32]
_MAGIC_LITTLE_ENDIAN, _MAGIC_BIG_ENDIAN = 0x377F0682, 0x377F0683
_VERSION = 3_007_000
_INDEX_HEADER = "=I8x?3xI12x8s"  # version, isInit, mxFrame, aSalt; of section 5 of the format
_MASK = 0xFFFFFFFF


def is_cut_short(wal: bytes) -> bool:
    """Whether a frame that is not whole hides a later commit of the same log, or the log's head is not whole."""
    if len(wal) < WAL_HEADER_BYTES + WAL_FRAME_BYTES:
        return False
    head = np.frombuffer(wal[:WAL_HEADER_BYTES], ">u4")
    if head[0] not in (_MAGIC_LITTLE_ENDIAN, _MAGIC_BIG_ENDIAN):
        return True
    order = "<u4" if head[0] == _MAGIC_LITTLE_ENDIAN else ">u4"
    sums = _sum(np.frombuffer(wal[: WAL_HEADER_BYTES - 8], order).astype(np.uint32), (0, 0))
    if sums != (int(head[6]), int(head[7])):
        return True
    count = (len(wal) - WAL_HEADER_BYTES) // WAL_FRAME_BYTES
    frames = np.frombuffer(wal, np.uint8, count * WAL_FRAME_BYTES, WAL_HEADER_BYTES).reshape(count, WAL_FRAME_BYTES)
    heads = frames[:, :WAL_FRAME_HEADER_BYTES].copy().view(">u4")
    is_of_this_log = (heads[:, 2] == head[4]) & (heads[:, 3] == head[5])
    whole = _whole_frames(frames, heads, is_of_this_log, order, sums)
    is_commit = is_of_this_log & (heads[:, 1] != 0)
    return bool(is_commit[whole:].any())


def missing_frames(wal: bytes, index: bytes) -> int:
    """How many committed frames the log has lost at its end, by what its index (the `-shm` file) says of it.

    The index is written after each commit, and is not synced: after a power cut it may say less, never more.
    """
    if len(wal) < WAL_HEADER_BYTES or len(index) < struct.calcsize(_INDEX_HEADER):
        return 0
    version, is_initialised, frames, salts = struct.unpack_from(_INDEX_HEADER, index)
    if version != _VERSION or not is_initialised or salts != wal[16:24]:
        return 0
    return max(0, int(frames) - (len(wal) - WAL_HEADER_BYTES) // WAL_FRAME_BYTES)


def _whole_frames(
    frames: npt.NDArray[np.uint8],
    heads: npt.NDArray[Any],
    is_of_this_log: npt.NDArray[np.bool_],
    order: str,
    sums: tuple[int, int],
) -> int:
    """How many frames SQLite reads."""
    summed = np.concatenate([frames[:, :8], frames[:, WAL_FRAME_HEADER_BYTES:]], axis=1).view(order)
    weights, carry = _weights(summed.shape[1])
    parts = (summed.astype(np.uint32) @ weights).tolist()
    expected = heads[:, 4:6].tolist()
    for i, (part, told) in enumerate(zip(parts, expected, strict=True)):
        sums = (
            (carry[0][0] * sums[0] + carry[0][1] * sums[1] + part[0]) & _MASK,
            (carry[1][0] * sums[0] + carry[1][1] * sums[1] + part[1]) & _MASK,
        )
        if not is_of_this_log[i] or list(sums) != told:
            return i
    return len(parts)


def _sum(words: _Words, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for i in range(0, len(words), 2):
        first = (first + int(words[i]) + second) & _MASK
        second = (second + int(words[i + 1]) + first) & _MASK
    return first, second


@cache
def _weights(words: int) -> tuple[_Words, tuple[tuple[int, int], tuple[int, int]]]:
    """The checksum as a linear form modulo 2^32: what each word, and each of the sums before, counts for."""
    weights = np.zeros((words, 2), np.uint32)
    step = ((1, 1), (1, 2))  # (first, second) -> (first + second, first + 2 * second)
    power = ((1, 0), (0, 1))
    for i in range(words - 2, -1, -2):
        weights[i] = [(power[row][0] + power[row][1]) & _MASK for row in (0, 1)]
        weights[i + 1] = [power[row][1] for row in (0, 1)]
        power = (_times(power[0], step), _times(power[1], step))
    return weights, power


def _times(row: tuple[int, int], matrix: tuple[tuple[int, int], tuple[int, int]]) -> tuple[int, int]:
    return (
        (row[0] * matrix[0][0] + row[1] * matrix[1][0]) & _MASK,
        (row[0] * matrix[0][1] + row[1] * matrix[1][1]) & _MASK,
    )
