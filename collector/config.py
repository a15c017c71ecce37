"""Configuration: frozen objects, their defaults in one place, validated at start."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from collector.tenants.names import InvalidTenantError, checked_name

TRACE_PARTS = ("critical_path", "edges", "deliveries", "summaries", "exemplars", "hot_keys", "sightings")
"""What the tables of traces consist of, each to be turned off by leaving it out."""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


class Section(BaseModel):
    """A table of the TOML file. Unknown keys are errors, values never change after start."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StorageConfig(Section):
    """Where spans and catalog live."""

    data: str = Field("spanlake-data", description="folder (or file:// URL) of catalog, data files and spool")
    catalog: str = Field("", description="URL of the catalog; empty: SQLite in the data folder")


class RetentionConfig(Section):
    """How long what is stored is kept. Whole data files go, once all of their rows are old enough; 0 keeps all."""

    spans_days: float = Field(0.0, ge=0, allow_inf_nan=False, description="days since a span was received")
    sampled_spans_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="days since a span was received that sampling kept"
    )
    rollup_minutes_days: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="days since the window of a rollup by minute and of the tables of traces",
    )
    rollup_hours_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="days since the window of a rollup by hour (its name ends in _1h)"
    )
    traces_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="days since the window of a trace's summary (table trace_rows)"
    )
    findings_days: float = Field(400.0, ge=0, allow_inf_nan=False, description="days since the minute of a finding")
    sightings_days: float = Field(
        400.0, ge=0, allow_inf_nan=False, description="days since a version, instance or host was last seen"
    )
    total_bytes: int = Field(
        0, ge=0, description="bytes of all data files; beyond: the oldest spans go, however young they are"
    )


class SamplingConfig(Section):
    """Which old spans are kept, as whole traces. Rollups and all other tables stay those of all spans."""

    after_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="days since a span was received, then it is sampled; 0: never"
    )
    share: float = Field(
        0.1, gt=0, le=1, description="share of the traces that are kept where no reason below keeps them"
    )
    slow_quantile: float = Field(
        0.999,
        ge=0.5,
        le=1,
        description="traces with a span that is slower than this quantile of its tenant, service and operation in its "
        "hour are kept; 1: none",
    )
    rare_spans: int = Field(
        10,
        ge=0,
        le=1000,
        description="traces of the first so many spans of each operation of a service and tenant in a day are kept, so "
        "all of rarer operations; 0: none",
    )
    late_hours: float = Field(
        1.0, ge=0, le=168, description="spans of a trace that come within this time of each other are decided as one"
    )


