"""Few spans, of which all figures are known, and a lake's rollups of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from analytics.rollup.job import HOURS, MINUTES, write_rows
from analytics.rollup.partials import merged, partials
from analytics.window import Window
from collector.lake.lake import Lake

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW = Window(NOON, NOON + timedelta(minutes=10))
MS = 10**6
"""A millisecond in ns."""


def spans(count: int, start: datetime, **values: Any) -> pl.DataFrame:
    """`count` equal spans; a list among the values gives one to each span."""
    row = {
        "region": "eu", "tenant": "acme", "service_name": "cache", "component": "cache", "operation": "get",
        "kind": "server", "start_time": int(start.timestamp() * 10**9), "duration_ns": 2 * MS, "status": "unset",
        "cache_hit": True, "payload_bytes": 10, "sample_weight": 1.0,
    } | values  # fmt: skip
    columns = {name: value if isinstance(value, list) else [value] * count for name, value in row.items()}
    return pl.DataFrame(columns, schema_overrides={"start_time": pl.Datetime("ns"), "cache_hit": pl.Boolean})


def store(lake: Lake, *frames: pl.DataFrame) -> None:
    """Let the base set's rollups be those of these spans alone."""
    minutes = pl.concat(partials(frame) for frame in frames)
    files = [(MINUTES, write_rows(lake, MINUTES, minutes)), (HOURS, write_rows(lake, HOURS, merged(minutes, "1h")))]
    with lake.write() as transaction:
        for table, path in files:
            transaction.execute(f"DELETE FROM {table}")
            transaction.add_files(table, [path])


BEFORE, SINCE = NOON - timedelta(minutes=9), NOON + timedelta(minutes=1)
EXAMPLE = [
    spans(600, BEFORE, duration_ns=[2 * MS] * 540 + [4 * MS] * 60),
    spans(600, SINCE, duration_ns=[2 * MS] * 540 + [16 * MS] * 60, cache_hit=[True] * 450 + [False] * 150),
    spans(300, BEFORE, region="us", status="error", cache_hit=None),
    spans(20, BEFORE, region="ap"),
    spans(90, SINCE, region="ap", sample_weight=None, status=["error"] * 9 + ["ok"] * 81),
    spans(50, NOON + timedelta(minutes=10), region="later"),
]
"""Of WINDOW, as long a time before it, and the minute after it."""
