"""What new spans add to the tables of traces, and what they take back of what was added before."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from analytics.traces import critical_path, deliveries, edges, exemplars, hot_keys, sightings, summaries
from analytics.traces.additive import weighed
from analytics.traces.forest import SPAN_COLUMNS, Forest

OF_TRACES = frozenset({"critical_path", "edges", "deliveries", "summaries"})
"""The parts that look at whole traces; the others look at single spans."""


def changes(
    new: pl.DataFrame, earlier: pl.DataFrame, parts: Collection[str], secret: bytes | None
) -> dict[str, pl.DataFrame]:
    """Rows by table name which, added to what `earlier` spans gave, make what all spans give together.

    `new` has the columns of `source.read`, `earlier` SPAN_COLUMNS: the earlier spans of all traces that new ones may
    change. `secret` hashes keys, see `hot_keys.rows`.
    """
    found: dict[str, pl.DataFrame] = {}
    if OF_TRACES.intersection(parts):
        found |= _of_traces(new, earlier, parts)
    if "exemplars" in parts:
        found["exemplar_cells_1m"] = exemplars.rows(new)
    if "hot_keys" in parts:
        found["hot_keys_1m"] = hot_keys.rows(new, secret)
    if "sightings" in parts:
        found["sighting_rows"] = sightings.rows(new)
    return found


def _of_traces(new: pl.DataFrame, earlier: pl.DataFrame, parts: Collection[str]) -> dict[str, pl.DataFrame]:
    held = earlier.select(SPAN_COLUMNS)
    before, after = Forest.of(held), Forest.of(pl.concat([held, new.select(SPAN_COLUMNS)]))
    found = {}
    if "edges" in parts:
        found["service_edges_1m"] = edges.EDGES.rows(weighed(edges.events(after), edges.events(before)))
    if "deliveries" in parts:
        told = weighed(deliveries.events(after), deliveries.events(before))
        skewed = weighed(deliveries.skew_events(after), deliveries.skew_events(before))
        found["deliveries_1m"] = deliveries.DELIVERIES.rows(told)
        found["clock_skew_1m"] = deliveries.CLOCK_SKEW.rows(skewed)
    if {"critical_path", "summaries"}.intersection(parts):
        found |= _of_paths(after, before, parts)
    return found


def _of_paths(after: Forest, before: Forest, parts: Collection[str]) -> dict[str, pl.DataFrame]:
    now, then = critical_path.path(after), critical_path.path(before)
    found = {}
    if "critical_path" in parts:
        events = weighed(critical_path.events(after, now), critical_path.events(before, then))
        found["critical_path_1m"] = critical_path.CRITICAL_PATH.rows(events)
    if "summaries" in parts:
        rows = summaries.events(after, now), summaries.events(before, then)
        found["trace_rows"] = summaries.changes(*rows)
    return found
