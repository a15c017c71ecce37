"""Figures of any window, aligned or sliding, equal those of the rows by minute in it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics import jobs
from analytics.buckets import quantiles
from analytics.rollup import windows
from analytics.rollup.job import write_rows
from analytics.rollup.partials import merged, partials
from analytics.rollup.sets import BASE, DimensionSet, configured
from analytics.window import HOUR, MINUTE, Window
from collector.config import AnalyzeConfig, Config
from collector.lake.lake import Lake, Reader
from collector.lake.location import Location

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
ANALYZE = AnalyzeConfig(dimension_sets={"version": [], "destination": [], "error": []})
SETS = configured(ANALYZE)
HOST = SETS[1]
COUNTS = ("count", "errors", "hits", "misses", "bytes", "unknown_weight_count", "duration_sum_ns")


def spans() -> pl.DataFrame:
    """Spans of five hours, of the host `late` only in the last one."""
    count = 4000
    numbers = pl.int_range(count)
    return pl.select(
        start_time=pl.lit(START.replace(tzinfo=None), pl.Datetime("ns"))
        + pl.duration(seconds=(numbers * 7919) % (5 * 3600)),
        region=pl.lit(["eu", "us"], pl.List(pl.String)).list.get(numbers % 2),
        tenant=pl.lit(["a", "b", "c"], pl.List(pl.String)).list.get(numbers % 3),
        service_name=pl.lit("s"),
        component=pl.lit("cache"),
        operation=pl.lit("get"),
        kind=pl.lit("server"),
        duration_ns=1000 + (numbers * 31) % 5000,
        status=pl.when(numbers % 10 == 0).then(pl.lit("error")).otherwise(pl.lit("ok")),
        cache_hit=pl.when(numbers % 4 > 0).then(numbers % 4 > 1),
        payload_bytes=numbers,
        sample_weight=pl.when(numbers % 5 > 0).then(1.0 + numbers % 3),
    ).with_columns(
        pl.col("start_time").cast(pl.Datetime("ns")),
        host=pl.when(pl.col("start_time") > START.replace(tzinfo=None) + 4 * HOUR)
        .then(pl.lit("late"))
        .otherwise(pl.lit("early"))
    )


SPANS = spans()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    location = Location(tmp_path_factory.mktemp("windows") / "data")
    location.prepare()
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake, Config(analyze=ANALYZE))
        for dimension_set in SETS:
            rows = partials(SPANS, dimension_set.dimensions)
            for table, length in dimension_set.tables:
                path = write_rows(lake, table, merged(rows, length, dimension_set.dimensions), dimension_set.dimensions)
                with lake.write() as transaction:
                    transaction.add_files(table, [path])
        with lake.read() as opened:
            yield opened


def expected(window: Window, by: list[str], values: windows.Values, dimension_set: DimensionSet) -> pl.DataFrame:
    start, end = window.start.replace(tzinfo=None), window.end.replace(tzinfo=None)
    inside = SPANS.filter(
        pl.col("start_time").is_between(start, end, closed="left"),
        *(pl.col(name).is_in(list(taken)) for name, taken in values.items()),
    )
    rows = partials(inside, by).drop("window_start").with_columns(pl.lit(0, pl.Datetime("us")).alias("window_start"))
    found = merged(rows.select(pl.col("window_start"), pl.exclude("window_start")), "1m", by)
    return found.join(quantiles(found, by, [0.5, 0.99]), on=by) if by else found


def rows_of(frame: pl.DataFrame, by: list[str]) -> dict[tuple[object, ...], tuple[int, ...]]:
    return {
        tuple(row[name] for name in by): tuple(int(row[name]) for name in COUNTS) for row in frame.to_dicts()
    }


minutes = st.integers(-10, 310)
WINDOWS = st.tuples(minutes, minutes).filter(lambda w: w[0] != w[1]).map(sorted)


@settings(max_examples=30, deadline=None)
@given(
    bounds=WINDOWS,
    by=st.sampled_from([[], ["region"], ["tenant", "region"], ["kind"]]),
    values=st.sampled_from([{}, {"region": ["eu"]}, {"tenant": ["a", "none"], "region": ["us"]}]),
    dimension_set=st.sampled_from(SETS),
)
def test_any_window_equals_the_spans_in_it(
    reader: Reader, bounds: list[int], by: list[str], values: windows.Values, dimension_set: DimensionSet
) -> None:
    window = Window(START + bounds[0] * MINUTE, START + bounds[1] * MINUTE)
    found = windows.figures(reader, window, by, dimension_set, values, qs=[0.5, 0.99])
    wanted = expected(window, by, values, dimension_set)
    assert rows_of(found, by) == rows_of(wanted, by)
    assert found["duration_max_ns"].to_list() == wanted.sort(by)["duration_max_ns"].to_list() if by else True
    if by:
        assert found["p99_ns"].to_list() == wanted.sort(by)["p99_ns"].to_list()
    for row in found.to_dicts():
        assert row["effective_count"] == pytest.approx(row["weighted_count"] ** 2 / row["weight_squares"])
        assert row["effective_count"] <= row["count"]
        assert row["unknown_weight_share"] == pytest.approx(row["unknown_weight_count"] / row["count"])
        assert row["estimated_error_rate"] == pytest.approx(row["weighted_errors"] / row["weighted_count"])
        assert row["rate_per_second"] == pytest.approx(row["count"] / window.seconds)


@settings(max_examples=15, deadline=None)
@given(
    start=st.integers(60, 290),
    steps=st.integers(1, 25),
    length=st.sampled_from([1, 5, 59, 60, 61, 200]),
    by=st.sampled_from([[], ["host"], ["region", "host"]]),
)
def test_sliding_windows_equal_each_window_alone(
    reader: Reader, start: int, steps: int, length: int, by: list[str]
) -> None:
    window = Window(START + start * MINUTE, START + (start + steps) * MINUTE)
    found = windows.sliding(reader, window, length * MINUTE, by, HOST, qs=[0.5])
    assert found["time"].n_unique() == (steps if not by or found.height else 0)
    for number in {1, steps // 2 + 1, steps}:
        end = window.start + number * MINUTE
        alone = windows.figures(reader, Window(end - length * MINUTE, end), by, HOST, qs=[0.5])
        at_end = found.filter(pl.col("time") == end.replace(tzinfo=None))
        present = at_end.filter(pl.col("count") > 0)
        assert rows_of(present, by) == rows_of(alone, by)
        assert present["p50_ns"].to_list() == alone["p50_ns"].to_list()
        for one, other in zip(present.to_dicts(), alone.to_dicts(), strict=True):
            for name in windows.FIGURES:
                assert one[name] == pytest.approx(other[name]), name


def test_hours_are_read_by_hour_and_edges_by_minute() -> None:
    window = Window(START + 30 * MINUTE, START + timedelta(days=30, minutes=90))
    assert [(piece.table, piece.start, piece.end) for piece in windows.pieces([window], HOST)] == [
        ("rollup_host_1m", START + 30 * MINUTE, START + HOUR),
        ("rollup_host_1h", START + HOUR, START + timedelta(days=30, hours=1)),
        ("rollup_host_1m", START + timedelta(days=30, hours=1), window.end),
    ]
    assert [piece.table for piece in windows.pieces([Window(START + MINUTE, START + HOUR)])] == ["rollup_1m"]


def test_what_a_set_has_not_is_refused(reader: Reader) -> None:
    window = Window(START, START + HOUR)
    with pytest.raises(ValueError, match=r"by = \['host'\]: expected different dimensions of the set 'base'"):
        windows.figures(reader, window, ["host"])
    with pytest.raises(ValueError, match="values = "):
        windows.sliding(reader, window, HOUR, values={"host; DROP TABLE spans": ["x"]})
    with pytest.raises(ValueError, match="whole minutes"):
        windows.sliding(reader, window, timedelta(seconds=90))
    assert BASE.dimensions == configured(AnalyzeConfig())[0].dimensions


def test_an_empty_window_has_no_figures_and_sliding_has_zeros(reader: Reader) -> None:
    window = Window(START - 5 * HOUR, START - 4 * HOUR)
    assert windows.figures(reader, window).is_empty()
    found = windows.sliding(reader, window, 30 * MINUTE, qs=[0.5])
    assert (found.height, found["count"].sum(), found["p50_ns"].null_count()) == (60, 0, 60)
    assert windows.sliding(reader, window, 30 * MINUTE, ["host"], HOST).is_empty()
