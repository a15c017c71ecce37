"""The report and comparison of benchmark runs, and one tiny run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import baselines, compare, senders, suite
from benchmarks.process import quantile
from benchmarks.profile import OTHER, stage_of, stages
from benchmarks.report import (
    NOISE,
    Row,
    as_json,
    changes,
    changes_table,
    from_json,
    median_row,
    shown,
    table,
    with_ratios,
)
from benchmarks.senders import Load

positive = st.floats(1e-3, 1e9)


def row(value: float, *, better: str = "more", **fields: Any) -> Row:
    return Row("x", value, "spans/CPU-s", better, **fields)


def test_a_ratio_is_to_the_baseline_of_the_same_run() -> None:
    base, x, y = Row("base", 4, "u", "more"), Row("x", 2, "u", "more", "base"), Row("y", 2, "u", "more", "none")
    rows = with_ratios([base, x, y])
    assert [each.ratio for each in rows] == [None, 0.5, None]


@given(positive, positive)
def test_better_is_more_or_less_beyond_the_noise(before: float, after: float) -> None:
    for better, sign in (("more", 1), ("less", -1)):
        (change,) = changes([row(before, better=better)], [row(after, better=better)])
        direction = sign * (math.log(after) - math.log(before))
        certain = abs(direction) > math.log(1 + NOISE) + 1e-9
        assert change.verdict == (("better" if direction > 0 else "worse") if certain else "") or (
            abs(abs(direction) - math.log(1 + NOISE)) <= 1e-9
        )


def test_a_machine_that_is_slower_as_a_whole_changes_nothing() -> None:
    fast, slow = (
        with_ratios([Row("base", 100 * speed, "u", "more"), Row("x", 50 * speed, "u", "more", "base")])
        for speed in (1.0, 0.5)
    )
    assert [change.verdict for change in changes(fast, slow)] == ["worse", ""]


def test_a_spread_counts_as_noise() -> None:
    spread = median_row([row(value) for value in (80.0, 100.0, 120.0)])
    assert (spread.value, spread.spread) == (100.0, 0.2)
    (change,) = changes([spread], [row(130.0)])
    assert (change.noise, change.verdict) == (0.2, "better")
    (change,) = changes([spread], [row(115.0)])
    assert change.verdict == ""


def test_nothing_and_something() -> None:
    (change,) = changes([row(0.0, better="less")], [row(1.0, better="less")])
    assert change.verdict == "worse"
    (change,) = changes([row(0.0)], [row(0.0)])
    assert change.verdict == ""


def test_texts() -> None:
    assert [shown(value) for value in (0, 0.00123, 12.3, 1234.5)] == ["0", "0.00123", "12.3", "1,234"]
    lines = table(with_ratios([Row("base", 4, "u", "more"), Row("x", 2, "u", "more", "base", spread=0.1)])).splitlines()
    assert "10%" in lines[1]
    assert "0.50 x base" in lines[1]
    assert "only in b: y" in changes_table([], {"a": [], "b": ["y"]})


@given(st.lists(st.tuples(positive, st.integers(1, 50)), min_size=1, max_size=8), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_its_bucket(steps: list[tuple[float, int]], q: float) -> None:
    bounds = sorted({bound for bound, _ in steps})
    counts = [count for _, count in steps][: len(bounds)]
    buckets = [(bound, float(sum(counts[: i + 1]))) for i, bound in enumerate(bounds)]
    found = quantile([*buckets, (math.inf, buckets[-1][1])], q)
    index = next(i for i, (_, count) in enumerate(buckets) if count >= q * buckets[-1][1])
    assert (bounds[index - 1] if index else 0.0) <= found <= bounds[index] * (1 + 1e-12)


def test_quantiles_of_nothing_and_of_what_is_beyond_all_bounds() -> None:
    assert quantile([], 0.5) == 0.0
    assert quantile([(1.0, 0.0), (math.inf, 0.0)], 0.5) == 0.0
    assert quantile([(1.0, 1.0), (math.inf, 10.0)], 0.9) == 1.0


def test_the_time_of_a_thread_is_divided_by_its_samples() -> None:
    stacks = [
        "thread (7): seal;run (threading.py:1);Sealer._commit (collector/seal.py:2);execute 3",
        "thread (7): seal;run (threading.py:1);write_segment (collector/lake/segments.py:3) 1",
    ]
    found = stages({7: 8.0, 8: 1.0, 9: 0.5}, {7: "seal", 8: "event_engine", 9: "unknown"}, stacks)
    assert found == {"commit": 6.0, "write (sort, Parquet)": 2.0, "receive": 1.0, OTHER: 0.5}


@pytest.mark.parametrize(
    ("frames", "thread", "stage"),
    [
        (
            ("_decode_forever (collector/ingest.py:1)", "offsets (collector/decode/wire.py:2)"),
            "decode",
            "decode (wire)",
        ),
        (("_decode_forever (collector/ingest.py:1)", "text (collector/decode/promotion.py:2)"), "decode", "flatten"),
        (("_decode_forever (collector/ingest.py:1)", "digest_of (collector/spool.py:2)"), "decode", "spool"),
        (("_decode_forever (collector/ingest.py:1)",), "decode", "group, hand over"),
        (("run (uvloop/loop.pyx:1)", "_settle (collector/ingest.py:9)"), "MainThread", "answer"),
        ((), "MainThread", "receive"),
        ((), "python", OTHER),
    ],
)
def test_a_stack_belongs_to_the_first_stage_that_shows_in_it(frames: tuple[str, ...], thread: str, stage: str) -> None:
    assert stage_of(frames, thread) == stage


def test_a_run_is_measured_written_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, "REQUESTS", 1)
    monkeypatch.setattr(senders, "DISTINCT_SPANS", {"grpc": 100})
    monkeypatch.setattr(suite, "SHAPES", {"small": Load(spans_per_request=10, senders=2)})
    rows = suite.run(suite.Plan(seconds=0.5, rounds=1, shapes=("small",)), ("ingest",))
    ingest = next(each for each in rows if each.name == "ingest, small")
    assert ingest.value > 0
    assert ingest.ratio is not None
    document = as_json(rows, {"commit": "a"})
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert from_json(json.loads((tmp_path / "a.json").read_text())) == rows
    doubled = [{**each, "value": each["value"] * 2} for each in document["rows"]]
    (tmp_path / "b.json").write_text(json.dumps({"about": {"commit": "b"}, "rows": doubled}))
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    compare.main()
    printed = capsys.readouterr().out
    assert "commit: a -> b" in printed
    assert "peak memory, small" in printed
    assert "worse" in printed


def test_a_file_that_is_no_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match="make bench"):
        compare.read(tmp_path / "x.json")
    with pytest.raises(SystemExit, match="No such file"):
        compare.read(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="make bench"):
        from_json({"rows": [{"name": "x"}]})
