"""How many spans a sampled span stands for.

The threshold T stands in the W3C tracestate, member `ot`, sub-key `th`: up to 14 hex digits, right-padded with
zeros; the weight is 2^56 / (2^56 - T) (OpenTelemetry, "TraceState: Probability Sampling").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collector.decode.wire import content

_DIGITS = 14
_RANGE = 1 << 4 * _DIGITS
# The first well-formed `th` of the first `ot` that has one; sub-keys are separated by ';', members by ','.
_THRESHOLD = r"(?:^|,)[ \t]*ot=(?:[^,]*?;)?th:(?P<th>[0-9a-f]{1,14})[ \t]*(?:[;,]|$)"


def sample_weights(trace_states: pa.StringArray) -> pa.DoubleArray:
    """Weight of each span; NULL where the tracestate gives no well-formed threshold."""
    count = len(trace_states)
    if not content(trace_states).size:
        return pa.nulls(count, pa.float64())
    candidates = np.flatnonzero(pc.match_substring(trace_states, "th:").to_numpy(zero_copy_only=False))
    weights, known = np.ones(count), np.zeros(count, np.bool_)
    if candidates.size:
        found = pc.extract_regex(trace_states.take(pa.array(candidates)), _THRESHOLD)
        matched = found.is_valid().to_numpy(zero_copy_only=False)
        digits = found.filter(pa.array(matched)).field("th")
        rows = candidates[matched]
        known[rows] = True
        weights[rows] = _weights(digits)
    return pa.array(weights, mask=~known)


def _weights(thresholds: pa.StringArray) -> npt.NDArray[Any]:
    padded = pc.utf8_rpad(thresholds, _DIGITS, "0")
    characters = np.frombuffer("".join(padded.to_pylist()).encode(), np.uint8).reshape(-1, _DIGITS)
    nibbles = np.where(characters >= ord("a"), characters - (ord("a") - 10), characters - ord("0"))
    places = np.uint64(16) ** np.arange(_DIGITS - 1, -1, -1, dtype=np.uint64)
    threshold = (nibbles.astype(np.uint64) * places).sum(axis=1, dtype=np.uint64)
    weights: npt.NDArray[Any] = _RANGE / (np.uint64(_RANGE) - threshold).astype(np.float64)
    return weights
