"""Which traces of some files of spans are kept, with which factor, and the spans that are kept, as a file.

A trace is decided once, where the first of its files is sampled, from all of its spans in the lake that came within
`late_hours` of those files. It is kept for sure (factor 1) where a span failed, was slow or belongs to a rare
operation: reasons that follow from the data alone. Of the others a share stays, by a hash of the trace's id, with
factor 1 / share: sums of weights estimate without bias what was there (Horvitz and Thompson, "A Generalization of
Sampling Without Replacement From a Finite Universe", JASA 47, 1952). The hash is not the randomness that
OpenTelemetry's samplers take from the id, so what they kept is thinned anew, and probabilities multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from collector.config import SamplingConfig
from collector.lake.engine import literal
from collector.lake.lake import Reader
from collector.lake.order import by_tenant_and_time
from collector.lake.retention import SPANS, DataFile
from collector.lake.rewrite import BLOCK_ROWS, ROWS_PER_GROUP, conformed
from collector.lake.segments import new_file
from collector.spans import SPAN_SCHEMA

HOUR_NS = 3600 * 10**9
OPERATIONS_PER_SERVICE_MAX = 1000
"""A service with more operations in a day names them by what differs each time: none of them is rare then."""

_OPERATION = "day, tenant, service_name, operation"
_SPAN_SQL = f"""
SELECT trace_id, received_at::DATE AS day, tenant, service_name, operation, start_time, duration_ns,
    status = 'error' AS is_error, received_at
FROM {SPANS}
"""
_OPERATIONS_SQL = f"""
CREATE TEMP TABLE operations AS
WITH earlier AS (SELECT {_OPERATION}, sum(spans)::BIGINT AS spans FROM sampling_operations GROUP BY ALL),
counted AS (
    SELECT {_OPERATION}, count(*) FILTER (is_sampled) AS fresh,
        arg_min(trace_id, start_time, greatest($rare_spans, 1)) AS first_traces
    FROM looked_at GROUP BY ALL
)
SELECT {_OPERATION}, COALESCE(fresh, 0) AS fresh, COALESCE(spans, 0) < $rare_spans
    AND count(*) OVER (PARTITION BY day, tenant, service_name) <= {OPERATIONS_PER_SERVICE_MAX} AS is_rare, first_traces
FROM counted FULL JOIN earlier USING ({_OPERATION})
"""
_DECISIONS_SQL = """
CREATE TEMP TABLE decisions AS
WITH carried AS (SELECT trace_id, any_value(factor) AS factor FROM sampling_traces GROUP BY trace_id),
limits AS (
    SELECT tenant, service_name, operation, date_trunc('hour', start_time::TIMESTAMP) AS hour,
        quantile_disc(duration_ns, $slow_quantile) AS slow_ns
    FROM looked_at WHERE is_sampled GROUP BY ALL
),
traces AS (
    SELECT trace_id, bool_or(is_error) AS is_error, bool_or(duration_ns > slow_ns) IS TRUE AS is_slow,
        bool_or(NOT is_sampled) AS has_more
    FROM looked_at LEFT JOIN limits ON limits.tenant = looked_at.tenant
        AND limits.service_name = looked_at.service_name AND limits.operation = looked_at.operation
        AND limits.hour = date_trunc('hour', start_time::TIMESTAMP)
    GROUP BY trace_id
),
rare AS (SELECT DISTINCT unnest(first_traces) AS trace_id FROM operations WHERE is_rare)
SELECT trace_id, is_error, is_slow, rare.trace_id IS NOT NULL AS is_rare, has_more,
    carried.factor IS NOT NULL AS is_known,
    CASE
        WHEN carried.factor IS NOT NULL THEN carried.factor
        WHEN is_error OR is_slow OR rare.trace_id IS NOT NULL THEN 1
        WHEN md5_number_lower(trace_id) < $share * 18446744073709551616.0 THEN 1 / $share
        ELSE 0
    END::DOUBLE AS factor
FROM traces LEFT JOIN rare USING (trace_id) LEFT JOIN carried USING (trace_id)
"""
_COUNTS_SQL = """
SELECT count(*), count(*) FILTER (is_error), count(*) FILTER (NOT is_error AND is_slow),
    count(*) FILTER (NOT is_error AND NOT is_slow AND is_rare),
    count(*) FILTER (NOT is_error AND NOT is_slow AND NOT is_rare AND factor > 0)
FROM decisions WHERE NOT is_known
"""
# OpenTelemetry, "TraceState: Probability Sampling": the threshold T of weight w is 2^56 (1 - 1 / w), in 14 hex digits.
_THRESHOLD = "rtrim(format('{:014x}', least((1 - 1 / weight) * 72057594037927936.0, 72057594037927935.0)::BIGINT), '0')"
_TRACE_STATE = rf"""CASE
    WHEN COALESCE(trace_state, '') = '' THEN 'ot=th:' || {_THRESHOLD}
    WHEN regexp_matches(trace_state, '(^|,)[ \t]*ot=([^,;]*;)*?th:')
    THEN regexp_replace(trace_state, '((?:^|,)[ \t]*ot=(?:[^,;]*;)*?th:)[^,;]*', '\1' || {_THRESHOLD})
    WHEN regexp_matches(trace_state, '(^|,)[ \t]*ot=')
    THEN regexp_replace(trace_state, '((?:^|,)[ \t]*ot=)', '\1th:' || {_THRESHOLD} || ';')
    ELSE 'ot=th:' || {_THRESHOLD} || ',' || trace_state
