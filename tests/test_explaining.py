"""Explaining a selection: what is told of each value is what counting its spans one by one gives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from analytics.insight import explaining
from analytics.insight.explaining import COLUMNS, explain
from analytics.window import Window
from benchmarks.rollup import START_NS, spans
from collector.config import QueryConfig
from collector.lake.lake import Lake
from collector.lake.sandbox import open_sandbox
from collector.lake.segments import write_segment

SPANS = 20_000
WHERE = "duration_ns % 3 = 0 AND (tenant < 't1' OR status = 'error' OR region > 'f')"


def weighted(seed: int) -> pa.Table:
    """Spans of which some have a weight, and some a status of HTTP, some no class of error."""
    rng = np.random.default_rng(seed)
    found = spans(SPANS, seed, START_NS)
    replaced = {
        "sample_weight": pl.Series(np.where(rng.random(SPANS) < 0.5, np.nan, rng.integers(1, 9, SPANS))).fill_nan(None),
        "http_status": pl.Series(rng.choice([200, 404, 500], SPANS)),
        "cache_hit": pl.Series(rng.random(SPANS) < 0.8),
        "duration_ns": pl.Series(rng.choice([2, 3, 6], SPANS)),
    }
    for name, values in replaced.items():
        at = found.schema.get_field_index(name)
        found = found.set_column(at, found.schema.field(at), values.to_arrow().cast(found.schema.field(at).type))
    return found


def counted(table: pa.Table) -> dict[tuple[str, str], tuple[float, ...]]:
    """Of each column and value: spans and share among the selected, the same among the others, share of unknown."""
    frame = pl.DataFrame(table.select([*COLUMNS, "sample_weight", "duration_ns"])).with_columns(
        pl.col(name).cast(pl.String) for name in COLUMNS
    )
    chosen = (pl.col("tenant") < "t1") | (pl.col("status") == "error") | (pl.col("region") > "f")
    frame = frame.with_columns(
        chosen=(pl.col("duration_ns") % 3 == 0) & chosen, weight=pl.col("sample_weight").fill_null(1.0)
    )
    total = {side: float(frame.filter(pl.col("chosen") == side)["weight"].sum()) for side in (True, False)}
    found = {}
    for name in COLUMNS:
        for (value,), part in frame.filter(pl.col(name).is_not_null()).group_by(name):
            sides = {side: part.filter(pl.col("chosen") == side) for side in (True, False)}
            each = [v for side, one in sides.items() for v in (one.height, float(one["weight"].sum()) / total[side])]
            found[name, str(value)] = (*each, part["sample_weight"].null_count() / part.height)
    return found


def test_counts_and_shares_of_all_columns_are_those_of_all_spans(lake: Lake) -> None:
    tables = [weighted(seed) for seed in (1, 2)]
    for table in tables:
        path = write_segment(table, lake.location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])
    begin = datetime.fromtimestamp(START_NS // 10**9, UTC)
    with open_sandbox(lake.location, QueryConfig()) as sandbox:
        found = explain(sandbox, Window(begin, begin + timedelta(hours=1)), WHERE, rows_max=1000)
    expected = counted(pa.concat_tables(tables).unify_dictionaries())
    told = ("spans_selected", "share_selected", "spans_others", "share_others", "unknown_weight_share")
    assert found.height >= 5
    for row in found.iter_rows(named=True):
        assert [row[name] for name in told] == pytest.approx(expected[row["attribute"], row["value"]]), row
    widest = max(expected, key=lambda of: abs(expected[of][1] - expected[of][3]))
    assert found.row(0)[:2] == widest


def test_attributes_are_tested_with_the_spans_that_were_looked_at(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    table = spans(SPANS, 3, START_NS)
    chosen = rng.random(SPANS) < 0.5
    each = {
        # Of the selected most have one value, and all others are drawn whatever the selection is.
        "cause": np.where(rng.random(SPANS) < np.where(chosen, 0.9, 0.1), "a", "b"),
        "id": np.arange(SPANS).astype(str),
        **{f"noise{i}": rng.choice(list("abc"), SPANS) for i in range(6)},
    }
    kind = table.schema.field("attributes").type
    attributes = pa.array([list(zip(each, row, strict=True)) for row in zip(*each.values(), strict=True)], kind)
    replaced = {"attributes": attributes, "duration_ns": pa.array(np.where(chosen, 2, 1))}
    weight = pl.Series(np.where(rng.random(SPANS) < 0.5, np.nan, 4.0)).fill_nan(None).to_arrow()
    for name, values in {**replaced, "sample_weight": weight}.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), values.cast(table.schema.field(at).type))
    path = write_segment(table, lake.location.files / "main" / "spans")
    with lake.write() as transaction:
        transaction.add_files("spans", [path])
    monkeypatch.setattr(explaining, "ATTRIBUTE_SPANS_MAX", 500)
    begin = datetime.fromtimestamp(START_NS // 10**9, UTC)
    window = Window(begin, begin + timedelta(hours=1))
    with open_sandbox(lake.location, QueryConfig()) as sandbox:
        found = explain(sandbox, window, "duration_ns = 2")
        few = explain(sandbox, window, f"span_id = '{table['span_id'][0].as_py()}'", rows_max=1000)
    assert set(found["attribute"]) == {"cause"}
    assert found["share_selected"].max() == pytest.approx(0.9, abs=0.05)
    assert min(found["p_corrected"].to_list()) > 1e-250, "of 500 spans, not of 20,000"
    assert not set(few["attribute"]) & set(each), "none of the selected was looked at"
