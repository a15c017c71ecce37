"""Tables, views and macros that analytics adds to the lake, in the order of their creation, after the rollups."""

from __future__ import annotations

from analytics.traces.tables import TABLES
from collector.lake.tables import Definition

TRACE_VIEWS = ("trace_summaries", "service_edges", "exemplars_1m", "hot_keys", "sightings")

ANALYTICS_DEFINITIONS: tuple[Definition, ...] = (
    Definition("bucket_value_ns", "analytics", kind="macro"),
    Definition("merge_buckets", "analytics", kind="macro"),
    Definition("latency_quantile_ns", "analytics", kind="macro"),
    Definition("effective_count", "analytics", kind="macro"),
    Definition("sampling_1h", "analytics", kind="view"),
    Definition("bursts_1m", "analytics", kind="view"),
    Definition("tenant_health", "analytics", kind="view"),
    Definition("findings", "analytics"),
    Definition("judged_minutes", "analytics"),
    *(Definition(table.name, "analytics") for table in TABLES),
    *(Definition(name, "analytics", kind="view") for name in TRACE_VIEWS),
)