END"""


@dataclass(frozen=True)
class Decided:
    """What was decided about some files. `weight` sums `sample_weight`, or 1 where it is unknown.

    Traces are counted where they are decided: for the first reason that keeps them, of error, slow, rare and share.
    `kept_file` holds what is kept, None where nothing is. `carried` (trace_id, factor, until) has those that go on in
    other files; `operations` (day, tenant, service_name, operation, spans) what rare operations are told by.
    """

    spans: int
    weight: float
    kept_spans: int
    kept_weight: float
    traces: int
    error_traces: int
    slow_traces: int
    rare_traces: int
    share_traces: int
    oldest_ns: int
    kept_file: Path | None
    carried: pa.Table
    operations: pa.Table


def decide(reader: Reader, files: Sequence[DataFile], config: SamplingConfig, folder: Path) -> Decided:
    """Decide about the spans of `files` and write those that are kept to a new file of `folder`.

    Holds of each span a few columns, and whole a block of those that are kept. Raises duckdb.Error and OSError.
    """
    newest_ns = max(file.newest_ns or 0 for file in files)
    until_ns = newest_ns + int(config.late_hours * HOUR_NS)
    chosen = f"filename IN ({', '.join(literal(file.path) for file in files)})"
    _look(reader, chosen, newest_ns, until_ns)
    reader.rows(_OPERATIONS_SQL, {"rare_spans": config.rare_spans})
    reader.rows(_DECISIONS_SQL, {"slow_quantile": config.slow_quantile, "share": config.share})
    here = f"{chosen} AND received_at <= make_timestamp_ns({newest_ns})"
    spans, weight = reader.row(
        f"SELECT count(*), COALESCE(sum(COALESCE(sample_weight, 1)), 0) FROM {SPANS} WHERE {here}"
    )
    traces, error_traces, slow_traces, rare_traces, share_traces = reader.row(_COUNTS_SQL)
    (oldest_ns,) = reader.row("SELECT epoch_ns(min(received_at)) FROM looked_at WHERE is_sampled")
    kept_file, kept_spans, kept_weight = _write(reader, here, folder)
    return Decided(
        spans=int(spans),
        weight=float(weight),
        kept_spans=kept_spans,
        kept_weight=kept_weight,
        traces=traces,
        error_traces=error_traces,
        slow_traces=slow_traces,
        rare_traces=rare_traces,
        share_traces=share_traces,
        oldest_ns=oldest_ns,
        kept_file=kept_file,
        carried=reader.arrow(
            "SELECT trace_id, factor, make_timestamp_ns(?) AS until FROM decisions WHERE has_more", [until_ns]
        ),
        operations=reader.arrow(f"SELECT {_OPERATION}, fresh AS spans FROM operations WHERE is_rare AND fresh > 0"),
    )


def _look(reader: Reader, chosen: str, newest_ns: int, until_ns: int) -> None:
    """Make the table `looked_at`: the spans of the chosen files, and others of the same traces up to a time."""
    reader.rows(
        f"CREATE TEMP TABLE looked_at AS SELECT *, true AS is_sampled FROM ({_SPAN_SQL} "
        f"WHERE {chosen} AND received_at <= make_timestamp_ns({newest_ns}))"
    )
    reader.rows(
        f"INSERT INTO looked_at SELECT *, false FROM ({_SPAN_SQL} WHERE NOT {chosen} "
        f"AND received_at <= make_timestamp_ns({until_ns}) AND trace_id IN (SELECT trace_id FROM looked_at))"
    )


def _write(reader: Reader, chosen: str, folder: Path) -> tuple[Path | None, int, float]:
    """The file of what is kept, sorted in blocks, its spans and the sum of their weights.

    What a kept span stands for is in `sample_weight` and, as OpenTelemetry has it, in `trace_state`.
    """
    kept = reader.batches(
        "SELECT * EXCLUDE (factor, weight) REPLACE ("
        "CASE WHEN factor > 1 THEN weight ELSE sample_weight END AS sample_weight, "
        f"CASE WHEN factor > 1 THEN {_TRACE_STATE} ELSE trace_state END AS trace_state) "
        "FROM (SELECT spans.*, factor, COALESCE(sample_weight, 1) * factor AS weight "
        f"FROM {SPANS} JOIN decisions USING (trace_id) WHERE {chosen} AND factor > 0)",
        rows=BLOCK_ROWS,
    )
    blocks = (by_tenant_and_time(conformed(pa.Table.from_batches([batch]), SPAN_SCHEMA)) for batch in kept)
    block: pa.Table | None = next(blocks, None)
    if block is None:
        return None, 0, 0.0
    spans, weight = 0, 0.0
    with new_file(folder, "sampled", block, ROWS_PER_GROUP) as new:
        while block is not None:
            new.writer.write_table(block, row_group_size=ROWS_PER_GROUP)
            spans += block.num_rows
            weight += pc.sum(pc.fill_null(block.column("sample_weight"), 1.0), min_count=0).as_py()
            block = None  # before the next one is read
            block = next(blocks, None)
    return new.path, spans, weight
