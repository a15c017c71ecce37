"""Sampling at rest on the real DuckLake: what is kept, what it stands for, and what nobody notices of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics import jobs
from benchmarks.rollup import spans
from collector.config import Config, QueryConfig, RetentionConfig, SamplingConfig, StorageConfig
from collector.decode.sampling import sample_weights
from collector.lake import decisions, maintain, retention, sampling, segments
from collector.lake.lake import Lake, Transaction
from collector.lake.retention import DAY_NS
from collector.lake.sandbox import open_sandbox
from collector.lake.segments import write_segment

SPANLAKE = Path(sys.executable).with_name("spanlake")
PLAIN = SamplingConfig(after_days=7, share=0.2, slow_quantile=1, rare_spans=0)
"""Without reasons that keep a trace, but for errors."""
RECEIVED_DAYS_AGO = 9.0


def table(
    count: int, seed: int, *, days_ago: float = RECEIVED_DAYS_AGO, traces: Sequence[str] = (), **columns: object
) -> pa.Table:
    """Spans that were received and began so long ago, a minute of them; of `traces` by turns, else of 4 spans each.

    `columns` has values, one for all spans or one for each, in place of those that chance gives.
    """
    begun_ns = time.time_ns() - int(days_ago * DAY_NS)
    found = spans(count, seed=seed, start_ns=begun_ns)
    names = traces or [f"{seed:08x}{i:024x}" for i in range(-(-count // 4))]
    moments = pa.array([begun_ns + i * 60_000_000_000 // count for i in range(count)], pa.timestamp("ns"))
    replaced = {"trace_id": [names[i % len(names)] for i in range(count)], "received_at": moments}
    for name, values in {**replaced, "start_time": moments, **columns}.items():
        at = found.schema.get_field_index(name)
        many = values if isinstance(values, list | pa.Array) else [values] * count
        found = found.set_column(at, found.schema.field(at), pa.array(many).cast(found.schema.field(at).type))
    return found


def store(lake: Lake, rows: pa.Table) -> None:
    path = write_segment(rows, lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])


def rows(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    with lake.read() as reader:
        return reader.rows(sql)


def kept_traces(lake: Lake) -> set[str]:
    return {str(trace_id) for (trace_id,) in rows(lake, "SELECT DISTINCT trace_id FROM sampled_spans")}


def test_whole_traces_stay_and_all_with_errors(lake: Lake) -> None:
    store(lake, table(4000, 1))
    young = table(400, 2, days_ago=1)
    store(lake, young)
    before = dict(rows(lake, "SELECT trace_id, count(*) FROM spans GROUP BY trace_id"))
    failed = {t for (t,) in rows(lake, "SELECT DISTINCT trace_id FROM spans WHERE status = 'error' AND "
                                       f"received_at < now()::TIMESTAMP - INTERVAL {7} DAY")}  # fmt: skip
    done = sampling.apply(lake, PLAIN)
    after = dict(rows(lake, "SELECT trace_id, count(*) FROM sampled_spans GROUP BY trace_id"))
    assert rows(lake, "SELECT count(*) FROM spans") == [(400,)]
    assert all(before[trace] == count for trace, count in after.items())
    assert failed <= after.keys()
    assert len(failed) == done.error_traces
    assert 100 < done.share_traces < 300
    assert (done.spans, done.kept_spans, done.traces) == (4000, sum(after.values()), 1000)
    assert rows(lake, "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_delete_file") == [(0,)]
    assert sampling.apply(lake, PLAIN).steps == 0
    with lake.read() as reader:
        assert sampling.sampled(reader) == done


def test_sums_of_weights_estimate_what_was_there(lake: Lake) -> None:
    """Horvitz and Thompson: over many seeds the mean error is 0, and single ones are as large as theory has it."""
    share, seeds = 0.2, 12
    for seed in range(seeds):
        store(lake, table(4000, seed, days_ago=RECEIVED_DAYS_AGO + seed))
    config = PLAIN.model_copy(update={"share": share, "slow_quantile": 0.99, "rare_spans": 3})
    groups = "service_name, operation, date_trunc('hour', start_time::TIMESTAMP)"
    true = {row[:-1]: row[-1] for row in rows(lake, f"SELECT {groups}, count(*) FROM spans GROUP BY ALL")}
    sampling.apply(lake, config)
    variance = f"CASE WHEN factor > 1 THEN spans ** 2 * {(1 - share) / share**2} END"
    sql = (
        f"SELECT {groups}, sum(spans * factor), sum({variance}) "
        "FROM (SELECT *, count(*) AS spans, max(COALESCE(sample_weight, 1)) AS factor FROM (SELECT trace_id, "
        "service_name, operation, start_time, sample_weight FROM sampled_spans) GROUP BY ALL) GROUP BY ALL"
    )
    found = {row[:-2]: row[-2:] for row in rows(lake, sql)}
    errors = []
    for key, count in true.items():
        estimated, squared = found.get(key, (0, 0))
        if count >= 100:
            errors.append((estimated - count) / max(squared or 0, 1) ** 0.5)
    assert len(errors) > 50
    assert abs(np.mean(errors)) < 4 / len(errors) ** 0.5
    assert max(map(abs, errors)) < 6
    ((total,),) = rows(lake, "SELECT sum(COALESCE(sample_weight, 1)) FROM sampled_spans")
    assert total == pytest.approx(4000 * seeds, rel=0.05)


def test_weights_multiply_and_stand_in_the_trace_state(lake: Lake) -> None:
    states = [None, "ot=th:8", "vendor=1,ot=rv:abcdefabcdefab;th:c", "vendor=1", "ot=rv:abcdefabcdefab"]
    weights = [None, 2.0, 4.0, None, None]
    count = 1000
    sampled_before: dict[str, Any] = {"trace_state": states * (count // 5), "sample_weight": weights * (count // 5)}
    store(lake, table(count, 1, traces=[f"{i:032x}" for i in range(count)], status="ok", **sampled_before))
    sampling.apply(lake, PLAIN)
    found = rows(lake, "SELECT DISTINCT regexp_replace(trace_state, 'th:[0-9a-f]*', 'th:'), sample_weight, trace_state "
                       "FROM sampled_spans ORDER BY ALL")  # fmt: skip
    assert [row[:2] for row in found] == [
        ("ot=th:", 5.0), ("ot=th:", 10.0), ("ot=th:,vendor=1", 5.0), ("ot=th:;rv:abcdefabcdefab", 5.0),
        ("vendor=1,ot=rv:abcdefabcdefab;th:", 20.0),
    ]  # fmt: skip
    decoded = sample_weights(pa.array([row[2] for row in found], pa.string()))
    assert decoded.to_pylist() == pytest.approx([row[1] for row in found])


@pytest.mark.parametrize("order", ["error first", "error last"])
def test_a_trace_spread_over_files_and_hours_is_one(lake: Lake, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SPANS_PER_BITE_MAX", 1)
    traces = [f"{i:032x}" for i in range(200)]
    for number in range(4):
        failed = 0 if order == "error first" else 3
        status = ["error" if number == failed and i < 20 else "ok" for i in range(200)]
        store(lake, table(200, number, days_ago=RECEIVED_DAYS_AGO - number / 24, traces=traces, status=status))
    done = sampling.apply(lake, PLAIN.model_copy(update={"late_hours": 5}))
    assert (done.steps, done.traces, done.error_traces) == (4, 200, 20)
    per_trace = dict(rows(lake, "SELECT trace_id, count(*) FROM sampled_spans GROUP BY ALL"))
    assert set(per_trace.values()) == {4}
    assert set(traces[:20]) <= per_trace.keys()
    weights = rows(lake, "SELECT trace_id, count(DISTINCT COALESCE(sample_weight, 1)) AS n FROM sampled_spans "
                         "GROUP BY ALL HAVING n > 1")  # fmt: skip
    assert weights == []


def test_a_decision_holds_for_later_files_whatever_these_say(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow span among the slower ones of a later file does not keep half a trace."""
    monkeypatch.setattr(sampling, "SPANS_PER_BITE_MAX", 1)
    traces = [f"{i:032x}" for i in range(2000)]
    for number in range(3):
        rng = np.random.default_rng(number)
        durations = pa.array(rng.integers(1, 1000, 2000) * 10**number)
        store(lake, table(2000, number, days_ago=RECEIVED_DAYS_AGO - number / 100, traces=traces, status="ok",
                          operation="get", service_name="cache", tenant="a", duration_ns=durations))  # fmt: skip
    sampling.apply(lake, PLAIN.model_copy(update={"slow_quantile": 0.9, "rare_spans": 5}))
    assert rows(lake, "SELECT DISTINCT count(*) FROM sampled_spans GROUP BY trace_id") == [(3,)]


