"""What an incident is, where, when and how strong: what a judge compares findings with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Truth:
    """An incident from `start_second` to before `end_second` (since the Unix epoch).

    A place that is None is not part of it (all regions, any host). `tenants` are the ones it hurts, `culprit`
    the one that causes it. `factor` is by how much `measure` grows at the height of it; `harmless` incidents change
    something and hurt nobody.
    """

    kind: str
    start_second: int
    end_second: int
    measure: str
    factor: float
    region: str | None = None
    service: str | None = None
    operation: str | None = None
    host: str | None = None
    version: str | None = None
    destination: str | None = None
    tenants: tuple[str, ...] = ()
    culprit: str | None = None
    harmless: bool = False

    def as_json(self) -> dict[str, Any]:
        """All fields, the times as ISO 8601 in UTC."""
        values = asdict(self)
        for name in ("start", "end"):
            moment = datetime.fromtimestamp(values.pop(f"{name}_second"), UTC)
            values[f"{name}_time"] = moment.isoformat().replace("+00:00", "Z")
        return values


def write_truths(path: Path, truths: Iterable[Truth]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(truth.as_json()) + "\n" for truth in truths))
