"""The simulator's model: reproducible, shaped as it says, and consistent as traces."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sample_data.emit_files import batches, read_framed, requests, write_file
from sample_data.encoding import json_request, protobuf_request
from sample_data.model import Kind, Outcome, Workload
from sample_data.span import SpanKind
from sample_data.stream import Batches, Stream
from sample_data.topology import REGIONS, TENANT_SIZE_EXPONENT, Service, build_topology

START = 1_790_000_000


def stream(seed=1, rate=170.0, tenants=48, start=START):
    return Stream(seed=seed, operations_per_second=rate, tenants=tenants, start_second=start)


@pytest.fixture(scope="module")
def workload():
    return Workload(build_topology(3, 48), 3, 170.0)


@pytest.fixture(scope="module")
def half_hour(workload):
    return [workload.operations(START + second) for second in range(1800)]


@pytest.fixture(scope="module")
def complete():
    """All spans of 60 s, none left open."""
    source = stream(seed=5)
    spans = [span for _ in range(60) for span in source.advance()] + source.rest()
    return source.topology, spans


def column(operations, name):
    return np.concatenate([getattr(o, name) for o in operations])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63), size=st.integers(1, 700))
def test_same_seed_gives_identical_bytes_and_exactly_the_spans_asked_for(seed, size):
    once = list(requests(seed, 600, size))
    assert once == list(requests(seed, 600, size))
    assert once[0] != next(requests(seed + 1, 600, size))
    parsed = [ExportTraceServiceRequest.FromString(r) for r in once]
    counts = [len(s.spans) for r in parsed for rs in r.resource_spans for s in rs.scope_spans]
    assert sum(counts) == 600
    assert max(counts) <= size


@settings(max_examples=10, deadline=None)
@given(later=st.integers(1, 30))
def test_traffic_depends_on_its_time_and_not_on_the_start(later):
    early, late = stream(rate=20.0), stream(rate=20.0, start=START + later)
    roots = []
    for source in (early, late):
        spans = []
        while source.second < START + later + 5:
            spans += source.advance()
        spans += source.rest()
        roots.append({s for s in spans if not s.parent_span_id and s.start_ns >= (START + later) * 10**9})
    # A consumer span that began a trace of its own may belong to a publish before the later start.
    began = {s.trace_id for s in roots[1]}
    assert roots[1] == {s for s in roots[0] if s.trace_id in began or s.kind != SpanKind.CONSUMER}


def test_tenant_sizes_follow_zipf_and_the_mean_rate_is_the_one_asked_for(workload):
    seconds = START + np.random.default_rng(0).choice(7 * 86_400, 6000, replace=False)
    rates = np.array([workload.rates(int(second)) for second in sorted(seconds)]).mean(axis=0)
    assert rates.sum() == pytest.approx(170.0, rel=0.08)
    shares = rates / rates.sum()
    expected = np.arange(1, 49) ** -TENANT_SIZE_EXPONENT
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=0.35)
    assert 0.2 < shares[0] < 0.36
    assert shares[0] > 50 * shares[-1]


def test_every_tenant_bursts(half_hour):
    per_second = np.array([np.bincount(o.tenant, minlength=48) for o in half_hour])
    peak_to_mean = per_second.max(axis=0) / per_second.mean(axis=0)
    assert peak_to_mean.min() > 3
    assert np.median(peak_to_mean) > 7
    # Not just chance of small numbers: the largest tenants burst, too, and are overdispersed.
    dispersion = per_second.var(axis=0) / per_second.mean(axis=0)
    assert dispersion[:5].min() > 3


def test_lookups_hit_by_popularity(half_hour):
    lookups = column(half_hour, "kind") == Kind.GET
    hit, key = column(half_hour, "hit")[lookups], column(half_hour, "key")[lookups]
    assert 0.6 < hit.mean() < 0.95
    assert hit[key < 10].mean() > 0.97
    assert hit[key > 5000].mean() < 0.6
    counts = np.bincount(key)
    assert 0.02 < counts[0] / counts.sum() < 0.2
    assert counts[0] == counts.max()


def test_latencies_and_outcomes_are_those_of_a_cache(half_hour):
    gets = (column(half_hour, "kind") == Kind.GET) & (column(half_hour, "outcome") == Outcome.OK)
    server_ms = column(half_hour, "server_ns")[gets] / 1e6
    p50, p99, p999 = np.percentile(server_ms, [50, 99, 99.9])
    assert 0.1 < p50 < 0.5
    assert 2 * p50 < p99 < 5
    assert p999 > 10 * p50
    lag_ms = np.concatenate([o.deliveries.lag_ns for o in half_hour]) / 1e6
    assert 10 < np.median(lag_ms) < 50 < np.percentile(lag_ms, 95)
    outcomes = Counter(column(half_hour, "outcome").tolist())
    assert set(outcomes) == set(Outcome)
    assert 0.001 < 1 - outcomes[Outcome.OK] / outcomes.total() < 0.03


def test_traffic_is_spread_over_regions_by_the_tenants_homes(half_hour, workload):
    regions = np.bincount(column(half_hour, "region"), minlength=len(REGIONS))
    assert regions.min() > 0
    topology = build_topology(3, 48)
    used = set(zip(column(half_hour, "tenant").tolist(), column(half_hour, "region").tolist(), strict=True))
    homes = {(t, r) for t, it in enumerate(topology.tenants) for r, share in enumerate(it.region_shares) if share}
    assert used <= homes


def test_ids_are_unique_and_parents_and_links_resolve(complete):
    _, spans = complete
    by_id = {(s.trace_id, s.span_id): s for s in spans}
    assert len(by_id) == len(spans)
    joined = Counter()
    for span in spans:
        assert len(span.trace_id) == 16
        assert any(span.trace_id)
        assert len(span.span_id) == 8
        assert any(span.span_id)
        assert span.end_ns >= span.start_ns
        for reference in [(span.trace_id, span.parent_span_id)] * bool(span.parent_span_id) + list(span.links):
            assert by_id[reference].tenant == span.tenant
            assert by_id[reference].start_ns <= span.start_ns
        same_process = span.parent_span_id and by_id[span.trace_id, span.parent_span_id].instance == span.instance
        assert bool(span.parent_span_id and not same_process) == span.parent_is_remote
        if span.kind == SpanKind.CONSUMER:
            assert all(by_id[link].kind == SpanKind.PRODUCER for link in span.links)
            joined[bool(span.parent_span_id), bool(span.links)] += 1
    assert min(joined[True, False], joined[False, True], joined[True, True]) > 10
    assert joined[False, False] == 0
    roots = Counter(s.trace_id for s in spans if not s.parent_span_id)
    assert set(roots.values()) == {1}
    assert roots.keys() == {s.trace_id for s in spans}


def test_every_subscriber_gets_the_message_or_is_counted_as_undelivered(complete):
    _, spans = complete
    delivered = Counter(dict(s.attributes)["messaging.message.id"] for s in spans if s.kind == SpanKind.CONSUMER)
    fan_outs = [s for s in spans if s.name.startswith("fan out")]
    assert fan_outs
    for span in fan_outs:
        attributes = dict(span.attributes)
        got = delivered.pop(attributes["messaging.message.id"], 0)
        assert got == attributes["topics.subscription.count"] - span.undelivered
    assert not delivered


def test_spans_carry_the_conventions_attributes(complete):
    topology, spans = complete
    assert 9 <= np.mean([len(s.attributes) for s in spans]) <= 11
    types = defaultdict(set)
    for span in spans:
        attributes = dict(span.attributes)
        assert len(attributes) == len(span.attributes)
        assert attributes["tenant.id"] == topology.tenants[span.tenant].name
        for key, value in span.attributes:
            types[key].add(type(value))
        if span.error:
            assert attributes["error.type"]
        if span.kind == SpanKind.CLIENT:
            assert attributes["db.system.name"] in {"redis", "postgresql"}
        if topology.instances[span.instance].service == Service.CACHE:
            assert {"cache.name", "db.operation.name", "rpc.method", "rpc.response.status_code"} <= attributes.keys()
            assert attributes.get("cache.hit") is span.hit
    assert all(len(kinds) == 1 for kinds in types.values())
    resources = [dict(i.attributes) for i in topology.instances]
    assert len({r["service.instance.id"] for r in resources}) == len(resources)
    assert {r["cloud.region"] for r in resources} == set(REGIONS)
    assert all(r["cloud.availability_zone"].startswith(r["cloud.region"]) for r in resources)


def test_stream_is_ordered_by_end_and_holds_nothing_back():
    source = stream(rate=50.0)
    last_ns = 0
    for _ in range(20):
        ended = source.advance()
        assert all(s.end_ns < source.now_ns for s in ended)
        for span in ended:
            assert span.end_ns >= last_ns
            last_ns = span.end_ns
    assert all(s.end_ns >= source.now_ns for s in source.rest())
    assert source.rest() == []


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), seconds=st.integers(0, 3))
def test_batches_keep_every_span_once_and_by_process(size, seconds):
    source = stream(rate=10.0)
    spans = [source.advance() for _ in range(seconds)]
    gathered = Batches(size)
    out = [batch for chunk in spans for batch in gathered.add(chunk)]
    assert all(len(batch) == size for batch in out)
    out += gathered.rest()
    assert all(len({s.instance for s in batch}) == 1 for batch in out)
    assert Counter(s.span_id for b in out for s in b) == Counter(s.span_id for chunk in spans for s in chunk)


def from_json(line: bytes) -> ExportTraceServiceRequest:
    """Read OTLP's JSON with protobuf's own JSON reader, which wants ids in base64."""

    def with_base64(value):
        if isinstance(value, list):
            return [with_base64(v) for v in value]
        if not isinstance(value, dict):
            return value
        return {
            k: bytes.fromhex(v) if k in {"traceId", "spanId", "parentSpanId"} else with_base64(v)
            for k, v in value.items()
        }

    def encoded(value):
        import base64

        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, list):
            return [encoded(v) for v in value]
        return {k: encoded(v) for k, v in value.items()} if isinstance(value, dict) else value

    return ParseDict(encoded(with_base64(json.loads(line))), ExportTraceServiceRequest())


def test_json_and_protobuf_describe_the_same_spans(tmp_path):
    truths = [write_file(tmp_path / name, stream(), spans=3000) for name in ("a.pb", "a.jsonl")]
    assert truths[0] == truths[1]
    from_protobuf = [ExportTraceServiceRequest.FromString(r) for r in read_framed(tmp_path / "a.pb")]
    assert from_protobuf == [from_json(line) for line in (tmp_path / "a.jsonl").read_bytes().splitlines()]
    assert sum(len(s.spans) for r in from_protobuf for rs in r.resource_spans for s in rs.scope_spans) == 3000


def test_errors_links_and_exceptions_are_in_both_forms(complete):
    topology, spans = complete
    chosen = [s for s in spans if s.exception and s.links][:1] + [s for s in spans if s.status_message][:1]
    assert len(chosen) == 2
    for span in chosen:
        instance = topology.instances[span.instance]
        request = ExportTraceServiceRequest.FromString(protobuf_request(instance, [span]))
        assert request == from_json(json_request(instance, [span]))
        (message,) = request.resource_spans[0].scope_spans[0].spans
        assert message.status.code == 2
        assert message.status.message == span.status_message
        assert [(link.trace_id, link.span_id) for link in message.links] == list(span.links)
        assert [e.name for e in message.events] == ["exception"] * bool(span.exception)


def test_truth_is_what_the_file_holds(tmp_path):
    truth = write_file(tmp_path / "a.pb", stream(seed=9), seconds=30)
    seen: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for request in read_framed(tmp_path / "a.pb"):
        for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
            resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for span in resource_spans.scope_spans[0].spans:
                attributes = {a.key: a.value for a in span.attributes}
                counts = seen[attributes["tenant.id"].string_value, resource["cloud.region"]]
                counts["spans"] += 1
                counts["operations"] += resource["service.name"] == "api-gateway" and not span.parent_span_id
                counts["errors"] += span.status.code == 2
                if "cache.hit" in attributes:
                    counts["hits" if attributes["cache.hit"].bool_value else "misses"] += 1
                counts["deliveries"] += span.kind == SpanKind.CONSUMER
    told = truth.as_json()
    assert {(r["tenant"], r["region"]) for r in told["by_tenant_region"]} == seen.keys()
    for row in told["by_tenant_region"]:
        counts = seen[row["tenant"], row["region"]]
        for name in ("spans", "operations", "errors", "hits", "misses", "deliveries"):
            assert row[name] == counts[name], (row, name)
    assert told["total"]["spans"] == sum(c["spans"] for c in seen.values()) > 10_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tenants": 0}, "tenants is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -1}, "start is -1"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        stream(**arguments)


def test_impossible_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.pb"):
        write_file(tmp_path / "a.parquet", stream(), spans=1)
    for size in ({}, {"spans": 1, "seconds": 1}, {"spans": -1}):
        with pytest.raises(ValueError, match="expected one of them"):
            next(batches(stream(), 10, **size))
    (tmp_path / "cut.pb").write_bytes(b"\0\0\0\x09short")
    with pytest.raises(ValueError, match="ends at byte 9"):
        list(read_framed(tmp_path / "cut.pb"))


@pytest.mark.parametrize("tenants", [1, 300])
def test_any_number_of_tenants(tenants):
    names = [t.name for t in build_topology(1, tenants).tenants]
    assert len(set(names)) == tenants
    assert list(batches(stream(tenants=tenants), 100, spans=100))
