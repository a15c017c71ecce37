"""Operations put together and taken apart: seconds joined into one, rows picked, copied and failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from sample_data.model import SPANS_PER_OPERATION_MAX, Bools, Deliveries, Operations, Outcome, late_ns
from sample_data.topology import Ints

Rows = TypeVar("Rows", Operations, Deliveries)

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8


def joined(parts: Sequence[Operations]) -> Operations:
    """The rows of all parts, of which there is at least one, in order."""
    firsts = np.cumsum([0, *(len(part.start_ns) for part in parts)]).tolist()
    deliveries = [
        replace(part.deliveries, operation=part.deliveries.operation + first)
        for part, first in zip(parts, firsts, strict=False)
    ]
    return replace(_joined(parts), deliveries=_joined(deliveries))


def picked(operations: Operations, rows: Ints) -> Operations:
    """These rows, each as often as it is named, with their deliveries and ids."""
    its = operations.deliveries
    first = np.searchsorted(its.operation, rows, "left")
    counts = np.searchsorted(its.operation, rows, "right") - first
    of = np.repeat(np.arange(len(rows)), counts)
    delivered = np.arange(len(of)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    deliveries = replace(_picked(its, delivered, _SPAN_ID_BYTES), operation=of)
    return replace(_picked(operations, rows, SPANS_PER_OPERATION_MAX * _SPAN_ID_BYTES), deliveries=deliveries)


def copies(operations: Operations, rows: Ints, rng: np.random.Generator) -> Operations:
    """As `picked`, as operations of their own: with new ids, and somewhere within a second of their start's."""
    found = picked(operations, rows)
    n, m = len(rows), len(found.deliveries.operation)
    second_ns = found.start_ns // 1_000_000_000 * 1_000_000_000
    deliveries = replace(
        found.deliveries, trace_ids=rng.bytes(_TRACE_ID_BYTES * m), span_ids=rng.bytes(_SPAN_ID_BYTES * m)
    )
    return replace(
        found,
        start_ns=second_ns + rng.integers(0, 1_000_000_000, n),
        trace_ids=rng.bytes(_TRACE_ID_BYTES * n),
        span_ids=rng.bytes(SPANS_PER_OPERATION_MAX * _SPAN_ID_BYTES * n),
        deliveries=deliveries,
    )


def failed(operations: Operations, which: Bools, outcome: Outcome, rng: np.random.Generator) -> Operations:
    """These rows end in `outcome` and deliver nothing."""
    if not which.any():
        return operations
    late = (outcome == Outcome.TIMEOUT) & which & (operations.outcome != Outcome.TIMEOUT)
    its = operations.deliveries
    return replace(
        operations,
        outcome=np.where(which, outcome, operations.outcome),
        server_ns=np.where(late, late_ns(rng, len(late)), operations.server_ns),
        deliveries=_picked(its, np.flatnonzero(~which[its.operation]), _SPAN_ID_BYTES),
    )


def _joined(parts: Sequence[Rows]) -> Rows:
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    values: dict[str, Any] = {
        name: np.concatenate(column) if isinstance(column[0], np.ndarray) else b"".join(column)
        for name, column in columns.items()
        if name != "deliveries"
    }
    return replace(parts[0], **values)


def _picked(columns: Rows, rows: Ints, span_ids_bytes: int) -> Rows:
    values: dict[str, Any] = {
        field.name: getattr(columns, field.name)[rows]
        for field in fields(columns)
        if isinstance(getattr(columns, field.name), np.ndarray)
    }
    for name, size in (("trace_ids", _TRACE_ID_BYTES), ("span_ids", span_ids_bytes)):
        values[name] = np.frombuffer(getattr(columns, name), f"V{size}")[rows].tobytes()
    return replace(columns, **values)
