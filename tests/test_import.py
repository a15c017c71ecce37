"""OTLP files of every form, imported into a folder and into a running collector."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector import importing
from collector.errors import OperatorError, OverloadedError, PermanentError
from collector.import_marks import MARKS_PER_COMMIT, ImportMarks
from collector.importing import EndpointSink, FileReport, import_files
from collector.otlp_files import Record, read_requests
from collector.pipeline import Accepted, TraceRequest
from collector.spool import former_digest_of
from sample_data.emit_files import framed, requests

SPANLAKE = Path(sys.executable).with_name("spanlake")
CAPTURED = Path(__file__).parents[1] / "sample_data/captured"
LIMIT = 2**20
PAYLOADS = list(requests(1, 200, 50))
JSON = '{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "%032x", "spanId": "%016x", "name": "GET"}]}]}]}'


class Recorder:
    """A sink that keeps what it is given, after so many refusals, and rejects some spans for ever."""

    def __init__(self, refusals: int = 0, rejected: int = 0) -> None:
        self.payloads: list[bytes] = []
        self._refusals = refusals
        self._rejected = rejected

    async def accept(self, request: TraceRequest) -> Accepted:
        await asyncio.sleep(0)
        if self._refusals:
            self._refusals -= 1
            raise OverloadedError("busy", retry_after_seconds=0.01)
        if b"forbidden" in request.payload:
            raise PermanentError("forbidden here")
        self.payloads.append(request.payload)
        return Accepted(self._rejected, "bad ids" if self._rejected else "")


def imported(path: Path, sink: Recorder) -> FileReport:
    (report,) = asyncio.run(import_files([path], sink, LIMIT, lambda *_: None))
    return report


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


def read(folder: Path, content: bytes) -> list[Record]:
    return list(read_requests(written(folder, content), LIMIT))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def json_lines(count: int) -> list[bytes]:
    return [(JSON % (i + 1, i + 1)).encode() for i in range(count)]


def names(records: list[Record]) -> list[str]:
    messages = [ExportTraceServiceRequest.FromString(record.payload) for record in records]
    return [message.resource_spans[0].scope_spans[0].spans[0].name for message in messages]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_length_prefixed_messages(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    records = read(tmp_path, compress(b"".join(map(framed, PAYLOADS))))
    assert [record.payload for record in records] == PAYLOADS
    assert [record.offset for record in records[:2]] == [0, 4 + len(PAYLOADS[0])]


def test_messages_compressed_one_by_one(tmp_path: Path) -> None:
    content = b"".join(framed(zstd(payload)) for payload in PAYLOADS)
    assert [record.payload for record in read(tmp_path, content)] == PAYLOADS


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_one_bare_message(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    assert read(tmp_path, compress(PAYLOADS[0])) == [Record(0, PAYLOADS[0])]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_one_request_in_json_indented_or_not(tmp_path: Path, end: bytes, bom: bytes) -> None:
    (line,) = json_lines(1)
    indented = json.dumps(json.loads(line), indent=2).encode()
    for content in (line, indented, b"\n" + indented):
        assert names(read(tmp_path, bom + content + end)) == ["GET"]


def test_json_lines_with_bad_ones_between(tmp_path: Path) -> None:
    good = json_lines(3)
    content = b"\n".join([good[0], b'{"resourceSpans": [', b"", good[1], b'{"resourceSpans": 5}', good[2]])
    records = read(tmp_path, content)
    assert [bool(record.problem) for record in records] == [False, True, False, True, False]
    wrong = b'{"resourceSpans": 5}'
    places = [0, len(good[0]) + 1, *(content.index(line) for line in (good[1], wrong, good[2]))]
    assert [record.offset for record in records] == places


def test_json_lines_that_begin_with_a_bad_one(tmp_path: Path) -> None:
    records = read(tmp_path, b'{"resourceSp\n' + b"\n".join(json_lines(2)))
    assert [bool(record.problem) for record in records] == [True, False, False]


@pytest.mark.parametrize(
    ("content", "problem", "payloads"),
    [
        (b"Hello, world", "neither OTLP protobuf nor OTLP JSON", 0),
        (b"".join(map(framed, PAYLOADS))[:-1], "ends within this message", len(PAYLOADS) - 1),
        (framed(PAYLOADS[0]) + b"\x00\x00", "ends within this message", 1),
        (b"\x00\xff\xff\xff" + b"\x00" * 20, "over collector.request_bytes_max", 0),
        (b"\n" + b"\x00" * (LIMIT + 1), "over collector.request_bytes_max", 0),
        (b"{\n" + b" " * LIMIT + b"}", "over collector.request_bytes_max", 0),
        (json_lines(1)[0] + b"\n" + b'{"x":"' + b"y" * LIMIT + b'"}\n', "over collector.request_bytes_max", 1),
        (framed(zstd(b"\n" + b"\x00" * (LIMIT + 1))), "over collector.request_bytes_max", 0),
        (framed(zstd(PAYLOADS[0])[:-5]), "", 0),
        (gzip.compress(b"".join(map(framed, PAYLOADS)))[:-20], "broken after this place", None),
        (zstd(b"".join(map(framed, PAYLOADS)))[:-20], "", None),
        (b"", None, 0),
    ],
)
def test_broken_files_say_where_and_keep_the_rest(
    tmp_path: Path, content: bytes, problem: str | None, payloads: int | None
) -> None:
    records = read(tmp_path, content)
    problems = [record.problem for record in records if record.problem]
    assert len(problems) == (0 if problem is None else 1)
    assert all((problem or "") in found for found in problems)
    assert payloads is None or len([record for record in records if not record.problem]) == payloads


@given(st.binary(max_size=300))
def test_no_content_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    for form in (content, b"{" + content, framed(content), gzip.compress(content), zstd(content)):
        report = imported(written(folder, form), Recorder())
        assert report.requests + report.failed <= len(form)
    shutil.rmtree(folder)


def test_both_forms_of_captured_traffic_hold_the_same_spans() -> None:
    for path in sorted(CAPTURED.glob("*.pb")):
        sent = {}
        for form in (path, path.with_suffix(".jsonl")):
            sink = Recorder()
            report = imported(form, sink)
            assert (report.failed, report.requests > 0) == (0, True)
            sent[form.suffix] = [ExportTraceServiceRequest.FromString(payload) for payload in sink.payloads]
        assert sent[".pb"] == sent[".jsonl"]


def test_refusals_that_pass_are_tried_again(tmp_path: Path) -> None:
    sink = Recorder(refusals=10)
    report = imported(written(tmp_path, b"".join(map(framed, PAYLOADS))), sink)
    assert sorted(sink.payloads) == sorted(PAYLOADS)
    assert (report.requests, report.spans, report.failed) == (len(PAYLOADS), 200, 0)


def test_refusals_that_do_not_pass_end_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "GIVE_UP_SECONDS", 0.05)
    with pytest.raises(OperatorError, match=r"nothing was accepted for 0\.05 s \(busy\)"):
        imported(written(tmp_path, framed(PAYLOADS[0])), Recorder(refusals=10**6))


def test_bad_requests_and_rejected_spans_are_named(tmp_path: Path) -> None:
    content = framed(PAYLOADS[0]) + framed(b"\x0a\xff") + framed(b"\x12\x09forbidden") + framed(PAYLOADS[1])
    report = imported(written(tmp_path, content), Recorder(rejected=3))
    assert (report.requests, report.failed, report.rejected_spans) == (2, 2, 6)
    assert f"{tmp_path / 'file'} at byte {4 + len(PAYLOADS[0])}: " in "\n".join(report.problems)
    assert any("forbidden here" in problem for problem in report.problems)
    assert any("bad ids" in problem for problem in report.problems)


class Crowd(Recorder):
    """A sink that sees how many requests and bytes are on their way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.on_way: list[int] = []
        self.most_requests = self.most_bytes = 0

    async def accept(self, request: TraceRequest) -> Accepted:
        self.on_way.append(len(request.payload))
        self.most_requests = max(self.most_requests, len(self.on_way))
        self.most_bytes = max(self.most_bytes, sum(self.on_way))
        for _ in range(3):
            await asyncio.sleep(0)
        self.on_way.remove(len(request.payload))
        return await super().accept(request)


