"""The tables of traces: which part fills which, and how their rows merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from analytics.traces import exemplars, hot_keys, sightings
from analytics.traces.critical_path import CRITICAL_PATH
from analytics.traces.deliveries import CLOCK_SKEW, DELIVERIES
from analytics.traces.edges import EDGES
from analytics.traces.summaries import SUMMARIES


@dataclass(frozen=True)
class Table:
    """A table of the lake: the part of the configuration that fills it, its columns, and `merged`.

    `merged` gives the same in fewer rows; `order` says by which columns files are sorted.
    """

    name: str
    part: str
    schema: pl.Schema
    merged: Callable[[pl.DataFrame], pl.DataFrame]
    order: tuple[str, ...]


TABLES = (
    Table("critical_path_1m", "critical_path", CRITICAL_PATH.schema, CRITICAL_PATH.merged, tuple(CRITICAL_PATH.keys)),
    Table("service_edges_1m", "edges", EDGES.schema, EDGES.merged, tuple(EDGES.keys)),
    Table("deliveries_1m", "deliveries", DELIVERIES.schema, DELIVERIES.merged, tuple(DELIVERIES.keys)),
    Table("clock_skew_1m", "deliveries", CLOCK_SKEW.schema, CLOCK_SKEW.merged, tuple(CLOCK_SKEW.keys)),
    Table("trace_rows", "summaries", SUMMARIES.schema, SUMMARIES.merged, ("start_time", "trace_id")),
    Table("exemplar_cells_1m", "exemplars", exemplars.EXEMPLARS_SCHEMA, exemplars.merged, exemplars.KEYS),
    Table("hot_keys_1m", "hot_keys", hot_keys.HOT_KEYS_SCHEMA, hot_keys.merged, hot_keys.KEYS),
    Table("sighting_rows", "sightings", sightings.SIGHTINGS_SCHEMA, sightings.merged, sightings.KEYS),
)
PARTS = tuple(dict.fromkeys(table.part for table in TABLES))