class CollectorConfig(Section):
    """The servers and the way to the lake."""

    grpc: str = Field("127.0.0.1:4317", description="HOST:PORT of OTLP/gRPC; port 0 takes a free one")
    http: str = Field("127.0.0.1:4318", description="HOST:PORT of OTLP/HTTP; port 0 takes a free one")
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins whose pages may send over OTLP/HTTP, as https://app.example:8443, or * for any; "
        "empty: no CORS",
    )
    request_bytes_max: int = Field(64 * 2**20, ge=1024, description="bytes of a request after decompression")
    requests_in_flight_max: int = Field(4096, ge=1, description="requests received and not yet answered")
    pending_bytes_max: int = Field(
        128 * 2**20, ge=2**20, description="bytes received and not yet spooled; beyond: retryable refusal"
    )
    unsealed_bytes_max: int = Field(
        96 * 2**20, ge=2**20, description="bytes of decoded spans kept for the seal; beyond: read back from the spool"
    )
    memory_bytes_max: int = Field(
        1408 * 2**20,
        ge=960 * 2**20,
        description="resident bytes of the process, on Linux; from 448 MiB below: retryable refusal",
    )
    spool_bytes_max: int = Field(
        8 * 2**30, ge=2**20, description="bytes in the spool, not yet in the lake; beyond: retryable refusal"
    )
    spool_group_bytes_max: int = Field(8 * 2**20, ge=2**16, description="bytes of requests spooled in one fsync")
    seal_interval_seconds: float = Field(1.0, gt=0, le=60, description="time between commits to the lake")
    seal_spans_max: int = Field(100_000, ge=1, description="spans after which a commit does not wait for the interval")
    dedup_window_seconds: float = Field(3600.0, ge=0, description="how long a repeated request is recognised")
    merge_interval_seconds: float = Field(30.0, gt=0, description="time between looks for small files to merge")
    stop_timeout_seconds: float = Field(30.0, gt=0, description="time for a graceful stop")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if any(origin != "*" and not _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("not an origin")
        return origins


class TlsConfig(Section):
    """TLS of both servers. The files are read anew when they change; new connections get the new ones."""

    certificate: str = Field("", description="PEM file of the certificate and its intermediates; empty: no TLS")
    key: str = Field("", description="PEM file of the certificate's private key, not encrypted")
    client_ca: str = Field("", description="PEM file of authorities; clients must have a certificate of theirs (mTLS)")


class TelemetryConfig(Section):
    """What the collector tells about itself. A default port that is in use gives way to a free one."""

    metrics: str = Field("127.0.0.1:8888", description="HOST:PORT of Prometheus metrics at /metrics; empty: none")
    health: str = Field("127.0.0.1:13133", description="HOST:PORT of health at / and /live; empty: none")
    traces_endpoint: str = Field(
        "", description="URL of the OTLP endpoint that takes the collector's own spans; empty: none are made"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto, json or text; auto: text on a terminal, else JSON lines"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error: the least that is logged"
    )


def _tenant(name: str) -> str:
    try:
        return checked_name(name)
    except InvalidTenantError as error:
        raise ValueError(str(error)) from error


class AuthConfig(Section):
    """Who may write: bearer tokens, each of one tenant, made by `spanlake tokens add`."""

    enabled: bool = Field(False, description="refuse requests without a valid `Authorization: Bearer` token")


class TenantQuota(Section):
    """What one tenant may send; a key that is missing has the value of [quotas]."""

    spans_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)
    bytes_per_second: float | None = Field(None, ge=0, allow_inf_nan=False)
    burst_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)


class QuotasConfig(Section):
    """What each tenant may send. Beyond it requests are refused, to be sent again when there is room."""

    spans_per_second: float = Field(0.0, ge=0, description="spans per second of a tenant; 0: no bound")
    bytes_per_second: float = Field(
        0.0, ge=0, description="bytes per second of a tenant, after decompression; 0: no bound"
    )
    burst_seconds: float = Field(10.0, gt=0, description="seconds of unused quota that a tenant can save up")
    tenants: dict[Annotated[str, AfterValidator(_tenant)], TenantQuota] = Field(
        {}, description="quotas of single tenants: a table [quotas.tenants.NAME] with the keys above"
    )


class LimitsConfig(Section):
    """Bounds on what single spans carry. What is beyond is cut or dropped, marked on the span and counted."""

    attributes_max: int = Field(128, ge=1, description="attributes of a span, event, link, scope or resource")
    attribute_key_bytes_max: int = Field(256, ge=1, description="bytes of a key; beyond: the attribute is dropped")
    attribute_value_bytes_max: int = Field(
        16_384, ge=256, description="bytes of a value as text, also of a status message or trace state; beyond: cut"
    )
    name_bytes_max: int = Field(1024, ge=16, description="bytes of the name of a span, event or scope; beyond: cut")
    events_max: int = Field(128, ge=0, description="events of a span; beyond: dropped")
    links_max: int = Field(128, ge=0, description="links of a span; beyond: dropped")


