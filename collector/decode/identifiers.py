"""Trace and span ids: hex text, validity, and the sentence that tells a client what was rejected."""

from __future__ import annotations

from binascii import hexlify
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector.decode.wire import content, lengths, offsets
from collector.pipeline import Accepted

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
TIME_NS_MAX = (1 << 63) - 2
"""In the year 2262; DuckDB takes the next number for infinity."""
_REASONS_MAX = 4

Mask = npt.NDArray[Any]


def hex_texts(ids: pa.BinaryArray) -> pa.StringArray:
    """Lower-case hex of each element, of whatever length."""
    bounds = offsets(ids)
    digits = hexlify(content(ids).data)
    return pa.Array.from_buffers(
        pa.string(), len(ids), [None, pa.py_buffer(bounds * np.int32(2)), pa.py_buffer(digits)]
    )


def blank(ids: pa.BinaryArray) -> Mask:
    """Which elements are empty or all zero."""
    bounds, data = offsets(ids), content(ids)
    sizes = bounds[1:] - bounds[:-1]
    if len(sizes) and sizes[0] in (8, 16) and (sizes == sizes[0]).all():
        words = data[bounds[0] : bounds[-1]].view(np.uint64)
        zero: Mask = words == 0
        return zero if sizes[0] == 8 else zero[0::2] & zero[1::2]
    nonzero = np.concatenate([[0], np.cumsum(data[: bounds[-1]] != 0)])
    unchanged: Mask = nonzero[bounds[1:]] == nonzero[bounds[:-1]]
    return unchanged


def valid(ids: pa.BinaryArray, size_bytes: int) -> Mask:
    """Which elements have this size and are not all zero."""
    good: Mask = (lengths(ids) == size_bytes) & ~blank(ids)
    return good


def acceptable(spans: pa.StructArray, start_ns: npt.NDArray[Any], end_ns: npt.NDArray[Any]) -> Mask:
    """Which spans can be stored: valid ids, and times that fit a signed 64-bit number."""
    return (
        valid(spans.field("trace_id"), TRACE_ID_BYTES)
        & valid(spans.field("span_id"), SPAN_ID_BYTES)
        & (start_ns <= TIME_NS_MAX)
        & (end_ns <= TIME_NS_MAX)
    )


def explain_rejections(spans: pa.StructArray, request: npt.NDArray[Any], good: Mask, requests: int) -> list[Accepted]:
    """The answer to each request, given which request each span belongs to and which spans are accepted."""
    bad = np.flatnonzero(~good)
    keys = request[bad].astype(np.int64) * _REASON_CODES + _reason_codes(spans.take(pa.array(bad)))
    reasons: list[Counter[str]] = [Counter() for _ in range(requests)]
    for key, count in zip(*(found.tolist() for found in np.unique(keys, return_counts=True)), strict=True):
        reasons[key // _REASON_CODES][_reason(key % _REASON_CODES)] += count
    return [_answer(counted) for counted in reasons]


# A reason is a number: which check failed, and the size of the id where that is what was wrong.
_REASON_CODES = 1 << 36
_SIZES = 1 << 32
_TRACE_SIZE, _TRACE_ZERO, _SPAN_SIZE, _SPAN_ZERO, _START, _END = range(6)


def _reason_codes(spans: pa.StructArray) -> npt.NDArray[Any]:
    trace_id, span_id = spans.field("trace_id"), spans.field("span_id")
    trace_size, span_size = lengths(trace_id), lengths(span_id)
    late_start = spans.field("start_time_unix_nano").to_numpy() > TIME_NS_MAX
    checks = [
        trace_size != TRACE_ID_BYTES,
        blank(trace_id),
        span_size != SPAN_ID_BYTES,
        blank(span_id),
        late_start,
    ]
    failed = np.select(checks, [_TRACE_SIZE, _TRACE_ZERO, _SPAN_SIZE, _SPAN_ZERO, _START], _END)
    size = np.select([failed == _TRACE_SIZE, failed == _SPAN_SIZE], [trace_size, span_size], 0)
    codes: npt.NDArray[Any] = failed.astype(np.int64) * _SIZES + size
    return codes


def _reason(code: int) -> str:
    failed, size = divmod(code, _SIZES)
    name, expected = ("trace_id", TRACE_ID_BYTES) if failed <= _TRACE_ZERO else ("span_id", SPAN_ID_BYTES)
    if failed in (_TRACE_SIZE, _SPAN_SIZE):
        return f"with {name} of {size} bytes (expected {expected}, not all zero)"
    if failed in (_TRACE_ZERO, _SPAN_ZERO):
        return f"with {name} all zero (expected {expected} bytes, not all zero)"
    name = "start_time_unix_nano" if failed == _START else "end_time_unix_nano"
    return f"with {name} after the year 2262 (expected nanoseconds since 1970, at most {TIME_NS_MAX})"


def _answer(reasons: Counter[str]) -> Accepted:
    total = reasons.total()
    if not total:
        return Accepted()
    told = reasons.most_common(_REASONS_MAX)
    parts = [f"{count} {reason}" for reason, count in told]
    others = total - sum(count for _, count in told)
    if others:
        parts.append(f"{others} for other reasons")
    return Accepted(total, f"{total} {'span' if total == 1 else 'spans'} rejected: {', '.join(parts)}")
