"""Evidence from the lake: what the rollups and the tables of traces hold, and raw spans of a few minutes for clocks.

Tables that are not there (a set of dimensions that is not configured, traces that are not rolled up), or hold no rows,
are empty frames: the detectors that need them find nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import polars as pl

from analytics.insight import forecasting, traced
from analytics.insight.demand import SERVED, Demand
from analytics.insight.evidence import HOURLY_SCHEMA, Evidence
from analytics.insight.grains import (
    BASE,
    DESTINATION,
    ERROR,
    HOST,
    MEASURES,
    VERSION,
    WITH_CELLS,
    Grain,
    minute_number,
    minute_time,
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
ROWS_AT_ONCE = 100_000
"""Rows of a rollup that are read at once: with their maps they take many times what is kept of them."""
_STRETCH_ROWS = 1_000_000
SKEW_MINUTES = 3
SKEW_SPANS_MAX = 100_000
_MINUTE = "(epoch_us(window_start) // 60_000_000)::INTEGER"
_WANTED = {HOST: "kind NOT IN ('client', 'producer')", DESTINATION: "hits + misses > 0"}
"""Rows that tell something: hosts are judged by what they serve, destinations by the lookups of caches."""
_CONNECTED = ("client", "server", "producer", "consumer")
_LABELLED = {"host", "service_version", "service_instance_id", "destination", "error_type"}


def load(reader: Reader, start: datetime, until: datetime, *, before: Evidence | None = None) -> Evidence:
    """What the minutes from `start` up to `until` (aware UTC, whole minutes) tell.

    `before`: of the minutes before `start`, by this function; what these tell is put behind it. Clocks are looked at by
    SKEW_MINUTES at both ends. Raises duckdb.Error where the lake cannot be read.
    """
    source = Source(reader, reader.filled(), naive(start), naive(until))
    known = (before or Evidence.empty()).with_traced([part.told() for part in source.stretches()])
    told = source.counted_after(known)
    skew = source.skew(told.base, sorted(clock_minutes(source.start, source.until)))
    return replace(told, skew=pl.concat([told.skew, skew]), hourly=source.hourly())


def clock_minutes(start: datetime, until: datetime) -> set[int]:
    """Numbers of the minutes, of those from `start` up to `until` (naive UTC), by which clocks are looked at."""
    first, end = minute_number(start), minute_number(until)
    return {*range(first, min(first + SKEW_MINUTES, end)), *range(max(end - SKEW_MINUTES, first), end)}


def naive(time: datetime) -> datetime:
    """An aware time without its zone, in UTC."""
    return time.astimezone(UTC).replace(tzinfo=None)


def newest(reader: Reader) -> datetime | None:
    """The end of the newest minute of the rollups (aware), None where there is none."""
    if "rollup_1m" not in reader.filled():
        return None
    (last,) = reader.row("SELECT max(window_start) FROM rollup_1m")
    return None if last is None else last.replace(tzinfo=UTC) + timedelta(minutes=1)


def newest_span(reader: Reader) -> datetime | None:
    """The end of the minute in which the newest span starts (aware), None where there is none."""
    (last,) = reader.row("SELECT date_trunc('minute', max(start_time))::TIMESTAMP FROM spans")
    return None if last is None else last.replace(tzinfo=UTC) + timedelta(minutes=1)


@dataclass(frozen=True)
class Source:
    """Some minutes (naive UTC) of a lake of which the tables `present` hold rows."""

    reader: Reader
    present: frozenset[str]
    start: datetime
    until: datetime

    def stretches(self) -> Iterator[Source]:
        """The same in parts of about _STRETCH_ROWS rows of the base set."""
        minutes = int((self.until - self.start) / timedelta(minutes=1))
        length = max(1, minutes * _STRETCH_ROWS // max(self.count(), _STRETCH_ROWS)) * timedelta(minutes=1)
        start = self.start
        while start < self.until:
            end = min(start + length, self.until)
            yield replace(self, start=start, until=end)
            start = end

    def count(self) -> int:
        """Rows of the base set."""
        if "rollup_1m" not in self.present:
            return 0
        scope, values = self._scope("window_start")
        return int(self.reader.row(f"SELECT count(*) FROM rollup_1m WHERE {scope}", values)[0])

    def spans_by_minute(self) -> dict[int, int]:
        """Spans that the base set counts, by number of the minute."""
        if "rollup_1m" not in self.present:
            return {}
        scope, values = self._scope("window_start")
        counted = f"SELECT {_MINUTE}, sum(count)::BIGINT FROM rollup_1m WHERE {scope} GROUP BY 1"
        return dict(self.reader.rows(counted, values))

    def told(self) -> Evidence:
        """What the tables of traces tell."""
        deliveries, cells = self._deliveries()
        return replace(
            Evidence.empty(), deliveries=deliveries, delivery_cells=cells, hot_keys=self._hot_keys(),
            exemplars=self._exemplars(),
        )  # fmt: skip

    def counted_after(self, before: Evidence) -> Evidence:
        """`before` with the rollups of these minutes, which come after its own, behind its own."""
        demand = Demand(before.base)
        grains: dict[str, Any] = {
            name: self._grain(getattr(before, name), table, demand) for name, (table, _) in TABLES.items()
        }
        served = bool(grains["base"].keys["kind"].is_in(SERVED).any())
        return replace(before, demand=Grain.concat([before.demand, demand.steady(served)]), **grains)

    def _grain(self, before: Grain, table: str, demand: Demand) -> Grain:
        """A grain continued; rows of the base set carry the counts by second, which tell the demand."""
        if table not in self.present:
            return before
        batches = self.reader.batches(*self._query(table, before.dimensions), ROWS_AT_ONCE)
        return before.continued(batches, demand.add) if before.dimensions == BASE else before.continued(batches)

    def _query(self, table: str, dimensions: tuple[str, ...]) -> tuple[str, dict[str, object]]:
        """Of what `Grain.continued` takes, and of the base set the counts by second."""
        scope, values = self._scope("window_start")
        known = [f"{name} NOT IN ('{UNKNOWN}', '{NONE}')" for name in dimensions if name in _LABELLED]
        where = " AND ".join([scope, *known, _WANTED.get(dimensions, "true")])
        columns = {"busy_ns": "duration_sum_ns::DOUBLE AS busy_ns"}
        names = [
            f"{_MINUTE} AS minute",
            *dimensions,
            f"hash({', '.join(dimensions)}) AS key",
            *(columns.get(name, name) for name in MEASURES[dimensions]),
            *(["latency_buckets"] if dimensions in WITH_CELLS else []),
            *(["second_counts"] if dimensions == BASE else []),
        ]
        return f"SELECT {', '.join(names)} FROM {table} WHERE {where}", values

    def hourly(self) -> pl.DataFrame:
        if "rollup_1h" not in self.present:
            return HOURLY_SCHEMA.to_frame()
        end = self.until.replace(minute=0)
        scope, values = self._scope("window_start", end - timedelta(hours=forecasting.HISTORY_HOURS), end)
        found = self.reader.frame(
            "SELECT window_start AS minute, region, sum(count)::BIGINT AS count FROM rollup_1h "
            f"WHERE {scope} AND kind IN ('server', 'consumer') GROUP BY ALL",
            values,
        )
        return _as(found, HOURLY_SCHEMA)

    def _deliveries(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        if "deliveries_1m" not in self.present:
            return traced.DELIVERIES_SCHEMA.to_frame(), traced.DELIVERY_CELLS_SCHEMA.to_frame()
        by, (scope, values) = "minute, region, tenant, destination", self._scope("window_start")
        entries = "unnest(map_keys(lag_buckets)) AS bucket, unnest(map_values(lag_buckets)) AS spans"
        # One reading of the table for both: planning it takes longer.
        found = self.reader.frame(
            "WITH source AS MATERIALIZED (SELECT window_start AS minute, region, tenant, destination, messages, "
            f"deliveries, negative_lags, lag_buckets FROM deliveries_1m WHERE {scope}) "
            f"SELECT {by}, NULL::INTEGER AS cell, sum(deliveries)::BIGINT AS spans, sum(messages)::BIGINT AS messages "
            f"FROM source GROUP BY {by} UNION ALL "
            f"SELECT {by}, {_cell('bucket', traced.LAG_CELL_BUCKETS)} AS cell, sum(spans)::BIGINT, NULL "
            f"FROM (SELECT {by}, {entries} FROM source) GROUP BY ALL HAVING sum(spans) <> 0 UNION ALL "
            f"SELECT {by}, -1, sum(negative_lags)::BIGINT, NULL FROM source WHERE negative_lags <> 0 GROUP BY ALL",
            values,
        )
        counts = found.filter(pl.col("cell").is_null()).rename({"spans": "deliveries"})
        cells = found.filter(pl.col("cell").is_not_null())
        return _as(counts, traced.DELIVERIES_SCHEMA), _as(cells, traced.DELIVERY_CELLS_SCHEMA)

    def _hot_keys(self) -> pl.DataFrame:
        if "hot_keys_1m" not in self.present:
            return traced.HOT_KEYS_SCHEMA.to_frame()
        scope, values = self._scope("window_start")
        found = self.reader.frame(
            "WITH source AS MATERIALIZED (SELECT window_start AS minute, region, tenant, destination, service_name, "
            f"keyed, key_counts FROM hot_keys_1m WHERE {scope} AND kind = 'server'), "
            "counters AS (SELECT minute, region, tenant, destination, service_name, "
            "unnest(map_entries(key_counts)) AS counter FROM source), "
            "keys AS (SELECT minute, region, tenant, destination, service_name, NULL::VARCHAR AS host, counter.key "
            "AS key, "
            "sum(counter.value)::BIGINT AS count FROM counters GROUP BY ALL), "
            "totals AS (SELECT minute, region, tenant, destination, sum(keyed)::BIGINT AS total FROM source "
            "GROUP BY ALL) "
            "SELECT * FROM keys JOIN totals USING (minute, region, tenant, destination) QUALIFY row_number() OVER "
            f"(PARTITION BY minute, region, tenant, destination ORDER BY count DESC, key) <= {traced.HOT_KEYS_KEPT}",
            values,
        )
        return _as(found, traced.HOT_KEYS_SCHEMA)

    def _exemplars(self) -> pl.DataFrame:
        if "exemplar_cells_1m" not in self.present:
            return traced.EXEMPLARS_SCHEMA.to_frame()
        scope, values = self._scope("window_start")
        found = self.reader.frame(
            "SELECT window_start AS minute, region, service_name, operation, arg_max(tenant, duration_ns) AS tenant, "
            "is_error, max(duration_ns) AS duration_ns, arg_max(trace_id, duration_ns) AS trace_id "
            f"FROM exemplar_cells_1m WHERE {scope} GROUP BY ALL",
            values,
        )
        return _as(found, traced.EXEMPLARS_SCHEMA)

    def skew(self, base: Grain, minutes: Sequence[int]) -> pl.DataFrame:
        """SKEW_SCHEMA of some minutes (numbers, in order) by raw spans of whole traces, one in so many that each minute
        is a part of SKEW_SPANS_MAX at most; `base` tells how many there are."""
        found = [traced.SKEW_SCHEMA.to_frame()]
        if "spans" not in self.present:
            return found[0]
        for _, stretch in groupby(enumerate(minutes), lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in stretch]
            spans = self._spans(numbers[0], _one_in(base, numbers))
            found += [traced.skew(spans)] if spans.height else []
        return pl.concat(found)

    def _spans(self, first: int, one_in: Sequence[int]) -> pl.DataFrame:
        """Spans that call or are called of as many minutes from number `first` on as there are in `one_in`."""
        bounds = minute_time(first), minute_time(first + len(one_in))
        scope, values = self._scope("start_time", *bounds)
        scope += f" AND kind IN {_CONNECTED}"
        if max(one_in) > 1:
            scope += " AND hash(trace_id) % $one_in[1 + (epoch_us(start_time) // 60_000_000)::INTEGER - $first] = 0"
            values |= {"one_in": list(one_in), "first": first}
        return self.reader.frame(
            "SELECT trace_id, span_id, parent_span_id, kind, start_time, duration_ns, region, host, "
            f"[{{'trace_id': links[1].trace_id, 'span_id': links[1].span_id}}] AS links FROM spans WHERE {scope}",
            values,
        )

    def _scope(
        self, time: str, start: datetime | None = None, end: datetime | None = None
    ) -> tuple[str, dict[str, object]]:
        return f"{time} >= $start AND {time} < $until", {"start": start or self.start, "until": end or self.until}


def _one_in(base: Grain, minutes: Sequence[int]) -> list[int]:
    """For each minute a power of two, so that what is taken of one is a part of what is taken of another, or all."""
    part = base.between(minute_time(minutes[0]), minute_time(minutes[-1] + 1)).rows
    wanted = base.keys["kind"].is_in(_CONNECTED).gather(part["series"])
    spans = part.filter(wanted).group_by("minute").agg(pl.col("count").sum())
    counts = dict(spans.iter_rows())
    each = SKEW_SPANS_MAX // SKEW_MINUTES
    return [1 << max(-(-counts.get(number, 0) // each) - 1, 0).bit_length() for number in minutes]


def _cell(bucket: str, size: int) -> str:
    return f"CASE WHEN {bucket} < 0 THEN -1 ELSE {bucket} // {size} END"


def _as(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    return frame.select(schema.names()).cast(schema)