class MappingConfig(Section):
    """Which attributes feed a column: candidates in order, the first present wins.

    A candidate is looked up on the span, then on its resource; `span:` or `resource:` before it picks one.
    A span attribute that fills a column is moved there; every other attribute stays in `attributes`.
    """

    service_name: tuple[str, ...] = ("resource:service.name",)
    service_namespace: tuple[str, ...] = ("resource:service.namespace",)
    service_version: tuple[str, ...] = ("resource:service.version",)
    service_instance_id: tuple[str, ...] = ("resource:service.instance.id",)
    environment: tuple[str, ...] = (
        "resource:deployment.environment.name",
        "resource:deployment.environment",
    )
    region: tuple[str, ...] = ("cloud.region", "aws.region", "region")
    zone: tuple[str, ...] = ("cloud.availability_zone", "cloud.zone", "zone")
    host: tuple[str, ...] = ("resource:host.name", "resource:host.id", "resource:k8s.node.name")
    tenant: tuple[str, ...] = ("tenant.id", "tenant", "tenant_id", "tenant.name")
    operation: tuple[str, ...] = (
        "db.operation.name",
        "db.operation",
        "messaging.operation.name",
        "messaging.operation",
        "messaging.operation.type",
        "cache.operation",
        "rpc.method",
    )
    destination: tuple[str, ...] = (
        "messaging.destination.name",
        "messaging.destination",
        "cache.name",
        "db.collection.name",
        "db.namespace",
        "db.name",
    )
    cache_hit: tuple[str, ...] = ("cache.hit", "cache_hit", "db.cache.hit")
    payload_bytes: tuple[str, ...] = (
        "messaging.message.body.size",
        "messaging.message.payload_size_bytes",
        "cache.item.size",
        "cache.value.size",
        "payload.bytes",
    )
    error_type: tuple[str, ...] = ("error.type", "exception.type")
    http_status: tuple[str, ...] = ("http.response.status_code", "http.status_code")
    cache_systems: tuple[str, ...] = Field(
        ("redis", "valkey", "memcached", "keydb", "dragonfly", "hazelcast", "momento", "infinispan"),
        description="values of db.system.name (or db.system) that make a span a cache operation",
    )


BASE_SET = "base"
DIMENSIONS = (
    "region", "zone", "tenant", "service_name", "component", "operation", "kind", "host", "service_version",
    "service_instance_id", "destination", "error_type", "environment", "http_status",
)  # fmt: skip
"""Columns of spans that rollups can have as dimensions."""
DIMENSION_SETS: dict[str, list[str]] = {
    "host": ["region", "host", "tenant", "service_name", "kind"],
    "version": ["region", "service_name", "service_version", "service_instance_id", "operation", "kind"],
    "destination": ["region", "tenant", "component", "destination", "operation", "kind"],
    "error": ["region", "tenant", "service_name", "operation", "kind", "error_type"],
}


def _set_name(name: str) -> str:
    if name == BASE_SET:
        raise ValueError(f"the set {BASE_SET!r} is always there, in rollup_1m and rollup_1h; expected another name")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise ValueError("expected a name of a to z, 0 to 9 and _ that begins with a letter, of at most 40 characters")
    return name


def _dimensions(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"expected different ones of {', '.join(DIMENSIONS)}, or [] for no such rollups")
    return names


_SetName = Annotated[str, AfterValidator(_set_name)]
_Dimensions = Annotated[list[str], AfterValidator(_dimensions)]


