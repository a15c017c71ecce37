"""Where the time of selected traces goes: exclusive time along their critical paths (see "
"`analytics.traces.critical_path`)."""

from __future__ import annotations

import polars as pl

from analytics.insight.explaining import frame
from analytics.traces import critical_path
from analytics.traces.forest import SPAN_COLUMNS, Forest
from analytics.window import Window
from collector.errors import OperatorError
from collector.lake.sandbox import Sandbox

SPANS_MAX = 500_000
"""Spans that are read; of more, one trace in so many is."""
FASTER = 0.5
_PLACE = ("service_name", "operation", "kind")


def time_spent(sandbox: Sandbox, window: Window, where: str) -> pl.DataFrame:
    """One row a service, operation and kind on the critical paths of traces that have a span for which `where` holds.

    Columns: service_name, operation, kind, spans, path_spans, exclusive_ms, share (of the time of all paths), and
    saved_share_max (by how much all paths shorten at most if it took half the time); largest share first. Raises
    QueryError for a condition that does not run, OperatorError for one that selects nothing.
    """
    begin, end = (f"TIMESTAMP '{time:%Y-%m-%d %H:%M}'" for time in (window.start, window.end))
    time = f"start_time >= {begin} AND start_time < {end}"
    traces = f"SELECT trace_id FROM spans WHERE {time} AND ({where}\n)"
    (count,) = frame(sandbox, f"SELECT count(*) FROM spans WHERE {time} AND trace_id IN ({traces})").row(0)
    if not count:
        raise OperatorError(
            f"--where {where!r} selects no span of {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC; "
            "expected some, to follow their traces"
        )
    one_in = 1 + int(count) // SPANS_MAX
    sample = f" AND hash(trace_id) % {one_in} = 0" if one_in > 1 else ""
    spans = frame(
        sandbox, f"SELECT {', '.join(SPAN_COLUMNS)} FROM spans WHERE {time} AND trace_id IN ({traces}){sample}"
    )
    rows = critical_path.rows(Forest.of(spans.with_columns(pl.col("start_time").cast(pl.Datetime("ns")))))
    sums = rows.group_by(_PLACE).agg(
        pl.col("spans", "path_spans").sum(), exclusive_ms=pl.col("exclusive_ns").cast(pl.Float64).sum() / 1e6
    )
    saved = critical_path.what_if(rows, _PLACE, FASTER).select(*_PLACE, "saved_share_max")
    return (
        sums.filter(pl.col("exclusive_ms") > 0)
        .with_columns(share=pl.col("exclusive_ms") / pl.col("exclusive_ms").sum())
        .join(saved, on=list(_PLACE), nulls_equal=True)
        .sort("share", *_PLACE, descending=[True, False, False, False])
    )