def test_slow_ones_of_each_operation_and_hour_stay(lake: Lake) -> None:
    count = 2000
    operation = ["get" if i % 2 else "scan" for i in range(count)]
    durations = [(i + 1) * (1 if i % 2 else 1000) for i in range(count)]
    traces = [f"{i:032x}" for i in range(count)]
    store(lake, table(count, 1, traces=traces, status="ok", operation=operation, duration_ns=durations,
                      service_name="cache", tenant="a", start_time=1_772_366_400 * 10**9))  # fmt: skip
    done = sampling.apply(lake, PLAIN.model_copy(update={"slow_quantile": 0.99, "share": 1e-9}))
    assert kept_traces(lake) == set(traces[-20:])
    assert (done.slow_traces, done.kept_weight) == (20, 20.0)


def test_rare_operations_of_a_day_stay_also_over_many_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "SPANS_PER_BITE_MAX", 1)
    midday = (time.time_ns() // DAY_NS - 10) * DAY_NS + DAY_NS // 2
    for number in range(5):
        operation = ["rare" if i == 0 else "often" for i in range(200)]
        traces = [f"{number:08x}{i:024x}" for i in range(200)]
        received = pa.array([midday + number * 10**9 + i for i in range(200)], pa.timestamp("ns"))
        store(lake, table(200, number, traces=traces, status="ok", operation=operation, received_at=received,
                          service_name="cache", tenant="a"))  # fmt: skip
    done = sampling.apply(lake, PLAIN.model_copy(update={"rare_spans": 7, "share": 1e-9}))
    assert {f"{number:08x}{0:024x}" for number in range(5)} <= kept_traces(lake)
    assert done.rare_traces == 5 + 7


def test_names_that_never_repeat_are_not_rare(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_OPERATIONS_SQL", decisions._OPERATIONS_SQL.replace("<= 1000", "<= 50"))
    store(lake, table(400, 1, status="ok", operation=[f"GET /{i}" for i in range(400)], service_name="web", tenant="a"))
    assert sampling.apply(lake, PLAIN.model_copy(update={"rare_spans": 7})).rare_traces == 0


def test_rollups_and_trace_tables_do_not_change_and_jobs_see_nothing(lake: Lake) -> None:
    config = Config(storage=StorageConfig(data=str(lake.location.root)))
    for number in range(3):
        store(lake, table(1000, number))
    assert sampling.apply(lake, PLAIN).steps == 1, "no job has ever run"
    for number in range(3):
        store(lake, table(1000, 10 + number))
    jobs.prepare(lake)
    jobs.run_once(lake, config)
    store(lake, table(1000, 20))
    names = [name for (name,) in rows(lake, "SELECT table_name FROM duckdb_tables()") if name.endswith(("1m", "1h"))]
    assert len(names) > 10
    sums = {name: rows(lake, f"FROM {name} ORDER BY ALL") for name in names}
    with lake.read() as reader:
        assert sampling.held(lake, reader, PLAIN) == 1
    assert sampling.apply(lake, PLAIN).spans == 3000
    assert rows(lake, "SELECT count(*) FROM spans") == [(1000,)]
    with lake.read() as reader:
        assert [lag.spans_behind for lag in jobs.lag(reader)] == [1000]
    assert {name: rows(lake, f"FROM {name} ORDER BY ALL") for name in names} == sums
    ((before,),) = rows(lake, "SELECT sum(count) FROM rollup_1h")
    jobs.run_once(lake, config)
    ((after,),) = rows(lake, "SELECT sum(count) FROM rollup_1h")
    assert after - before == 1000
    assert sampling.apply(lake, PLAIN).spans == 1000


def test_all_columns_of_what_is_kept_are_as_they_were_over_many_blocks(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "BLOCK_ROWS", 2048)
    store(lake, table(20_000, 1))
    before = rows(lake, "FROM spans ORDER BY ALL")
    assert sampling.apply(lake, PLAIN.model_copy(update={"share": 1.0})).kept_spans == 20_000
    assert rows(lake, "FROM sampled_spans ORDER BY ALL") == before
    (path,) = (lake.location.files / "main" / "sampled_spans").iterdir()
    tenants = pq.read_table(path, columns=["tenant"]).column("tenant").to_pylist()
    runs = 1 + sum(after < earlier for earlier, after in pairwise(tenants))
    assert 5 < runs <= 10


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("step", ["decide", "settle", "add_files", "delete", "insert", "commit"])
def test_killed_at_any_step_it_is_done_once(lake: Lake, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store(lake, table(400, 1))

    def killed(*_: object) -> None:
        raise _KilledError

    targets: dict[str, tuple[object, str]] = {
        "decide": (sampling, "decide"), "settle": (segments, "settle"), "add_files": (Transaction, "add_files"),
        "delete": (retention, "delete_files"), "insert": (Transaction, "insert"), "commit": (sampling, "_row"),
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(*targets[step], killed)
        with pytest.raises(_KilledError):
            sampling.apply(lake, PLAIN)
    assert rows(lake, "SELECT count(*) FROM spans") == [(400,)]
    assert rows(lake, "SELECT count(*) FROM sampled_spans") == [(0,)]
    done = sampling.apply(lake, PLAIN)
    assert (done.steps, done.spans) == (1, 400)
    assert rows(lake, "SELECT count(*) FROM sampled_spans") == [(done.kept_spans,)]
    maintain.clean(lake, time.time() + 2 * maintain.ORPHAN_GRACE_SECONDS)
    assert len(list((lake.location.files / "main/sampled_spans").iterdir())) == 1


@pytest.mark.parametrize("other", ["samples", "merges", "removes"])
def test_who_comes_second_does_it_again_or_not_at_all(lake: Lake, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(maintain.TIER_FILES):
        store(lake, table(100, number))
    decide, raced = decisions.decide, []

    def slow(*arguments: Any) -> object:
        decided = decide(*arguments)
        if not raced:
            raced.append(1)
            if other == "samples":
                sampling.apply(lake, PLAIN)
            elif other == "merges":
                assert maintain.merge_once(lake, "spans")
            else:
                retention.apply(lake, RetentionConfig(spans_days=3))
        return decided

    monkeypatch.setattr(sampling, "decide", slow)
    sampling.apply(lake, PLAIN)
    with lake.read() as reader:
        done = sampling.sampled(reader)
    assert done.spans == (0 if other == "removes" else 800)
    assert rows(lake, "SELECT count(*) FROM spans") == [(0,)]
    assert rows(lake, "SELECT count(*), count(DISTINCT span_id) FROM sampled_spans") == [(done.kept_spans,) * 2]


def test_users_see_recent_and_kept_spans_as_one(lake: Lake) -> None:
    store(lake, table(400, 1))
    store(lake, table(40, 2, days_ago=1))
    done = sampling.apply(lake, PLAIN)
    ((trace_id,),) = rows(lake, "SELECT trace_id FROM sampled_spans LIMIT 1")
    expected = [
        ("SELECT count(*) FROM spans", 40 + done.kept_spans),
        ("SELECT sum(spans) FROM traces", 40 + done.kept_spans),
        (f"SELECT count(*) FROM trace('{trace_id}')", 4),
        ("SELECT count(*) FROM lake.main.spans", 40),
        ("SELECT count(*) FROM sampled_spans", done.kept_spans),
    ]
    with open_sandbox(lake.location, QueryConfig()) as sandbox:
        for sql, count in expected:
            with sandbox.run(sql) as result:
                assert next(iter(result.batches)).column(0).to_pylist() == [count], sql


def test_sampled_spans_have_an_age_of_their_own(lake: Lake) -> None:
    store(lake, table(400, 1, days_ago=30))
    store(lake, table(400, 2, days_ago=20))
    for number in (1, 2):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sampling, "SPANS_PER_BITE_MAX", 1)
            assert sampling.apply(lake, PLAIN).steps == (2 if number == 1 else 0)
    assert retention.apply(lake, RetentionConfig(spans_days=1)) == []
    (gone,) = retention.apply(lake, RetentionConfig(sampled_spans_days=25))
    assert (gone.file.table, gone.reason) == ("sampled_spans", "age")
    (gone,) = retention.apply(lake, RetentionConfig(total_bytes=1))
    assert (gone.file.table, gone.reason) == ("sampled_spans", "size")


def test_the_command_samples_exports_and_tells(lake: Lake, tmp_path: Path) -> None:
    store(lake, table(400, 1, scope_version=None, trace_state=None))
    lake.close()
    config = tmp_path / "config.toml"
    config.write_text("[sampling]\nafter_days = 7\nrare_spans = 0\n")
    common = ["--data", str(lake.location.root), "--config", str(config)]

    def run(*arguments: str) -> str:
        done = subprocess.run([SPANLAKE, *arguments, *common], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    sampled = json.loads(run("maintain"))["sampled"]
    assert (sampled["spans"], sampled["traces"]) == (400, 100)
    assert 0 < sampled["kept_spans"] < 200
    shown = run("status")
    assert "sampling   after 7 days" in shown
    assert f"kept {sampled['kept_spans']:,} of 400 spans" in shown
    assert f"{sampled['kept_spans']} spans exported" in run("export", str(tmp_path / "spans.parquet"))


def test_the_collector_samples_by_itself(lake: Lake, tmp_path: Path) -> None:
    store(lake, table(400, 1))
    lake.close()
    config = tmp_path / "config.toml"
    config.write_text("[sampling]\nafter_days = 7\n[collector]\nmerge_interval_seconds = 0.2\n")
    command = [SPANLAKE, "collect", "--data", lake.location.root, "--config", config]
    with subprocess.Popen(
        [*command, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    ) as collector:
        assert collector.stdout is not None
        collector.stdout.readline()
        with Lake(lake.location, read_only=True) as other:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and rows(other, "SELECT count(*) FROM samplings") == [(0,)]:
                time.sleep(0.1)
            found = rows(other, "SELECT spans FROM samplings")
        collector.terminate()
    assert found == [(400,)]


@pytest.mark.parametrize("text", ["share = 0", "share = 1.5", "after_days = -1", "slow_quantile = 0.1", "days = 3"])
def test_a_value_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[sampling]\n{text}\n")
    done = subprocess.run(
        [SPANLAKE, "validate", "--config", config], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"sampling.{text.split(' ', maxsplit=1)[0]}" in done.stderr


TEXT = st.text("otrvh:;=,12ab ", max_size=12)


@settings(max_examples=200)
@given(st.none() | TEXT | TEXT.map(lambda text: f"a=1,ot=rv:1;{text}"), st.floats(1.0001, 1e9))
def test_any_trace_state_tells_the_weight_afterwards(state: str | None, weight: float) -> None:
    with duckdb.connect() as connection:
        (found,) = connection.execute(
            f"SELECT {decisions._TRACE_STATE} FROM (SELECT ?::VARCHAR AS trace_state, ?::DOUBLE AS weight)",
            [state, weight],
        ).fetchall()[0]
    (decoded,) = sample_weights(pa.array([found], pa.string())).to_pylist()
    assert decoded == pytest.approx(weight, rel=1e-6)