class AnalyzeConfig(Section):
    """The jobs, and how many different values rollups keep apart before they fold the rest into `(overflow)`."""

    interval_seconds: float = Field(2.0, gt=0, description="time between runs")
    spans_per_run_max: int = Field(2_000_000, ge=1000, description="spans a run reads before it commits")
    regions_max: int = Field(1000, ge=1, description="regions in an hour of a rollup; also zones, environments")
    tenants_max: int = Field(10_000, ge=1, description="tenants in an hour of a rollup")
    services_per_tenant_max: int = Field(1000, ge=1, description="services of a tenant in an hour of a rollup")
    operations_per_service_max: int = Field(
        1000, ge=1, description="operations of a service in an hour of a rollup; also hosts, versions, error types, ..."
    )
    combinations_per_service_max: int = Field(
        10_000, ge=1, description="combinations of operation, host, version, ... of a service in an hour of a rollup"
    )
    dimension_sets: dict[_SetName, _Dimensions] = Field(
        DIMENSION_SETS,
        description="rollups by further dimensions, as tables rollup_NAME_1m and rollup_NAME_1h; a name with [] "
        "has none, a default that is not named stays",
    )
    trace_parts: tuple[str, ...] = Field(
        TRACE_PARTS, description="tables of traces that are kept: " + ", ".join(TRACE_PARTS) + "; empty: none"
    )
    traces_interval_seconds: float = Field(10.0, gt=0, description="time between runs of the tables of traces")
    late_seconds: float = Field(
        300.0, ge=0, le=3600, description="a span that comes so late after others of its trace still joins them"
    )
    late_spans_max: int = Field(
        500_000, ge=0, description="newest spans that late ones may join; each takes up to 400 bytes of memory"
    )
    key_attributes: tuple[str, ...] = Field(
        ("cache.key.hash", "cache.key", "db.redis.key", "db.operation.parameter.key", "db.query.parameter.key"),
        description="attributes that name the key of a cache operation: the first that a span has",
    )
    hash_keys: bool = Field(True, description="store keys as keyed hashes, by a secret in the data folder")

    @field_validator("dimension_sets")
    @classmethod
    def _with_defaults(cls, sets: dict[str, list[str]]) -> dict[str, list[str]]:
        return {**DIMENSION_SETS, **sets}

    @field_validator("trace_parts")
    @classmethod
    def _are_parts(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if not set(parts) <= set(TRACE_PARTS):
            raise ValueError("not a part")
        return parts


class Objective(Section):
    """What a class of operations promises: a share of spans that neither fail nor take longer than a threshold."""

    component: str = ""
    service: str = ""
    operation: str = ""
    target: float = Field(0.999, gt=0, lt=1)
    latency_ms: float | None = Field(None, gt=0)


DEFAULT_OBJECTIVES = {
    "cache": Objective(component="cache", target=0.99, latency_ms=10),
    "topics": Objective(component="topic", target=0.99, latency_ms=100),
}


class InsightConfig(Section):
    """What counts as a finding."""

    enabled: bool = Field(True, description="look for findings each minute, as part of the jobs")
    history_minutes: int = Field(
        120, ge=20, le=1440, description="minutes that are looked at: the last ones are compared with those before"
    )
    recent_minutes: int = Field(15, ge=3, le=240, description="minutes, the newest, that are judged")
    volume_min: int = Field(60, ge=1, description="spans that a place needs in the minutes that are judged")
    ratio_min: float = Field(1.5, gt=1, description="least ratio to the usual that is worth telling")
    deviation_min: float = Field(6.0, gt=0, description="least distance from the usual, in standard deviations")
    false_discovery_rate: float = Field(0.001, gt=0, lt=1, description="of Benjamini and Hochberg, within each family")
    resolve_minutes: int = Field(3, ge=1, description="minutes without a finding after which it is resolved")
    objectives: dict[str, Objective] = Field(
        DEFAULT_OBJECTIVES,
        description="service level objectives: a table [insight.objectives.NAME] with component, service and operation "
        "(empty: any), target (share of good spans) and latency_ms (longer is not good)",
    )


class AlertsConfig(Section):
    """Who is told of findings."""

    url: str = Field("", description="webhook that findings are posted to; empty: none")
    format: Literal["json", "alertmanager"] = Field(
        "json", description="json or alertmanager: generic JSON, or Alertmanager's API v2 below the url"
    )
    severity: Literal["info", "warning", "critical"] = Field(
        "warning", description="info, warning or critical: the least that is told"
    )
    silences: tuple[str, ...] = Field(
        (),
        description="what is not told: texts such as kind=burst,tenant=acme,until=2026-03-01T12:00Z, any part of them",
    )


class QueryConfig(Section):
    """Bounds of SQL queries by users and pages."""

    timeout_seconds: float = Field(60.0, gt=0, description="a query is interrupted after this time")
    memory_bytes_max: int = Field(1024 * 2**20, ge=64 * 2**20, description="memory of one reading process")


class DashboardConfig(Section):
    """The pages."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8501, ge=0, le=65535, description="port; 0 takes a free one")
    refresh_seconds: float = Field(5.0, ge=1, description="time between refreshes while a page is open")


class Config(Section):
    """All of it; one field a table of the TOML file."""

    storage: StorageConfig = StorageConfig()
    retention: RetentionConfig = RetentionConfig()
    sampling: SamplingConfig = SamplingConfig()
    collector: CollectorConfig = CollectorConfig()
    tls: TlsConfig = TlsConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    auth: AuthConfig = AuthConfig()
    quotas: QuotasConfig = QuotasConfig()
    limits: LimitsConfig = LimitsConfig()
    mapping: MappingConfig = MappingConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    insight: InsightConfig = InsightConfig()
    alerts: AlertsConfig = AlertsConfig()
    query: QueryConfig = QueryConfig()
    dashboard: DashboardConfig = DashboardConfig()
