"""At every snapshot of the lake all rollups equal a recomputation, in SQL, from the spans up to their marks.

Hypothesis drives the job through late and repeated spans, restarts, crashes, races, merges, compaction, expiry and
sets that come and go. `make invariant` tries many more ways than the default.
"""

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from analytics import jobs
from analytics.buckets import LOG_GAMMA
from analytics.rollup import compact, job, sets
from analytics.rollup.job import Memory
from collector.config import AnalyzeConfig, Config
from collector.lake import engine, maintain
from collector.lake.lake import Lake, Reader, StaleProgressError, Transaction
from collector.lake.location import Location
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA

EXAMPLES = int(os.environ.get("INVARIANT_EXAMPLES", "2"))
EVERY_SNAPSHOT = "INVARIANT_EXAMPLES" in os.environ
STEPS = 25 if EVERY_SNAPSHOT else 8
START_NS = 1_772_366_400 * 10**9
HOUR_NS = 3600 * 10**9
DEFAULTS_OFF: dict[str, list[str]] = {"host": [], "version": [], "destination": [], "error": []}
HOSTS = ["host", "http_status", "kind"]
NULL_LABELS = {"region": "unknown", "host": "unknown", "http_status": "none"}
BASE_ONLY = Config(analyze=AnalyzeConfig(dimension_sets=DEFAULTS_OFF))
WITH_HOSTS = Config(analyze=AnalyzeConfig(dimension_sets={**DEFAULTS_OFF, "hosts": HOSTS}))
OFFSETS_NS = [0, 59 * 10**9, HOUR_NS - 1, -HOUR_NS, -26 * HOUR_NS]

MEASURES = {
    "count(*)": "sum(count)",
    "count(*) FILTER (status = 'error')": "sum(errors)",
    "count(*) FILTER (cache_hit)": "sum(hits)",
    "count(*) FILTER (NOT cache_hit)": "sum(misses)",
    "sum(COALESCE(payload_bytes, 0))": "sum(bytes)",
    "sum(COALESCE(sample_weight, 1))": "sum(weighted_count)",
    "COALESCE(sum(COALESCE(sample_weight, 1)) FILTER (status = 'error'), 0)": "sum(weighted_errors)",
    "sum(COALESCE(sample_weight, 1) ** 2)": "sum(weight_squares)",
    "count(*) - count(sample_weight)": "sum(unknown_weight_count)",
    "sum(duration_ns)": "sum(duration_sum_ns)",
    "max(duration_ns)": "max(duration_max_ns)",
}
BUCKET = f"ceil(ln(greatest(duration_ns, 0.97)) / {LOG_GAMMA!r})::INT"
SECOND = "date_diff('second', date_trunc('{unit}', start_time::TIMESTAMP), start_time::TIMESTAMP)"


def spans(seed: int, count: int, offset_ns: int) -> pa.Table:
    """Spans of two minutes from START_NS + offset_ns, with weights that floating point adds exactly."""
    rng = np.random.default_rng(seed)

    def pick(*values: object) -> pa.Array:
        return pa.array([values[i] for i in rng.integers(0, len(values), count)])

    columns = {
        "region": pick("eu", "us", None), "tenant": pick("a", "b"), "kind": pick("server", "client"),
        "host": pick("h1", "h2", None), "http_status": pick(200, 503, None), "status": pick("ok", "error"),
        "start_time": pa.array(START_NS + offset_ns + rng.integers(0, 120 * 10**9, count)),
        "duration_ns": pick(0, 5, 1000, 10**6), "cache_hit": pick(True, False, None),
        "payload_bytes": pick(10, None), "sample_weight": pick(1.0, 4.0, None),
    }  # fmt: skip
    found = []
    for field in SPAN_SCHEMA:
        plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if field.name in columns:
            values = columns[field.name].cast(plain)
        elif field.nullable:
            values = pa.nulls(count, plain)
        elif field.name in ("attributes", "events", "links"):
            values = pa.array([[]] * count, plain)
        else:
            values = pa.array(["x"] * count) if plain == pa.string() else pa.array([0] * count).cast(plain)
        found.append(values.cast(field.type))
    return pa.table(found, schema=SPAN_SCHEMA)


