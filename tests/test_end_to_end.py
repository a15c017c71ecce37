"""Nothing simulated: a real Redis and a real NATS, real SDKs with zero-code instrumentation, a real collector.

What the clients counted must be what SQL and the rollups say, also where the collector is killed in the middle.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

APPLICATIONS = Path(__file__).parent / "applications"
BIN = Path(sys.executable).parent
REGIONS = ("eu-west-1", "us-east-1")
TENANTS = ("acme", "globex")
OPERATIONS = 250
MESSAGES = 150
SUBSCRIBERS = 2
Place = tuple[str, str]


def collect(data: Path, grpc: str = "127.0.0.1:0", http: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], dict]:
    command = [str(BIN / "spanlake"), "collect", "--data", str(data), "--grpc", grpc, "--http", http]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def application(
    name: str, protocol: str, endpoint: str, resource: dict[str, str], *arguments: object
) -> subprocess.Popen:
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{endpoint}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BSP_MAX_QUEUE_SIZE": "50000",
        "OTEL_BSP_EXPORT_TIMEOUT": "60000",
        "OTEL_RESOURCE_ATTRIBUTES": ",".join(f"{key}={value}" for key, value in resource.items()),
    }
    command = [BIN / "opentelemetry-instrument", sys.executable, APPLICATIONS / name, *arguments]
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def query(data: Path, sql: str) -> list[dict]:
    command = [str(BIN / "spanlake"), "sql", "--data", str(data), "--format", "json", sql]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def counts_of(process: subprocess.Popen) -> Counter[str]:
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors
    return Counter(json.loads(output.splitlines()[-1]))


@dataclass
class Clients:
    """The applications of all places (region, tenant), and what they counted."""

    redis: dict[Place, subprocess.Popen] = field(default_factory=dict)
    publishers: dict[Place, subprocess.Popen] = field(default_factory=dict)
    subscribers: dict[tuple[str, str, int], subprocess.Popen] = field(default_factory=dict)
    counted: dict[Place, Counter[str]] = field(default_factory=dict)
    published: dict[Place, int] = field(default_factory=Counter)
    delivered: dict[Place, int] = field(default_factory=Counter)
    delivered_bytes: dict[Place, int] = field(default_factory=Counter)

    def start(self, ready: dict[str, str], redis_port: int, nats_port: int) -> None:
        protocols = [("grpc", ready["grpc"]), ("http/protobuf", ready["http"])]
        for i, place in enumerate((region, tenant) for region in REGIONS for tenant in TENANTS):
            region, tenant = place
            resource = {"cloud.region": region, "tenant.id": tenant}

            def run(
                name: str,
                service: str,
                *arguments: object,
                resource: dict[str, str] = resource,
                exporter: tuple[str, str] = protocols[i % 2],
            ) -> subprocess.Popen:
                return application(name, *exporter, resource | {"service.name": service}, *arguments)

            self.redis[place] = run("redis_client.py", "cache-client", redis_port, OPERATIONS, i)
            if tenant == "acme":
                subject = f"orders.{region}"
                for copy in range(SUBSCRIBERS):
                    subscriber = run("nats_subscriber.py", "billing", nats_port, subject)
                    self.subscribers[region, tenant, copy] = subscriber
                    assert subscriber.stdout is not None
                    assert json.loads(subscriber.stdout.readline()) == {"subscribed": True}
                self.publishers[place] = run("nats_publisher.py", "shop", nats_port, subject, MESSAGES)

    def finish(self) -> None:
        self.counted = {place: counts_of(process) for place, process in self.redis.items()}
        self.published = {place: counts_of(process)["published"] for place, process in self.publishers.items()}
        for (region, tenant, _), process in self.subscribers.items():
            counts = counts_of(process)
            self.delivered[region, tenant] += counts["deliveries"]
            self.delivered_bytes[region, tenant] += counts["bytes"]

    def expected(self) -> dict[tuple[str, str, str, str, str], tuple[int, int]]:
        """(count, errors) by region, tenant, component, operation and kind."""
        expected = {}
        for place, counts in self.counted.items():
            for operation in ("GET", "SET", "DEL"):
                expected[*place, "cache", operation, "client"] = (counts[operation], 0)
            expected[*place, "cache", "LPUSH", "client"] = (counts["LPUSH"], counts["errors"])
            expected[*place, "cache", "lookup", "internal"] = (counts["hits"] + counts["misses"], 0)
        for place, messages in self.published.items():
            expected[*place, "topic", "publish", "producer"] = (messages, 0)
            expected[*place, "topic", "process", "consumer"] = (self.delivered[place], 0)
        return expected

    def kill(self) -> None:
        for process in (*self.redis.values(), *self.publishers.values(), *self.subscribers.values()):
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def clients() -> Iterator[Clients]:
    clients = Clients()
    yield clients
    clients.kill()


@pytest.fixture
def collectors() -> Iterator[list[subprocess.Popen]]:
    collectors: list[subprocess.Popen] = []
    yield collectors
    for collector in collectors:
        if collector.poll() is None:
            collector.kill()
            collector.communicate()


@pytest.mark.needs_redis
@pytest.mark.needs_nats
@pytest.mark.timeout(240)
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed in the middle"])
def test_what_the_clients_counted_is_what_sql_and_rollups_say(
    tmp_path: Path,
    redis_server: int,
    nats_server: int,
    clients: Clients,
    collectors: list[subprocess.Popen],
    killed: bool,
) -> None:
    data = tmp_path / "data"
    collector, ready = collect(data)
    collectors.append(collector)
    clients.start(ready, redis_server, nats_server)
    if killed:
        while not query(data, "SELECT count(*) > 50 AS enough FROM spans")[0]["enough"]:
            pass
        collector.send_signal(signal.SIGKILL)
        collector.wait()
        collector, _ = collect(data, ready["grpc"], ready["http"])
        collectors.append(collector)
    clients.finish()
    collector.terminate()
    assert collector.wait(60) == 0
    analyzed = [str(BIN / "spanlake"), "analyze", "--data", str(data), "--once"]
    subprocess.run(analyzed, check=True, capture_output=True, timeout=60)

    assert sum(clients.delivered.values()) == len(REGIONS) * SUBSCRIBERS * MESSAGES
    assert operations(data, "spans", "count(*)", "count(*) FILTER (status = 'error')") == clients.expected()
    for rollup in ("rollup_1m", "rollup_1h"):
        assert operations(data, rollup, "sum(count)", "sum(errors)") == clients.expected()
    hits_and_bytes = {
        "spans": ("count(*) FILTER (cache_hit)", "count(*) FILTER (NOT cache_hit)", "coalesce(sum(payload_bytes), 0)"),
        "rollup_1m": ("sum(hits)", "sum(misses)", "sum(bytes)"),
    }
    for source, columns in hits_and_bytes.items():
        for place, figures in lookups(data, source, *columns).items():
            counted = clients.counted[place]
            assert figures == (counted["hits"], counted["misses"], clients.delivered_bytes[place])
            assert min(figures[:2]) > 0
    assert deliveries(data) == [(region, SUBSCRIBERS * MESSAGES, MESSAGES) for region in REGIONS]
    assert query(data, "SELECT count(*) - count(DISTINCT span_id) AS doubled FROM spans") == [{"doubled": 0}]


def operations(data: Path, source: str, count: str, errors: str) -> dict[tuple[str, ...], tuple[int, int]]:
    rows = query(
        data,
        f"SELECT region, tenant, component, operation, kind, ({count})::BIGINT AS n, ({errors})::BIGINT AS errors "
        f"FROM {source} GROUP BY ALL",
    )
    keys = ("region", "tenant", "component", "operation", "kind")
    return {tuple(row[key] for key in keys): (row["n"], row["errors"]) for row in rows}


def lookups(data: Path, source: str, hits: str, misses: str, size: str) -> dict[Place, tuple[int, int, int]]:
    rows = query(
        data,
        f"SELECT region, tenant, ({hits})::BIGINT AS hits, ({misses})::BIGINT AS misses, ({size})::BIGINT AS size "
        f"FROM {source} WHERE component = 'cache' OR kind = 'consumer' GROUP BY ALL",
    )
    assert len(rows) == len(REGIONS) * len(TENANTS)
    return {(row["region"], row["tenant"]): (row["hits"], row["misses"], row["size"]) for row in rows}


def deliveries(data: Path) -> list[tuple[str, int, int]]:
    rows = query(
        data,
        "SELECT from_region AS region, count(*) AS n, count(DISTINCT producer_span_id) AS messages "
        "FROM topic_deliveries GROUP BY ALL ORDER BY region",
    )
    return [(row["region"], row["n"], row["messages"]) for row in rows]
