"""Prometheus metrics under the names of the OpenTelemetry Collector, and under spanlake_ what that has no name for.

Every instrument is observed when it is scraped, from plain numbers that the stages count once a request or group:
a scrape costs a millisecond or two, 35 with 200 tenants, and no span pays for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from collector.config import CollectorConfig
from collector.ingest import Ingest
from collector.maintenance import Maintenance
from collector.receive.refusals import Refusals
from collector.seal import Sealer
from collector.spool import Spool
from collector.telemetry.acknowledged import TRANSPORTS, Acknowledged
from collector.telemetry.latency import BOUNDS_SECONDS, Latencies
from collector.tenants.counters import TenantCounts

Labels = Mapping[str, str]
Observations = Iterable[tuple[float, Labels]]
Observe = Callable[[], Observations]

_LAKE = {"exporter": "lake"}
"""What the Collector calls an exporter is the way into the lake here."""


@dataclass(frozen=True)
class Sources:
    """Everything that counts."""

    config: CollectorConfig
    acknowledged: Acknowledged
    refusals: Refusals
    ingest: Ingest
    spool: Spool
    sealer: Sealer
    maintenance: Maintenance
    tenants: Callable[[], Mapping[str, TenantCounts]] = dict


class Metrics:
    """The metrics of one collector."""

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        self._provider = MeterProvider([reader], shutdown_on_exit=False)
        meter = self._provider.get_meter("spanlake.collector")
        _observe_collector(meter, sources)
        _observe_spanlake(meter, sources)
        _observe_tenants(meter, sources.tenants)
        self._registry.register(_Histograms(sources))

    def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and text of all metrics, in the format that a scraper's Accept header prefers."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)

    def stop(self) -> None:
        """Let go of the instruments."""
        self._provider.shutdown()


def counter(meter: Meter, name: str, description: str, observe: Observe) -> None:
    """A counter that is read when it is scraped; its name gets the suffix _total."""
    meter.create_observable_counter(name, [_callback(observe)], description=description)


def gauge(meter: Meter, name: str, description: str, observe: Observe) -> None:
    """A gauge that is read when it is scraped."""
    meter.create_observable_gauge(name, [_callback(observe)], description=description)


def _callback(observe: Observe) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: [Observation(value, labels) for value, labels in observe()]


def _one(read: Callable[[], float], labels: Labels | None = None) -> Observe:
    return lambda: [(read(), labels or {})]


def _by_transport(counts: Mapping[str, int]) -> Observe:
    return lambda: [(counts[name], {"receiver": "otlp", "transport": name}) for name in TRANSPORTS]


def _observe_collector(meter: Meter, sources: Sources) -> None:
    """What the OpenTelemetry Collector has, too."""
    spool, sealer = sources.spool, sources.sealer
    started = time.monotonic()
    counter(
        meter,
        "otelcol_receiver_accepted_spans",
        "Spans that were made durable and acknowledged.",
        _by_transport(sources.acknowledged.spans),
    )
    counter(
        meter,
        "otelcol_receiver_refused_spans",
        "Spans in requests that were refused; a request that was refused unread counts as one span.",
        _by_transport(sources.refusals.spans),
    )
    counter(
        meter,
        "otelcol_exporter_sent_spans",
        "Spans sealed into the lake, those that a former process left in the spool included.",
        _one(lambda: sealer.sealed_spans, _LAKE),
    )
    counter(
        meter,
        "otelcol_exporter_send_failed_spans",
        "Spans in seals that failed; they stay in the spool and are tried again.",
        _one(lambda: sealer.failed_spans, _LAKE),
    )
    gauge(
        meter,
        "otelcol_exporter_queue_size",
        "Bytes in the spool that are not in the lake yet.",
        _one(lambda: spool.payload_bytes, _LAKE),
    )
    gauge(
        meter,
        "otelcol_exporter_queue_capacity",
        "Bytes that the spool may hold (collector.spool_bytes_max).",
        _one(lambda: sources.config.spool_bytes_max, _LAKE),
    )
    gauge(meter, "otelcol_process_memory_rss", "Physical memory of the process in bytes.", _resident)
    counter(
        meter,
        "otelcol_process_uptime",
        "Seconds since the collector started.",
        _one(lambda: time.monotonic() - started),
    )


def _observe_spanlake(meter: Meter, sources: Sources) -> None:
    """What only spanlake has."""
    ingest, spool, sealer, maintenance = sources.ingest, sources.spool, sources.sealer, sources.maintenance
    counters: dict[str, tuple[str, Observe]] = {
        "spanlake_refused_requests": ("Requests that were refused.", lambda: _refused(sources.refusals)),
        "spanlake_deduplicated_requests": (
            "Requests that repeated one that was stored, or on its way.",
            _one(lambda: ingest.deduplicated_requests),
        ),
        "spanlake_rejected_spans": ("Invalid spans in accepted requests.", _one(lambda: ingest.rejected_spans)),
        "spanlake_cuts": (
            "What spans had beyond a limit (section limits), by part.",
            lambda: [(count, {"part": part}) for part, count in dict(ingest.cuts).items()],
        ),
        "spanlake_merges": ("Merges of small files of the lake.", _one(lambda: maintenance.merges)),
        "spanlake_merged_files": ("Files that merges replaced.", _one(lambda: maintenance.merged_files)),
    }
    gauges: dict[str, tuple[str, Observe]] = {
        "spanlake_unsealed_requests": (
            "Requests in the spool that are not in the lake yet.",
            _one(lambda: sealer.unsealed_requests),
        ),
        "spanlake_memory_limit_bytes": (
            "Resident bytes beyond which requests are refused (collector.memory_bytes_max).",
            _one(lambda: sources.config.memory_bytes_max),
        ),
        "spanlake_spool_bytes": ("Bytes of the requests in the spool.", _one(lambda: spool.payload_bytes)),
        "spanlake_seal_stalled_seconds": (
            "How long requests have been waiting without a seal that succeeded.",
            _one(lambda: sealer.stalled_seconds),
        ),
        "spanlake_quarantined_requests": (
            "Requests in the spool that no longer decode and were put aside.",
            _one(lambda: spool.quarantined_requests),
        ),
    }
    for name, (description, observe) in counters.items():
        counter(meter, name, description, observe)
    for name, (description, observe) in gauges.items():
        gauge(meter, name, description, observe)


def _observe_tenants(meter: Meter, tenants: Callable[[], Mapping[str, TenantCounts]]) -> None:
    """Counts by tenant, as bounded in number as the counts are."""
    descriptions = {
        "requests": "Requests that were made durable.",
        "spans": "Spans that were made durable.",
        "bytes": "Decompressed bytes of requests that were made durable.",
        "rejected_spans": "Invalid spans in accepted requests.",
        "refused_requests": "Requests that were refused.",
        "refused_spans": "Spans in refused requests, where they were counted.",
    }

    def observed(field: str) -> Observe:
        return lambda: [(getattr(counts, field), {"tenant": name}) for name, counts in tenants().items()]

    for field, description in descriptions.items():
        counter(meter, f"spanlake_tenant_{field}", description, observed(field))


def _refused(refusals: Refusals) -> Observations:
    counts = dict(refusals.requests)
    return [(count, {"transport": transport, "reason": why}) for (transport, why), count in counts.items()]


def _resident() -> Observations:
    """Nothing where the system has no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return []
    return [(pages * os.sysconf("SC_PAGE_SIZE"), {})]


class _Histograms:
    """Durations as Prometheus histograms. The SDK observes no histograms, so they stand beside it."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        sealer = self._sources.sealer
        yield _family(
            "spanlake_acknowledge_duration_seconds",
            "From a request received in full to its acknowledgement.",
            self._sources.acknowledged.latencies,
        )
        yield _family("spanlake_seal_duration_seconds", "Seals that succeeded.", {"": sealer.seal_latencies})
        yield _family(
            "spanlake_commit_duration_seconds",
            "Transactions of seals, waiting for the commit lock included.",
            {"": sealer.commit_latencies},
        )


def _family(name: str, description: str, by_transport: Mapping[str, Latencies]) -> HistogramMetricFamily:
    labels = ["transport"] if "" not in by_transport else []
    family = HistogramMetricFamily(name, description, labels=labels)
    for transport, latencies in by_transport.items():
        total = 0
        buckets = []
        for bound, count in zip((*map(str, BOUNDS_SECONDS), "+Inf"), latencies.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([transport] if labels else [], buckets, latencies.sum_seconds)
    return family