def differences(reader: Reader, dimension_set: sets.DimensionSet, at: str) -> list[tuple[object, ...]]:
    """Rows that are in one of rollup and recomputation alone; `at` is the clause of the snapshot."""
    mark = f"(SELECT COALESCE(max(position), -1) FROM progress {at} WHERE job = '{dimension_set.job}')"
    labels = [
        f"COALESCE({name}::VARCHAR, '{NULL_LABELS[name]}')" if name in NULL_LABELS else name
        for name in dimension_set.dimensions
    ]
    dimensions = ", ".join(dimension_set.dimensions)
    found: list[tuple[object, ...]] = []
    for table, length in dimension_set.tables:
        unit = "minute" if length == "1m" else "hour"
        key = f"date_trunc('{unit}', start_time::TIMESTAMP), {', '.join(labels)}"
        raw = f"FROM spans {at} WHERE snapshot_id <= {mark} GROUP BY ALL"
        counted = f"SELECT window_start, {dimensions}, {', '.join(MEASURES.values())} FROM {table} {at} GROUP BY ALL"
        pairs = [(f"SELECT {key}, {', '.join(MEASURES)} {raw}", counted)]
        for cell, column in ((BUCKET, "latency_buckets"), (SECOND.format(unit=unit), "second_counts")):
            cells = (
                f"SELECT window_start, {dimensions}, unnest(map_keys({column}))::INT AS cell, "
                f"unnest(map_values({column})) AS spans FROM {table} {at}"
            )
            stored = f"SELECT window_start, {dimensions}, cell, sum(spans) FROM ({cells}) GROUP BY ALL"
            pairs.append((f"SELECT {key}, {cell} AS cell, count(*) {raw}", stored))
        for one, other in pairs:
            found += reader.rows(f"({one} EXCEPT ALL {other}) UNION ALL ({other} EXCEPT ALL {one})")
    return found


class Killed(BaseException):
    """Ends a run at any step, as a kill does: nothing after it happens."""


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    location = Location(tmp_path_factory.mktemp("empty") / "data")
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, BASE_ONLY)
        maintain.configure(lake)
    return location.root