@pytest.mark.parametrize(("requests_max", "bytes_max"), [(3, 2**20), (64, 30_000), (64, 1)])
def test_what_is_on_its_way_is_bounded(
    tmp_path: Path, requests_max: int, bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BYTES_IN_FLIGHT_MAX", bytes_max)
    payloads = list(requests(1, 2000, 50))
    crowd, filling = Crowd(), iter([True] * 3)
    path = written(tmp_path, b"".join(map(framed, payloads)))
    (report,) = asyncio.run(
        import_files([path], crowd, LIMIT, lambda *_: None, None, requests_max, lambda: next(filling, False))
    )
    assert sorted(crowd.payloads) == sorted(payloads)
    assert (report.requests, report.spans) == (len(payloads), 2000)
    assert crowd.most_requests <= requests_max
    assert crowd.most_bytes <= max(bytes_max, *map(len, payloads))
    assert crowd.most_requests > 1 or bytes_max == 1
    assert next(filling, None) is None


@pytest.mark.parametrize("endpoint", ["ftp://x:1", "http://", "http://x:4318/v1/traces"])
def test_an_endpoint_that_is_none_is_told(endpoint: str) -> None:
    with pytest.raises(OperatorError, match="expected HOST:PORT"):
        EndpointSink(endpoint)


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A running collector: its data folder and its OTLP/gRPC address."""
    data = tmp_path / "data"
    command = [SPANLAKE, "collect", "--data", data, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield data, json.loads(process.stdout.readline())["grpc"]
        process.terminate()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SPANLAKE, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def stored(data: Path) -> int:
    done = run("sql", "--data", data, "--format", "csv", "SELECT count(*) FROM spans")
    return int(done.stdout.splitlines()[1])


def test_the_command_imports_into_a_folder_once(tmp_path: Path) -> None:
    good = written(tmp_path, gzip.compress(b"".join(map(framed, PAYLOADS))))
    done = run("import", good, "--data", tmp_path / "data")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{good}: 200 spans imported, 0 rejected; {len(PAYLOADS)} requests imported, 0 failed\n"
    bad = tmp_path / "bad"
    bad.write_bytes(framed(b"\x0a\xff"))
    again = run("import", bad, good, "--data", tmp_path / "data")
    assert again.returncode == 1
    assert f"{bad} at byte 0: " in again.stderr
    assert "imported before" in again.stdout
    assert stored(tmp_path / "data") == 200


def forgetful(folder: Path) -> Path:
    """A configuration under which the spool recognises nothing that comes again."""
    config = folder / "config.toml"
    config.write_text("[collector]\ndedup_window_seconds = 0\n")
    return config


def test_a_second_import_is_skipped_after_any_time(tmp_path: Path) -> None:
    file = written(tmp_path, b"".join(map(framed, PAYLOADS)))
    target = ("--data", tmp_path / "data", "--config", forgetful(tmp_path))
    assert run("import", file, *target).returncode == 0
    second = run("import", file, *target)
    assert second.stdout.endswith(f"0 requests imported, 0 failed, {len(PAYLOADS)} imported before\n")
    assert stored(tmp_path / "data") == 200
    run("import", file, "--again", *target)
    assert stored(tmp_path / "data") == 400


def test_a_killed_import_goes_on_where_it_was(tmp_path: Path) -> None:
    payloads = list(requests(1, 30_000, 50))
    file = written(tmp_path, b"".join(map(framed, payloads)))
    data = tmp_path / "data"
    with subprocess.Popen([SPANLAKE, "import", file, "--data", data], stdout=subprocess.DEVNULL) as process:
        while marked(data) < 2 * MARKS_PER_COMMIT:
            assert process.poll() is None, "it was faster than the look at its marks"
            time.sleep(0.002)
        process.kill()
    before = marked(data)
    assert before < len(payloads)
    done = run("import", file, "--data", data)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{before} imported before" in done.stdout
    assert stored(data) == 30_000


def marked(data: Path) -> int:
    """How many requests are marked as imported."""
    path = data / "imports.sqlite"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as marks:
        try:
            return int(marks.execute("SELECT count(*) FROM requests").fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # not made yet


def test_marks_of_former_digests_count(tmp_path: Path) -> None:
    path, before, other = tmp_path / "imports.sqlite", TraceRequest(b"before", 1), TraceRequest(b"other", 1)
    with contextlib.closing(sqlite3.connect(path)) as marks, marks:
        marks.execute("CREATE TABLE requests (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        marks.execute("INSERT INTO requests VALUES (?)", (former_digest_of(before),))
    with ImportMarks(path) as again:
        assert (again.has(before), again.has(other)) == (True, False)
        again.add(other)
    with ImportMarks(path) as again:
        assert again.has(before)
        assert again.has(other)


def test_marks_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "imports.sqlite").write_text("not a database" * 100)
    with pytest.raises(OperatorError, match=r"imports\.sqlite'.*cannot be used"):
        ImportMarks(tmp_path / "imports.sqlite")


def test_the_command_imports_through_a_collector(collector: tuple[Path, str], tmp_path: Path) -> None:
    data, endpoint = collector
    file = written(tmp_path, b"".join(map(framed, PAYLOADS)))
    refused = run("import", file, "--data", data)
    assert refused.returncode == 1
    assert f"import through it with --endpoint {endpoint}" in refused.stderr
    done = run("import", file, "--endpoint", f"http://{endpoint}")
    assert (done.returncode, "200 spans imported" in done.stdout) == (0, True), done.stderr


def test_two_targets_are_wrong_usage(tmp_path: Path) -> None:
    done = run("import", written(tmp_path, b""), "--data", "x", "--endpoint", "y:1")
    assert done.returncode == 2
