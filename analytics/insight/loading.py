"""Evidence from the lake: what the rollups and the tables of traces hold, and raw spans of a few minutes for clocks.

Tables that are not there (a set of dimensions that is not configured, traces that are not rolled up) are empty
frames: the detectors that need them find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl

from analytics.insight import forecasting, traced
from analytics.insight.evidence import (
    BASE,
    BUCKETS_PER_CELL,
    DESTINATION,
    ERROR,
    HOST,
    HOURLY_SCHEMA,
    VERSION,
    WITH_CELLS,
    Evidence,
    Grain,
)
from analytics.rollup.partials import NONE, UNKNOWN
from collector.lake.lake import Reader

TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "base": ("rollup_1m", BASE),
    "host": ("rollup_host_1m", HOST),
    "version": ("rollup_version_1m", VERSION),
    "destination": ("rollup_destination_1m", DESTINATION),
    "error": ("rollup_error_1m", ERROR),
}
SKEW_MINUTES = 3
SKEW_SPANS_MAX = 400_000
_LABELLED = {"host", "service_version", "service_instance_id", "destination", "error_type"}


def load(
    reader: Reader,
    start: datetime,
    until: datetime,
    region: str | None = None,
    tenant: str | None = None,
    *,
    with_hours: bool = True,
) -> Evidence:
    """What the minutes from `start` up to `until` (aware UTC, whole minutes) tell, of one region or tenant where given.

    `with_hours`: the hours of the last days too. Clocks are looked at by SKEW_MINUTES at both ends. Raises
    duckdb.Error where the lake cannot be read.
    """
    source = _Source(reader, start.astimezone(UTC), until.astimezone(UTC), region, tenant)
    grains = {name: source.grain(table, dimensions) for name, (table, dimensions) in TABLES.items()}
    deliveries, cells = source.deliveries()
    return replace(
        Evidence.empty(), **grains, deliveries=deliveries, delivery_cells=cells, hot_keys=source.hot_keys(),
        exemplars=source.exemplars(), skew=source.skew(), demand=source.demand(),
        hourly=source.hourly() if with_hours else Evidence.empty().hourly,
    )  # fmt: skip


def newest(reader: Reader) -> datetime | None:
    """The end of the newest minute of the rollups (aware), None where there is none."""
    if "rollup_1m" not in _tables(reader):
        return None
    (last,) = reader.row("SELECT max(window_start) FROM rollup_1m")
    return None if last is None else last.replace(tzinfo=UTC) + timedelta(minutes=1)


def _tables(reader: Reader) -> set[str]:
    return {name for (name,) in reader.rows("SELECT table_name FROM duckdb_tables() WHERE NOT internal")}


class _Source:
    def __init__(
        self, reader: Reader, start: datetime, until: datetime, region: str | None, tenant: str | None
    ) -> None:
        self._reader = reader
        self._start, self._until = start.replace(tzinfo=None), until.replace(tzinfo=None)
        self._region, self._tenant = region, tenant
        self._present = _tables(reader)

    def grain(self, table: str, dimensions: tuple[str, ...]) -> Grain:
        if table not in self._present:
            return Grain.empty(dimensions)
        names, scope, values = ", ".join(dimensions), *self._scope("window_start", dimensions)
        known = [f"{name} NOT IN ('{UNKNOWN}', '{NONE}')" for name in dimensions if name in _LABELLED]
        where = " AND ".join([scope, *known])
        rows = self._reader.frame(
            f"SELECT window_start AS minute, {names}, sum(count)::BIGINT AS count, sum(errors)::BIGINT AS errors, "
            "sum(hits)::BIGINT AS hits, sum(misses)::BIGINT AS misses, sum(duration_sum_ns)::DOUBLE::BIGINT AS "
            "busy_ns, "
            f"sum(unknown_weight_count)::BIGINT AS unknown_weight_count FROM {table} WHERE {where} GROUP BY ALL",
            values,
        )
        if dimensions not in WITH_CELLS:
            return Grain.of_counts(dimensions, rows, None)
        entries = "unnest(map_keys(latency_buckets)) AS bucket, unnest(map_values(latency_buckets)) AS spans"
        cells = self._reader.frame(
            f"SELECT minute, {names}, {_cell('bucket', BUCKETS_PER_CELL)} AS cell, sum(spans)::BIGINT AS spans FROM "
            f"(SELECT window_start AS minute, {names}, {entries} FROM {table} WHERE {where}) GROUP BY ALL",
            values,
        )
        return Grain.of_counts(dimensions, rows, cells)

    def demand(self) -> pl.DataFrame:
        if "rollup_1m" not in self._present:
            return traced.DEMAND_SCHEMA.to_frame()
        scope, values = self._scope("window_start", ("region", "tenant"))
        served = f"FROM rollup_1m WHERE {scope} AND kind IN ('server', 'consumer')"
        (count,) = self._reader.row(f"SELECT count(*) {served}", values)
        source = served if count else f"FROM rollup_1m WHERE {scope}"
        seconds = "unnest(map_keys(second_counts)) AS second, unnest(map_values(second_counts)) AS spans"
        by_slot = self._reader.frame(
            f"SELECT minute, region, tenant, second // {60 // traced.SLOTS} AS slot, sum(spans)::BIGINT AS count FROM "
            f"(SELECT window_start AS minute, region, tenant, {seconds} {source}) GROUP BY ALL",
            values,
        )
        return traced.steady(by_slot)

    def hourly(self) -> pl.DataFrame:
        if "rollup_1h" not in self._present:
            return HOURLY_SCHEMA.to_frame()
        end = self._until.replace(minute=0)
        scope, values = self._scope(
            "window_start", ("region", "tenant"), end - timedelta(hours=forecasting.HISTORY_HOURS), end
        )
        found = self._reader.frame(
            "SELECT window_start AS minute, region, sum(count)::BIGINT AS count FROM rollup_1h "
            f"WHERE {scope} AND kind IN ('server', 'consumer') GROUP BY ALL",
            values,
        )
        return _as(found, HOURLY_SCHEMA)

    def deliveries(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        if "deliveries_1m" not in self._present:
            return traced.DELIVERIES_SCHEMA.to_frame(), traced.DELIVERY_CELLS_SCHEMA.to_frame()
        by, (scope, values) = "minute, region, tenant, destination", self._scope("window_start", ("region", "tenant"))
        source = f"(SELECT *, window_start AS minute FROM deliveries_1m WHERE {scope})"
        counts = self._reader.frame(
            f"SELECT {by}, sum(messages)::BIGINT AS messages, sum(deliveries)::BIGINT AS deliveries FROM {source} "
            "GROUP BY ALL",
            values,
        )
        entries = "unnest(map_keys(lag_buckets)) AS bucket, unnest(map_values(lag_buckets)) AS spans"
        cells = self._reader.frame(
            f"SELECT {by}, {_cell('bucket', traced.LAG_CELL_BUCKETS)} AS cell, sum(spans)::BIGINT AS spans "
            f"FROM (SELECT {by}, {entries} FROM {source}) GROUP BY ALL HAVING sum(spans) <> 0 "
            f"UNION ALL SELECT {by}, -1, sum(negative_lags)::BIGINT FROM {source} WHERE negative_lags <> 0 GROUP BY "
            "ALL",
            values,
        )
        return _as(counts, traced.DELIVERIES_SCHEMA), _as(cells, traced.DELIVERY_CELLS_SCHEMA)

    def hot_keys(self) -> pl.DataFrame:
        if "hot_keys_1m" not in self._present:
            return traced.HOT_KEYS_SCHEMA.to_frame()
        scope, values = self._scope("window_start", ("region", "tenant"))
        found = self._reader.frame(
            "WITH counters AS (SELECT window_start AS minute, region, tenant, destination, service_name, keyed, "
            f"unnest(map_entries(key_counts)) AS counter FROM hot_keys_1m WHERE {scope} AND kind = 'server'), "
            "keys AS (SELECT minute, region, tenant, destination, service_name, NULL::VARCHAR AS host, counter.key "
            "AS key, "
            "sum(counter.value)::BIGINT AS count FROM counters GROUP BY ALL), "
            "totals AS (SELECT window_start AS minute, region, tenant, destination, sum(keyed)::BIGINT AS total "
            f"FROM hot_keys_1m WHERE {scope} AND kind = 'server' GROUP BY ALL) "
            "SELECT * FROM keys JOIN totals USING (minute, region, tenant, destination) QUALIFY row_number() OVER "
            f"(PARTITION BY minute, region, tenant, destination ORDER BY count DESC, key) <= {traced.HOT_KEYS_KEPT}",
            values,
        )
        return _as(found, traced.HOT_KEYS_SCHEMA)

    def exemplars(self) -> pl.DataFrame:
        if "exemplar_cells_1m" not in self._present:
            return traced.EXEMPLARS_SCHEMA.to_frame()
        scope, values = self._scope("window_start", ("region", "tenant"))
        found = self._reader.frame(
            "SELECT window_start AS minute, region, service_name, operation, arg_max(tenant, duration_ns) AS tenant, "
            "is_error, max(duration_ns) AS duration_ns, arg_max(trace_id, duration_ns) AS trace_id "
            f"FROM exemplar_cells_1m WHERE {scope} GROUP BY ALL",
            values,
        )
        return _as(found, traced.EXEMPLARS_SCHEMA)

    def skew(self) -> pl.DataFrame:
        """Of whole traces, one in so many that at most SKEW_SPANS_MAX spans are read."""
        edge = timedelta(minutes=SKEW_MINUTES)
        stretches = [(self._start, min(self._start + edge, self._until))]
        if self._until - edge > stretches[0][1]:
            stretches.append((self._until - edge, self._until))
        return pl.concat([traced.skew(self._spans(*stretch)) for stretch in stretches])

    def _spans(self, start: datetime, end: datetime) -> pl.DataFrame:
        scope, values = self._scope("start_time", ("region", "tenant"), start, end)
        scope += " AND kind IN ('client', 'server', 'producer', 'consumer')"
        (count,) = self._reader.row(f"SELECT count(*) FROM spans WHERE {scope}", values)
        one_in = 1 + int(count) // SKEW_SPANS_MAX
        return self._reader.frame(
            "SELECT trace_id, span_id, parent_span_id, kind, start_time, duration_ns, region, host, "
            f"[{{'trace_id': links[1].trace_id, 'span_id': links[1].span_id}}] AS links FROM spans WHERE {scope} "
            f"AND ({one_in} = 1 OR hash(trace_id) % {one_in} = 0)",
            values,
        )

    def _scope(
        self, time: str, dimensions: tuple[str, ...], start: datetime | None = None, end: datetime | None = None
    ) -> tuple[str, dict[str, object]]:
        values: dict[str, object] = {"start": start or self._start, "until": end or self._until}
        text = f"{time} >= $start AND {time} < $until"
        for name, value in (("region", self._region), ("tenant", self._tenant)):
            if value is not None and name in dimensions:
                text, values[name] = f"{text} AND {name} = ${name}", value
        return text, values


def _cell(bucket: str, size: int) -> str:
    return f"CASE WHEN {bucket} < 0 THEN -1 ELSE {bucket} // {size} END"


def _as(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema)
