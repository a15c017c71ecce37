"""Sets of dimensions on real lakes: added, removed, brought back, changed, dropped; folded beyond bounds."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner

from analytics import jobs
from analytics.rollup import fold, job, sets
from analytics.rollup.fold import OVERFLOW
from analytics.rollup.job import Memory
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, DimensionSet
from collector.config import AnalyzeConfig, Config
from collector.errors import OperatorError
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.segments import write_segment
from collector.settings import resolve
from collector.spans import SPAN_SCHEMA
from dashboard import status
from dashboard.cli import main as spanlake

NESTED = ("attributes", "events", "links")
START_NS = 1_772_366_400 * 10**9
DEFAULTS_OFF: dict[str, list[str]] = {"host": [], "version": [], "destination": [], "error": []}
HOSTS = DimensionSet("hosts", ("host", "http_status", "kind"))


def config(**changes: object) -> Config:
    return Config(analyze=AnalyzeConfig.model_validate({"dimension_sets": DEFAULTS_OFF, **changes}))


BASE_ONLY = config()
WITH_HOSTS = config(dimension_sets={**DEFAULTS_OFF, "hosts": list(HOSTS.dimensions)})


@pytest.fixture(scope="module")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    location = Location(tmp_path_factory.mktemp("empty") / "data")
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, BASE_ONLY)
    return location.root


@pytest.fixture
def lake(empty_lake: Path, tmp_path: Path) -> Iterator[Lake]:
    shutil.copytree(empty_lake, tmp_path / "data")
    with Lake(Location(tmp_path / "data"), read_only=False) as opened:
        yield opened


def add(lake: Lake, count: int, **labels: list[object]) -> None:
    """Spans of one minute, their labels taken in turns from the given lists."""
    labels = {"host": ["h1", "h2", None], "http_status": [200, 503, None], **labels}
    columns = {}
    for column in SPAN_SCHEMA:
        values = labels.get(column.name, [None if column.nullable else "x"])
        if column.name in ("start_time", "received_at"):
            values = [START_NS + i * 1000 for i in range(count)]
        elif pa.types.is_integer(column.type) and column.name not in labels and not column.nullable:
            values = [7]
        elif column.name in NESTED:
            values = [[]]
        taken = [values[i % len(values)] for i in range(count)]
        columns[column.name] = pa.array(taken, plain(column.type)).cast(column.type)
    path = write_segment(pa.table(columns, schema=SPAN_SCHEMA), lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])


def plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def assert_exact(lake: Lake, *dimension_sets: DimensionSet) -> None:
    with lake.read() as reader:
        raw = reader.frame("SELECT * FROM spans")
        for dimension_set in dimension_sets:
            for table, length in dimension_set.tables:
                stored = reader.frame(f"FROM {table}").cast(dict(dimension_set.schema))
                expected = partials(raw, dimension_set.dimensions)
                assert canonical(stored, length, dimension_set) == canonical(expected, length, dimension_set), table


def canonical(rows: pl.DataFrame, length: sets.Length, dimension_set: DimensionSet) -> list[dict[str, object]]:
    maps = [pl.col(name).map.entries().list.sort() for name in ("latency_buckets", "second_counts")]
    return merged(rows, length, dimension_set.dimensions).with_columns(*maps).to_dicts()


def position(lake: Lake, name: str) -> int | None:
    with lake.read() as reader:
        return reader.position(name)


def test_a_new_set_begins_with_the_spans_that_are_there_in_bites(lake: Lake) -> None:
    for _ in range(3):
        add(lake, 700)
    jobs.run_once(lake, BASE_ONLY)
    bites = config(dimension_sets=WITH_HOSTS.analyze.dimension_sets, spans_per_run_max=1000)
    jobs.prepare(lake, bites)
    add(lake, 50)
    done: list[tuple[int, int]] = []
    jobs.run_once(lake, bites, progress=lambda *spans: done.append(spans))
    assert done == [(50, 2150), (700, 1450), (700, 750), (750, 0)]
    assert position(lake, BASE.job) == position(lake, HOSTS.job)
    assert_exact(lake, BASE, HOSTS)
    with lake.read() as reader:
        labels = set(reader.rows("SELECT DISTINCT host, http_status FROM rollup_hosts_1h"))
    assert labels == {("h1", "200"), ("h2", "503"), ("unknown", "none")}


def test_one_run_serves_all_sets_that_stand_at_the_same_mark(lake: Lake) -> None:
    jobs.prepare(lake, WITH_HOSTS)
    add(lake, 30)
    assert jobs.run_once(lake, WITH_HOSTS).jobs["rollup"].runs == 1
    assert_exact(lake, BASE, HOSTS)


def test_a_removed_set_stops_and_goes_on_where_it_comes_back(lake: Lake) -> None:
    jobs.prepare(lake, WITH_HOSTS)
    add(lake, 30)
    jobs.run_once(lake, WITH_HOSTS)
    stopped_at = position(lake, HOSTS.job)
    add(lake, 40)
    jobs.run_once(lake, BASE_ONLY)
    assert position(lake, HOSTS.job) == stopped_at
    add(lake, 50)
    assert jobs.run_once(lake, WITH_HOSTS).jobs["rollup"].spans == 50 + 90
    assert_exact(lake, BASE, HOSTS)


def test_new_spans_do_not_wait_for_a_set_that_reads_old_ones(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        add(lake, 1000)
    jobs.run_once(lake, BASE_ONLY)
    bites = config(dimension_sets=WITH_HOSTS.analyze.dimension_sets, spans_per_run_max=1000)
    jobs.prepare(lake, bites)
    ran: list[tuple[str, int]] = []
    run = job.run

    def spied(lake: Lake, which: tuple[DimensionSet, ...], *rest: object) -> None:
        run(lake, which, *rest)  # type: ignore[arg-type]  # what was handed over
        ran.append((which[0].name, len(ran)))
        if len(ran) == 1:
            add(lake, 20)

    monkeypatch.setattr(job, "run", spied)
    jobs.run_once(lake, bites)
    assert [name for name, _ in ran] == ["hosts", "base", "hosts", "hosts"]
    jobs.run_once(lake, bites)
    assert_exact(lake, BASE, HOSTS)


def test_other_dimensions_under_the_same_name_are_refused(lake: Lake) -> None:
    jobs.prepare(lake, WITH_HOSTS)
    other = config(dimension_sets={**DEFAULTS_OFF, "hosts": ["host", "zone"]})
    with pytest.raises(OperatorError, match=r"hosts = \['host', 'zone'\]: its tables are by .*--drop hosts"):
        jobs.prepare(lake, other)


def test_drop_removes_a_set_that_is_not_configured(lake: Lake) -> None:
    jobs.prepare(lake, WITH_HOSTS)
    add(lake, 30)
    jobs.run_once(lake, WITH_HOSTS)
    configured = lake.location.root / "spanlake.toml"
    configured.write_text('[analyze.dimension_sets]\nhosts = ["host"]\n')
    flags = ["--data", str(lake.location.root), "--drop"]
    refused = CliRunner().invoke(spanlake, ["analyze", "--config", str(configured), *flags, "hosts"])
    assert refused.exit_code == 1
    assert "first set analyze.dimension_sets.hosts = []" in refused.output
    for name in ("base", "nothing"):
        assert CliRunner().invoke(spanlake, ["analyze", *flags, name]).exit_code == 1
    assert CliRunner().invoke(spanlake, ["analyze", *flags, "hosts"]).exit_code == 0
    with lake.read() as reader, pytest.raises(duckdb.CatalogException):
        reader.row("SELECT 1 FROM rollup_hosts_1m")
    assert position(lake, HOSTS.job) is None
    jobs.prepare(lake, WITH_HOSTS)
    jobs.run_once(lake, WITH_HOSTS)
    assert_exact(lake, BASE, HOSTS)


@pytest.mark.parametrize("statement", ["DROP TABLE rollup_1m", "ALTER TABLE rollup_1h DROP COLUMN weighted_errors"])
def test_rollups_that_miss_a_table_or_a_measure_are_made_anew(lake: Lake, statement: str) -> None:
    add(lake, 30)
    jobs.run_once(lake, BASE_ONLY)
    with lake.write() as transaction:
        transaction.execute(statement)
    jobs.prepare(lake, BASE_ONLY)
    jobs.run_once(lake, BASE_ONLY)
    assert_exact(lake, BASE)


@pytest.mark.parametrize("remembers", [True, False])
def test_operations_beyond_the_bound_are_folded_and_counted(lake: Lake, remembers: bool) -> None:
    few = config(operations_per_service_max=3)
    memory = Memory()
    for operations in (["a", "b"], ["c", "d", "c"], ["a", "e"], ["f"]):
        add(lake, 6, operation=list(operations))
        jobs.run_once(lake, few, memory=memory if remembers else None)
    with lake.read() as reader:
        for table in ("rollup_1m", "rollup_1h"):
            counts = dict(reader.rows(f"SELECT operation, sum(count)::BIGINT FROM {table} GROUP BY 1"))
            assert counts == {"a": 6, "b": 3, "c": 4, OVERFLOW: 11}
        assert list(fold.folded(reader, ["base"])) == [("base", 11, 3)]
        found = status.describe(lake, reader, few)
    assert found["folded"] == [{"set": "base", "spans": 11, "series_max": 3}]
    assert "11 spans of at most 3 series are folded" in status.as_text(found)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('base = ["host"]', "'base' is always there"),
        ('Hosts = ["host"]', "expected a name of a to z"),
        ('hosts = ["hots"]', r'hosts = \["hots"\] .*: expected different ones of region, .*host'),
        ('hosts = ["host", "host"]', "expected different ones of"),
        ("hosts = 3", "hosts = 3 .*valid list"),
        ("hosts = [3]", "expected a table of lists"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(tmp_path: Path, table: str, message: str) -> None:
    file = tmp_path / "spanlake.toml"
    file.write_text(f"[analyze.dimension_sets]\n{table}\n")
    with pytest.raises(OperatorError, match=message):
        resolve(str(file), {}, {})


def test_defaults_stay_but_where_they_are_set_to_nothing() -> None:
    environ = {"SPANLAKE_ANALYZE_DIMENSION_SETS": '{hosts = ["host"], error = []}'}
    found = sets.configured(resolve(None, {}, environ).config.analyze)
    assert [dimension_set.name for dimension_set in found] == ["base", "host", "version", "destination", "hosts"]
    assert sets.configured(AnalyzeConfig())[-1].tables == (("rollup_error_1m", "1m"), ("rollup_error_1h", "1h"))
