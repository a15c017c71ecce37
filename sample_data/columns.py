"""Operations put together and taken apart: columns of several seconds as one, rows copied with ids of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from sample_data.model import Deliveries, Operations

Rows = TypeVar("Rows", Operations, Deliveries)


def joined(parts: Sequence[Operations]) -> Operations:
    """The rows of all parts, of which there is at least one, in order."""
    firsts = np.cumsum([0, *(len(part.start_ns) for part in parts)]).tolist()
    deliveries = [
        replace(part.deliveries, operation=part.deliveries.operation + first)
        for part, first in zip(parts, firsts, strict=False)
    ]
    return replace(_joined(parts), deliveries=_joined(deliveries))


def _joined(parts: Sequence[Rows]) -> Rows:
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    values: dict[str, Any] = {
        name: np.concatenate(column) if isinstance(column[0], np.ndarray) else b"".join(column)
        for name, column in columns.items()
        if name != "deliveries"
    }
    return replace(parts[0], **values)
