"""Reads the rollup rows that a health query needs: which table for which part of a window, and in what steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from importlib import resources

import polars as pl

from analytics.rollup.partials import DIMENSIONS
from analytics.rollup.windows import Piece, pieces
from analytics.window import HOUR, MINUTE, Window
from collector.lake.lake import Reader

INGRESS = "ingress"
HOURS_FROM = timedelta(hours=12)
BASELINE_STEP = -1
ALL = "everything"


@dataclass(frozen=True)
class Scope:
    """Which rollup rows take part: values of each dimension, empty takes all.

    `kinds=(INGRESS,)` counts each operation once, where it is served; see `analytics.health`.
    """

    regions: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    def parameters(self) -> dict[str, object]:
        """The values that the queries bind."""
        lists: dict[str, object] = {name: list(values) for name, values in asdict(self).items()}
        if INGRESS in self.kinds:
            lists["kinds"] = []
        return {**lists, "ingress": INGRESS in self.kinds}


@dataclass(frozen=True)
class Plan:
    """A window in at most so many steps: of whole minutes, or of whole hours from HOURS_FROM on.

    Steps begin at `origin` and are clipped to the window, so the first and the last may be shorter.
    """

    window: Window
    origin: datetime
    step: timedelta
    whole_hours: bool

    @classmethod
    def of(cls, window: Window, points: int) -> Plan:
        """Raises ValueError unless `points` is at least 1."""
        if points < 1:
            raise ValueError(f"{points} points: expected at least 1")
        length = window.end - window.start
        whole_hours = length >= HOURS_FROM
        unit = HOUR if whole_hours else MINUTE
        origin = window.start.replace(minute=0) if whole_hours else window.start
        units = -((origin - window.end) // unit)
        return cls(window, origin, -(-units // points) * unit, whole_hours)

    def steps(self) -> pl.DataFrame:
        """Columns: step (from 0), time (its start, Datetime us), seconds (its length)."""
        starts, step = [], self.origin
        while step < self.window.end:
            starts.append(step)
            step += self.step
        clipped = [max(start, self.window.start) for start in starts]
        ends = [*clipped[1:], self.window.end]
        return pl.DataFrame(
            {
                "step": range(len(starts)),
                "time": [start.replace(tzinfo=None) for start in clipped],
                "seconds": [(end - start).total_seconds() for start, end in zip(clipped, ends, strict=True)],
            },
            schema={"step": pl.Int64, "time": pl.Datetime("us"), "seconds": pl.Float64},
        )

    def pieces(self, baseline: Window | None) -> list[Piece]:
        """What to read of which table, in order of time, for the window and the baseline just before it."""
        return pieces([baseline, self.window] if baseline else [self.window], by_hour=self.whole_hours)


@dataclass(frozen=True)
class Source:
    """The rollup rows of a window, in steps, and of its baseline, within a scope."""

    reader: Reader
    plan: Plan
    scope: Scope
    baseline: Window | None = None

    def counts(self, by: Sequence[str]) -> pl.DataFrame:
        """Columns: *by (or ALL), step, count, errors, hits, misses, bytes, unknown_weight_count."""
        return self._frame("counts", by)

    def cells(self, by: Sequence[str]) -> pl.DataFrame:
        """Columns: *by (or ALL), step, bucket, spans."""
        return self._frame("cells", by)

    def choices(self) -> pl.DataFrame:
        """Columns: choice, dimension; most spans first."""
        return self._frame("choices", ())

    def _frame(self, query: str, by: Sequence[str]) -> pl.DataFrame:
        parameters: dict[str, object] = {
            **self.scope.parameters(),
            "start": self.plan.window.start.replace(tzinfo=None),
            "origin": int(self.plan.origin.timestamp()),
            "step_seconds": int(self.plan.step.total_seconds()),
        }
        selects = []
        for number, piece in enumerate(self.plan.pieces(self.baseline)):
            start, end = f"piece_{number}_start", f"piece_{number}_end"
            parameters |= {start: piece.start.replace(tzinfo=None), end: piece.end.replace(tzinfo=None)}
            selects.append(_sql("piece").format(table=piece.table, start=start, end=end))
        sql = _sql("rows_in_scope").replace("{pieces}", "UNION ALL ".join(selects)) + _sql(query)
        sql = sql.replace("{by}", ", ".join(by) or f"'' AS {ALL}")
        return self.reader.frame(
            sql, {name: value for name, value in parameters.items() if f"${name}" in sql}
        )


def check_dimensions(by: Sequence[str]) -> None:
    """Raise ValueError unless all are dimensions of the rollups, each once."""
    unknown = [name for name in by if name not in DIMENSIONS]
    if unknown or len(set(by)) != len(by):
        raise ValueError(f"by = {list(by)}: expected different ones of {', '.join(DIMENSIONS)}")


def _sql(name: str) -> str:
    return resources.files("analytics").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")