class Rollups(RuleBasedStateMachine):
    """A lake with spans that come, and the job in all ways that it can go."""

    empty: Path

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        shutil.copytree(self.empty, self.folder / "data")
        self.config, self.memory, self.last = BASE_ONLY, Memory(), spans(0, 3, 0)
        self.lake = Lake(Location(self.folder / "data"), read_only=False)

    def store(self, table: pa.Table) -> None:
        path = write_segment(table, self.lake.location.files / "main" / "spans")
        with self.lake.write() as transaction:
            transaction.add_files("spans", [path])

    @rule(
        seed=st.integers(0, 99),
        count=st.integers(1, 12),
        offset_ns=st.sampled_from(OFFSETS_NS),
        files=st.integers(1, 3),
    )
    def spans_come(self, seed: int, count: int, offset_ns: int, files: int) -> None:
        for number in range(files):
            self.last = spans(seed + number, count, offset_ns)
            self.store(self.last)

    @rule()
    def spans_come_again(self) -> None:
        self.store(self.last)

    @rule()
    def job_runs(self) -> None:
        jobs.run_once(self.lake, self.config, memory=self.memory)

    @rule(spans_max=st.integers(1, 20))
    def job_does_the_first_bite_of_each_group(self, spans_max: int) -> None:
        with self.lake.read() as reader:
            due = job.behind(reader, sets.configured(self.config.analyze), spans_max)
        for group in due:
            for bite in group.bites[:1]:
                job.run(self.lake, group.sets, bite, self.config.analyze, self.memory)

    @rule(step=st.integers(0, 3))
    def job_is_killed(self, step: int) -> None:
        calls, add_files = [], Transaction.add_files

        def dies(transaction: Transaction, table: str, paths: list[Path]) -> None:
            if len(calls) == step:
                raise Killed
            calls.append(table)
            add_files(transaction, table, paths)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Transaction, "add_files", dies)
            try:
                jobs.run_once(self.lake, self.config, memory=self.memory)
            except Killed:
                self.restart()

    @rule()
    def another_job_is_faster(self) -> None:
        with self.lake.read() as reader:
            due = job.behind(reader, sets.configured(self.config.analyze), 10)
        jobs.run_once(self.lake, self.config)
        for group in due:
            for bite in group.bites[:1]:
                with pytest.raises(StaleProgressError):
                    job.run(self.lake, group.sets, bite, self.config.analyze, self.memory)

    @rule()
    def jobs_race(self) -> None:
        threads = [threading.Thread(target=jobs.run_once, args=(self.lake, self.config)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    @rule()
    def spans_are_merged(self) -> None:
        if not maintain.merge_once(self.lake, "spans"):
            with self.lake.maintenance() as connection:
                connection.execute(f"CALL ducklake_merge_adjacent_files('{engine.CATALOG}', 'spans')")

    @rule()
    def rollups_are_compacted(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compact, "TIER_FILES", 2)
            compact.compact_all(self.lake, sets.configured(self.config.analyze), lambda: False)

    @rule()
    def old_snapshots_and_files_are_cleaned(self) -> None:
        maintain.clean(self.lake, time.time() + 2 * maintain.ORPHAN_GRACE_SECONDS)

    @rule()
    def restart(self) -> None:
        self.lake.close()
        self.lake, self.memory = Lake(self.lake.location, read_only=False), Memory()

    @precondition(lambda self: self.config is BASE_ONLY)
    @rule()
    def a_set_is_added(self) -> None:
        self.config = WITH_HOSTS
        jobs.prepare(self.lake, self.config)

    @precondition(lambda self: self.config is WITH_HOSTS)
    @rule()
    def the_set_is_removed(self) -> None:
        self.config = BASE_ONLY

    def teardown(self) -> None:
        if not hasattr(self, "lake"):
            return
        try:
            with self.lake.read() as reader:
                self.check(reader)
        finally:
            self.lake.close()
            shutil.rmtree(self.folder)

    def check(self, reader: Reader) -> None:
        """All snapshots, or without EVERY_SNAPSHOT the newest and a few more."""
        listed = reader.rows(f"SELECT snapshot_id FROM {engine.CATALOG}.snapshots() ORDER BY snapshot_id")
        versions = [version for (version,) in listed]
        chosen = versions if EVERY_SNAPSHOT else [versions[-1], *versions[:-1][:: max(1, len(versions) // 2)]]
        for version in chosen:
            at = f"AT (VERSION => {version})"
            created = {table for (table,) in reader.rows(TABLES_AT, [version, version])}
            for dimension_set in sets.configured(WITH_HOSTS.analyze):
                if dimension_set.hours in created:
                    assert differences(reader, dimension_set, at) == [], (version, dimension_set)


TABLES_AT = f"""
SELECT table_name FROM __ducklake_metadata_{engine.CATALOG}.ducklake_table
WHERE begin_snapshot <= ? AND (end_snapshot IS NULL OR end_snapshot > ?)
"""


def test_rollups_equal_a_recomputation_at_every_snapshot(empty_lake: Path) -> None:
    Rollups.empty = empty_lake
    case = Rollups.TestCase
    case.settings = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()


def test_a_difference_is_seen(empty_lake: Path, tmp_path: Path) -> None:
    shutil.copytree(empty_lake, tmp_path / "data")
    with Lake(Location(tmp_path / "data"), read_only=False) as lake:
        path = write_segment(spans(1, 50, 0), lake.location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])
        jobs.run_once(lake, BASE_ONLY)
        with lake.read() as reader:
            assert differences(reader, sets.BASE, "") == []
        with lake.write() as transaction:
            transaction.execute("UPDATE rollup_1h SET hits = hits + 1 WHERE count = (SELECT max(count) FROM rollup_1h)")
        with lake.read() as reader:
            assert differences(reader, sets.BASE, "")
