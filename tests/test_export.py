"""Export and import again: the same rows, from a real lake, in every form."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collector import exporting
from collector.collect import open_ingest
from collector.config import Config, MappingConfig, StorageConfig
from collector.decode.decoder import Decoder
from collector.decode.otlp_json import to_protobuf
from collector.decode.semantics import Mapping
from collector.encode.otlp_json import to_json
from collector.encode.protobuf import ProtobufEncoder, Resource
from collector.errors import OperatorError
from collector.exporting import Selection, Target, target
from collector.importing import import_files
from collector.lake.location import locate
from collector.lake.sandbox import QueryError, open_sandbox
from collector.pipeline import TraceRequest
from sample_data.emit_files import read_framed, requests

SPANLAKE = Path(sys.executable).with_name("spanlake")
CAPTURED = Path(__file__).parents[1] / "sample_data/captured"
NOT_KEPT = ["received_at", "resource_id"]

# Requests of anything that columns are made of, valid or not.

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
CANDIDATES = [
    key.partition(":")[2] or key for name in MappingConfig.model_fields for key in getattr(MappingConfig(), name)
]
RULES = ["db.system.name", "db.system", "messaging.system", "rpc.system", "http.request.method", "http.route"]
PLAIN_VALUES = st.one_of(
    TEXTS.map(lambda text: {"stringValue": text}),
    st.booleans().map(lambda value: {"boolValue": value}),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: {"intValue": str(value)}),
    st.sampled_from(["redis", "hit", "GET", "/x/{id}", "200", "7", "acme"]).map(lambda text: {"stringValue": text}),
)
OTHER_VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(lambda value: {"doubleValue": value}),
    st.just({"arrayValue": {"values": [{"intValue": "1"}]}}),
    st.just({}),
)
ATTRIBUTES = st.lists(
    st.tuples(st.sampled_from([*CANDIDATES, *RULES, "cache.other", "other"]), PLAIN_VALUES)
    | st.tuples(st.sampled_from(["cache.more", "more"]), OTHER_VALUES),
    max_size=5,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: [{"key": key, "value": value} for key, value in pairs])
COUNTS = st.integers(0, 3)
TIMES = st.integers(1, 2**63 - 2).map(str)
HEX = st.binary(max_size=9).map(bytes.hex)
EVENTS = st.fixed_dictionaries(
    {"timeUnixNano": st.integers(0, 2**64 - 1).map(str), "name": TEXTS, "attributes": ATTRIBUTES,
     "droppedAttributesCount": COUNTS}
)  # fmt: skip
LINKS = st.fixed_dictionaries(
    {"traceId": HEX, "spanId": HEX, "traceState": TEXTS, "attributes": ATTRIBUTES,
     "droppedAttributesCount": COUNTS, "flags": st.integers(0, 2**32 - 1)}
)  # fmt: skip
SPANS = st.fixed_dictionaries(
    {
        "traceId": st.integers(1, 2**128 - 1).map(lambda number: f"{number:032x}"),
        "spanId": st.integers(1, 2**64 - 1).map(lambda number: f"{number:016x}"),
        "name": TEXTS,
        "kind": st.integers(0, 7),
        "startTimeUnixNano": TIMES,
        "endTimeUnixNano": TIMES,
        "attributes": ATTRIBUTES,
        "events": st.lists(EVENTS, max_size=2),
        "links": st.lists(LINKS, max_size=2),
        "flags": st.integers(0, 2**32 - 1),
        "droppedAttributesCount": COUNTS,
    },
    optional={
        "parentSpanId": HEX,
        "traceState": st.sampled_from(["ot=th:8", "a=b"]),
        "status": st.fixed_dictionaries({"code": st.integers(0, 4), "message": TEXTS}),
    },
)
SCOPES = st.fixed_dictionaries(
    {"scope": st.fixed_dictionaries({"name": TEXTS, "version": TEXTS, "attributes": ATTRIBUTES}),
     "spans": st.lists(SPANS, max_size=3), "schemaUrl": TEXTS}
)  # fmt: skip
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {"resource": st.fixed_dictionaries({"attributes": ATTRIBUTES, "droppedAttributesCount": COUNTS}),
         "scopeSpans": st.lists(SCOPES, max_size=2), "schemaUrl": TEXTS}
    ),
    min_size=1, max_size=2,
)  # fmt: skip


def rows(table: pa.Table) -> list[str]:
    """Rows without what an import gives anew, in an order of their own."""
    return sorted(map(repr, table.drop_columns(NOT_KEPT).to_pylist()))


def decoded(payloads: list[bytes]) -> tuple[pa.Table, dict[str, Resource]]:
    found = Decoder(MappingConfig()).decode([TraceRequest(payload, 5) for payload in payloads])
    resources = {
        row["resource_id"]: Resource(row["schema_url"] or "", dict(row["attributes"]), row["dropped_attributes_count"])
        for row in found.resources.to_pylist()
    }
    return pa.Table.from_batches([found.spans]).unify_dictionaries().combine_chunks(), resources


def encoded(payloads: list[bytes]) -> list[bytes]:
    spans, resources = decoded(payloads)
    return list(ProtobufEncoder(resources, Mapping(MappingConfig())).requests(spans))


REPEATED = [{"key": "messaging.operation.name", "value": {"boolValue": True}}]
REPEATED_SPAN = {
    "traceId": f"{1:032x}", "spanId": f"{1:016x}", "startTimeUnixNano": "1", "endTimeUnixNano": "1",
    "attributes": REPEATED,
}  # fmt: skip
NAMELESS_SPAN = REPEATED_SPAN | {"attributes": [{"key": "cache.more", "value": {"intValue": "1"}}]}


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@example([{"resource": {}, "scopeSpans": [{"spans": [NAMELESS_SPAN]}]}])
@example([{"resource": {"attributes": REPEATED}, "scopeSpans": [{"spans": [REPEATED_SPAN]}]}])
@given(REQUESTS)
def test_what_is_encoded_decodes_to_the_same_rows_and_resources(resource_spans: list[dict[str, Any]]) -> None:
    import orjson

    payload = to_protobuf(orjson.dumps({"resourceSpans": resource_spans}))
    spans, resources = decoded([payload])
    again = encoded([payload])
    found, found_resources = decoded(again)
    assert rows(found) == rows(spans)
    used = set(spans.column("resource_id").to_pylist())
    assert sorted(map(repr, found_resources.values())) == sorted({repr(resources[name]) for name in used})
    assert rows(decoded([to_protobuf(to_json(payload)) for payload in again])[0]) == rows(spans)


@pytest.mark.parametrize("path", sorted(CAPTURED.glob("*.pb")), ids=lambda path: path.stem)
def test_captured_traffic_comes_back(path: Path) -> None:
    payloads = list(read_framed(path))
    assert rows(decoded(encoded(payloads))[0]) == rows(decoded(payloads)[0])


def test_large_batches_become_requests_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.encode.protobuf.REQUEST_BYTES", 50_000)
    payloads = list(requests(1, 2000))
    again = encoded(payloads)
    assert len(again) > 5
    assert max(map(len, again)) < 110_000
    assert rows(decoded(again)[0]) == rows(decoded(payloads)[0])


def imported(data: Path, file: Path) -> None:
    config = Config(storage=StorageConfig(data=str(data)))

    async def fill() -> None:
        with open_ingest(config, locate(config.storage)) as (ingest, _sealer):
            ingest.start()
            (report,) = await import_files([file], ingest, config.collector.request_bytes_max, lambda *_: None)
            assert (report.failed, report.rejected_spans) == (0, 0)

    asyncio.run(fill())


def stored(data: Path, selection: Selection) -> pa.Table:
    config = Config()
    with open_sandbox(locate(StorageConfig(data=str(data))), config.query) as sandbox:
        sql = f"SELECT * FROM spans WHERE {selection.condition()}"
        with sandbox.run(sql) as result:
            return pa.Table.from_batches(list(result.batches), result.schema)


def exported(data: Path, selection: Selection, name: str) -> Path:
    config, file = Config(), Path(tempfile.mkdtemp(dir=data.parent)) / name
    with open_sandbox(locate(StorageConfig(data=str(data))), config.query) as sandbox, file.open("wb") as output:
        spans = exporting.export(sandbox, selection, config.mapping, target(file), output, lambda _: None)
        assert spans == exporting.count(sandbox, selection)
    return file


@pytest.mark.parametrize("name", ["x.pb.gz", "x.jsonl.zst"])
def test_a_lake_exported_and_imported_holds_the_same_rows(lake_folder: Path, tmp_path: Path, name: str) -> None:
    selection = Selection(where="tenant < 'k' -- half of them")
    file = exported(lake_folder, selection, name)
    imported(tmp_path / "copy", file)
    expected = rows(stored(lake_folder, selection))
    assert len(expected) > 500
    assert rows(stored(tmp_path / "copy", Selection())) == expected


def test_parquet_has_the_table_as_it_is(lake_folder: Path) -> None:
    found = pq.read_table(exported(lake_folder, Selection(), "x.parquet"))
    assert sorted(map(repr, found.to_pylist())) == sorted(map(repr, stored(lake_folder, Selection()).to_pylist()))


def test_tenant_and_times_bound_what_is_exported(lake_folder: Path) -> None:
    everything = stored(lake_folder, Selection())
    everything = everything.set_column(
        0, "start_us", everything.column("start_time").cast(pa.timestamp("us"), safe=False)
    )
    moments = sorted(everything.column("start_us").to_pylist())
    tenant = everything.column("tenant")[0].as_py()
    since, until = moments[500], moments[2000]
    found = stored(lake_folder, Selection(tenant, since, until))
    expected = [
        row
        for row in everything.select(["tenant", "start_us"]).to_pylist()
        if row["tenant"] == tenant and since <= row["start_us"] < until
    ]
    assert 0 < len(expected) == found.num_rows
    assert stored(lake_folder, Selection(tenant="no'body")).num_rows == 0


@pytest.mark.parametrize("name", ["x", "x.csv", "x.parquet.gz", "x.gz", "x.json.zst"])
def test_a_name_that_says_nothing_is_told(name: str) -> None:
    with pytest.raises(OperatorError, match=r"expected a name that ends in \.pb or \.jsonl"):
        target(Path(name))


def test_names_say_form_and_compression() -> None:
    assert target(Path("a.b/spans.pb.zst")) == Target(".pb", ".zst")
    assert target(Path("spans.parquet")) == Target(".parquet", "")


@pytest.mark.parametrize("where", ["true) UNION ALL FROM read_csv('/etc/passwd') --", "true); DROP TABLE spans; --"])
def test_a_condition_cannot_leave_the_sandbox(lake_folder: Path, where: str) -> None:
    with pytest.raises(QueryError):
        exported(lake_folder, Selection(where=where), "x.pb")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SPANLAKE, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_the_command(lake_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.pb.zst"
    since = f"{datetime(2020, 1, 1).isoformat()}Z"
    done = run("export", file, "--data", lake_folder, "--since", since, "--where", "status = 'error'")
    errors = stored(lake_folder, Selection(where="status = 'error'")).num_rows
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{file}: {errors} spans exported\n")
    bad = run("export", tmp_path / "bad.pb", "--data", lake_folder, "--where", "nothing = 1")
    assert (bad.returncode, "Traceback" in bad.stderr, (tmp_path / "bad.pb").exists()) == (1, False, False)
    assert "nothing" in bad.stderr
    assert list(tmp_path.iterdir()) == [file]
