"""Configuration: frozen objects, their defaults in one place, validated at start."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A table of the TOML file. Unknown keys are errors, values never change after start."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class StorageConfig(Section):
    """Where spans and catalog live."""

    data: str = Field("spanlake-data", description="folder (or file:// URL) of catalog, data files and spool")
    catalog: str = Field("", description="URL of the catalog; empty: SQLite in the data folder")


class CollectorConfig(Section):
    """The servers and the way to the lake."""

    grpc: str = Field("127.0.0.1:4317", description="HOST:PORT of OTLP/gRPC; port 0 takes a free one")
    http: str = Field("127.0.0.1:4318", description="HOST:PORT of OTLP/HTTP; port 0 takes a free one")
    request_bytes_max: int = Field(64 * 2**20, ge=1024, description="bytes of a request after decompression")
    requests_in_flight_max: int = Field(4096, ge=1, description="requests received and not yet answered")
    pending_bytes_max: int = Field(
        128 * 2**20, ge=2**20, description="bytes received and not yet spooled; beyond: retryable refusal"
    )
    unsealed_bytes_max: int = Field(
        192 * 2**20, ge=2**20, description="bytes of decoded spans kept for the seal; beyond: read back from the spool"
    )
    spool_bytes_max: int = Field(
        8 * 2**30, ge=2**20, description="bytes in the spool, not yet in the lake; beyond: retryable refusal"
    )
    spool_group_bytes_max: int = Field(8 * 2**20, ge=2**16, description="bytes of requests spooled in one fsync")
    seal_interval_seconds: float = Field(1.0, gt=0, le=60, description="time between commits to the lake")
    seal_spans_max: int = Field(200_000, ge=1, description="spans after which a commit does not wait for the interval")
    dedup_window_seconds: float = Field(3600.0, ge=0, description="how long a repeated request is recognised")
    merge_interval_seconds: float = Field(10.0, gt=0, description="time between looks for small files to merge")
    stop_timeout_seconds: float = Field(30.0, gt=0, description="time for a graceful stop")


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


class AnalyzeConfig(Section):
    """The jobs."""

    interval_seconds: float = Field(2.0, gt=0, description="time between runs")
    spans_per_run_max: int = Field(2_000_000, ge=1000, description="spans a run reads before it commits")


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
    collector: CollectorConfig = CollectorConfig()
    mapping: MappingConfig = MappingConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    query: QueryConfig = QueryConfig()
    dashboard: DashboardConfig = DashboardConfig()
