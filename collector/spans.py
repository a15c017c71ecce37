"""The table `spans`: one row a span, every column described once, here.

The Arrow schema of decoded spans, the DDL of the lake and the page of documentation all follow this list.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

ATTRIBUTES = pa.map_(pa.string(), pa.string())
EVENTS = pa.list_(
    pa.struct(
        [
            pa.field("time", pa.timestamp("ns")),
            pa.field("name", pa.string()),
            pa.field("attributes", ATTRIBUTES),
            pa.field("dropped_attributes_count", pa.uint32()),
        ]
    )
)
LINKS = pa.list_(
    pa.struct(
        [
            pa.field("trace_id", pa.string()),
            pa.field("span_id", pa.string()),
            pa.field("trace_state", pa.string()),
            pa.field("attributes", ATTRIBUTES),
            pa.field("dropped_attributes_count", pa.uint32()),
            pa.field("flags", pa.uint32()),
        ]
    )
)
TEXT = pa.string()
LABEL = pa.dictionary(pa.int32(), pa.string())
SPAN_ATTRIBUTES = pa.map_(LABEL, pa.string())
"""Keys are few: as codes they take a quarter of the time to decode, sort and write."""


@dataclass(frozen=True)
class Column:
    """A column of `spans`: Arrow type, unit ('' where there is none), what it is and where it comes from."""

    name: str
    arrow_type: pa.DataType
    nullable: bool
    unit: str
    source: str
    meaning: str


def _mapped(field: str) -> str:
    return f"configuration `mapping.{field}`"


SPAN_COLUMNS: tuple[Column, ...] = (
    Column("trace_id", TEXT, False, "", "Span.trace_id", "32 lower-case hex digits"),
    Column("span_id", TEXT, False, "", "Span.span_id", "16 lower-case hex digits"),
    Column("parent_span_id", TEXT, True, "", "Span.parent_span_id", "16 hex digits; NULL for a root"),
    Column("trace_state", TEXT, True, "", "Span.trace_state", "W3C tracestate; NULL where empty"),
    Column("flags", pa.uint32(), False, "", "Span.flags", "W3C trace flags and OTLP's remote bits"),
    Column("name", LABEL, False, "", "Span.name", "the span's name"),
    Column(
        "kind",
        LABEL,
        False,
        "",
        "Span.kind",
        "`internal`, `server`, `client`, `producer`, `consumer` or `unspecified`",
    ),
    Column("start_time", pa.timestamp("ns"), False, "UTC", "Span.start_time_unix_nano", "start"),
    Column(
        "duration_ns",
        pa.int64(),
        False,
        "ns",
        "Span.end_time_unix_nano - start",
        "duration; 0 where the end is before the start (the end is then kept in `attributes`)",
    ),
    Column("status", LABEL, False, "", "Span.status.code", "`unset`, `ok` or `error`"),
    Column("status_message", TEXT, True, "", "Span.status.message", "NULL where empty"),
    Column("service_name", LABEL, False, "", _mapped("service_name"), "`unknown_service` where missing"),
    Column("service_namespace", LABEL, True, "", _mapped("service_namespace"), "group of services"),
    Column("service_version", LABEL, True, "", _mapped("service_version"), "version of the service"),
    Column("service_instance_id", LABEL, True, "", _mapped("service_instance_id"), "one running instance"),
    Column("environment", LABEL, True, "", _mapped("environment"), "deployment environment"),
    Column("region", LABEL, True, "", _mapped("region"), "cloud region"),
    Column("zone", LABEL, True, "", _mapped("zone"), "availability zone"),
    Column("host", LABEL, True, "", _mapped("host"), "host name or id"),
    Column(
        "tenant",
        LABEL,
        False,
        "",
        "header `X-Scope-OrgID`, else " + _mapped("tenant"),
        "`default` where nothing names one",
    ),
    Column(
        "component",
        LABEL,
        False,
        "",
        "rules in `collector/decode/semantics.py`",
        "`cache`, `topic`, `database`, `rpc`, `http` or `other`",
    ),
    Column("operation", LABEL, False, "", _mapped("operation"), "operation; the span's name where missing"),
    Column("destination", LABEL, True, "", _mapped("destination"), "name of the cache, topic or collection"),
    Column("cache_hit", pa.bool_(), True, "", _mapped("cache_hit"), "true hit, false miss, NULL not a lookup"),
    Column("payload_bytes", pa.int64(), True, "bytes", _mapped("payload_bytes"), "size of value or message"),
    Column("error_type", LABEL, True, "", _mapped("error_type"), "class of the error"),
    Column("http_status", pa.int32(), True, "", _mapped("http_status"), "HTTP response status code"),
    Column(
        "sample_weight",
        pa.float64(),
        True,
        "spans",
        "Span.trace_state, `ot=th`",
        "how many spans this one stands for; NULL where the sampling probability is unknown",
    ),
    Column("scope_name", LABEL, True, "", "InstrumentationScope.name", "instrumentation library"),
    Column("scope_version", LABEL, True, "", "InstrumentationScope.version", "its version"),
    Column(
        "attributes",
        SPAN_ATTRIBUTES,
        False,
        "",
        "Span.attributes",
        "every attribute that has no column of its own, as text; nested values as JSON",
    ),
    Column("events", EVENTS, False, "", "Span.events", "in the order sent"),
    Column("links", LINKS, False, "", "Span.links", "in the order sent"),
    Column("resource_id", LABEL, False, "", "hash of the Resource", "key of table `resources`"),
    Column("received_at", pa.timestamp("ns"), False, "UTC", "the collector's clock", "when the request came"),
)

SPAN_SCHEMA = pa.schema([pa.field(c.name, c.arrow_type, nullable=c.nullable) for c in SPAN_COLUMNS])

RESOURCE_SCHEMA = pa.schema(
    [
        pa.field("resource_id", pa.string(), nullable=False),
        pa.field("schema_url", pa.string(), nullable=True),
        pa.field("attributes", ATTRIBUTES, nullable=False),
        pa.field("dropped_attributes_count", pa.uint32(), nullable=False),
        pa.field("first_seen_at", pa.timestamp("ns"), nullable=False),
    ]
)
