"""The page's pure parts: units, headline, table, charts, messages, and Streamlit's command line."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.health import Freshness
from collector.config import CollectorConfig, Config, DashboardConfig, StorageConfig
from collector.errors import OperatorError
from collector.settings import load
from dashboard import launch, states, theme, units
from dashboard.health import charts, headline, table
from dashboard.health.figures import FIGURES, compared

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "\N{EN DASH}"), (0, "0 ns"), (7, "7.00 ns"), (999_600, "1.00 ms"), (42_000, "42.0 µs"),
        (1_840_000, "1.84 ms"), (18_000_000, "18.0 ms"), (250_000_000, "250 ms"), (3.2e9, "3.20 s"), (4e12, "4000 s"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_that_reads_well(ns: float | None, text: str) -> None:
    assert units.duration(ns) == text


@given(st.floats(1, 1e12))
def test_a_duration_reads_as_itself(ns: float) -> None:
    number, unit = units.duration(ns).split()
    scale = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert math.isclose(float(number) * scale, ns, rel_tol=0.006)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (1, "100 %"), (0.00001, "<0.01 %"), (0.0025, "0.25 %"), (0.875, "87.5 %"), (0.99999, ">99.99 %")],
)
def test_shares_never_read_as_nothing_or_all_when_they_are_not(fraction: float, text: str) -> None:
    assert units.share(fraction) == text


def test_rates_changes_and_ages() -> None:
    assert [units.rate(r) for r in (None, 0, 0.05, 12.34, 1250, 18_200_000)] == [
        "\N{EN DASH}", "0/s", "3/min", "12.3/s", "1.25k/s", "18.2M/s",
    ]  # fmt: skip
    assert [units.relative_change(r) for r in (None, 0.0, 0.6, 1.0, 1.12, 2.34, 120.0)] == [
        "", "\N{MINUS SIGN}100 %", "\N{MINUS SIGN}40 %", "±0 %", "+12 %", "2.3\N{MULTIPLICATION SIGN}",
        "120\N{MULTIPLICATION SIGN}",
    ]  # fmt: skip
    assert [units.point_change(d) for d in (None, 0.0, 0.008, -0.0004)] == [
        "", "±0 pp", "+0.8 pp", "\N{MINUS SIGN}0.04 pp",
    ]  # fmt: skip
    assert units.age(NOW - timedelta(hours=3), NOW) == "3 h ago"
    assert units.age(NOW + timedelta(seconds=20), NOW) == "just now"
    assert units.clock(NOW - timedelta(days=1), NOW) == "28 Feb 12:00 UTC"


def test_text_of_unknown_origin_stays_text_in_markdown() -> None:
    escaped = units.escape_markdown("**a** <b> [c](d) :red[e]\n# f $g$")
    assert escaped.replace("\\", "") == "**a** <b> [c](d) :red[e] # f $g$"
    assert escaped.count("\\") == sum(character in "*<>[]():#$" for character in escaped)


def test_the_freshness_sentence() -> None:
    fresh = Freshness(NOW.replace(second=0), 1_234_567, 2.0)
    sentence = headline.freshness_sentence(fresh, NOW)
    assert sentence == "1,234,567 spans rolled up, newest just now (12:00 UTC), rollups up to date"
    late = headline.freshness_sentence(Freshness(NOW - timedelta(hours=5), 1, 240.0), NOW)
    assert late == "1 span rolled up, newest 5 h ago (07:00 UTC), rollups 4 min behind"


def total(before: dict[str, float | None] | None = None, **values: float | None) -> pl.DataFrame:
    row = {"count": 10_000, "rate_per_second": 10.0, "error_rate": 0.01, "p50_ns": 1e6, "p95_ns": 2e6, "p99_ns": 3e6}
    row["hit_ratio"] = 0.9
    baseline = {f"baseline_{name}": value for name, value in (row | (before or {})).items()}
    return pl.DataFrame([row | values | baseline], infer_schema_length=None)


def test_the_headline_marks_what_is_worse_and_nothing_else() -> None:
    found = headline.metrics(total(p95_ns=5e6, hit_ratio=0.95, error_rate=0.03, p50_ns=1.1e6))
    assert {metric.title: metric.worse for metric in found} == {
        "Rate": False, "Errors": True, "Latency p50": False, "Latency p95": True, "Latency p99": False,
        "Cache hit ratio": False,
    }  # fmt: skip
    assert [(m.change, m.baseline) for m in found if m.title == "Latency p95"] == [
        ("2.5\N{MULTIPLICATION SIGN}", "2.00 ms")
    ]


def test_the_headline_without_a_window_before_compares_nothing() -> None:
    names = ("error_rate", "p50_ns", "p95_ns", "p99_ns", "hit_ratio")
    nothing: dict[str, float | None] = {"count": 0, "rate_per_second": 0.0} | dict.fromkeys(names)
    assert [metric.change for metric in headline.metrics(total(nothing))] == [""] * 6


def test_the_table_pairs_each_figure_with_its_change() -> None:
    before = {"rate_per_second": 0.0, "error_rate": 0.004, "p95_ns": 1e6, "p99_ns": None, "hit_ratio": 0.95}
    rows = total(before).with_columns(
        pl.lit("eu").alias("region"), pl.lit("p95 slower").alias("change_text"),
        pl.lit(0.25).alias("unknown_weight_share"),
        pl.lit([1.0, 2.0]).alias("sparkline"), pl.lit([1.0, None]).alias("sparkline_p95_ns"),
    )  # fmt: skip
    row = table.shown(compared(rows), ("region",)).row(0, named=True)
    assert row["p95_ns_change"] == 2.0
    assert row["rate_per_second_change"] is None
    assert row["p99_ns_change"] is None
    assert math.isclose(row["error_rate_change"], 0.006)
    assert math.isclose(row["hit_ratio_change"], -0.05)
    assert row["sparkline_p95_ns"] == [1.0, 0.0]


def test_only_what_is_more_than_chance_is_worse() -> None:
    before = {"error_rate": 0.001, "hit_ratio": 0.95}
    slower = {"p50_ns": 2e6, "p95_ns": 4e6, "p99_ns": 6e6}
    worse = {}
    for count in (100, 500, 5000):
        row = compared(total(before | {"count": count}, count=count, **slower)).row(0, named=True)
        worse[count] = [figure.column for figure in FIGURES if row[figure.worse]]
    assert worse == {
        100: ["p50_ns"],
        500: ["error_rate", "p50_ns", "p95_ns"],
        5000: ["error_rate", "p50_ns", "p95_ns", "p99_ns", "hit_ratio"],
    }


def test_the_table_compares_nothing_with_nearly_nothing() -> None:
    figures = {"rate_per_second": 0.0, "error_rate": 0.5, "p50_ns": 1e6, "p95_ns": 1e6, "p99_ns": 1e6, "hit_ratio": 0.5}
    rows = pl.DataFrame(
        [
            figures | {f"baseline_{name}": 0.1 for name in figures}
            | {"region": region, "count": count, "baseline_count": before, "change_text": "", "sparkline": [0.0],
               "sparkline_p95_ns": [0.0], "unknown_weight_share": 0.0}
            for region, count, before in (("new", 500, 3), ("silent", 0, 500))
        ]
    )  # fmt: skip
    changes = table.shown(compared(rows), ("region",)).select(f.change for f in FIGURES).rows()
    assert changes == [(None,) * 6, (0.0, None, None, None, None, None)]


def series() -> pl.DataFrame:
    times = [datetime(2026, 3, 1, 12, minute) for minute in (0, 1, 2)]
    return pl.DataFrame(
        {"time": times, "region": ["<b>eu</b>"] * 3, "p95_ns": [1e6, None, 0.0], "rate_per_second": [1.0, 0.0, 2.0]}
    )


def test_a_chart_keeps_gaps_and_times_in_utc() -> None:
    lines = charts.Lines(series(), "region", theme.LIGHT)
    latency = next(chart for chart in charts.CHARTS if chart.column == "p95_ns")
    linear, log = (charts.points(latency, lines, log=log) for log in (False, True))
    assert linear["value"].to_list() == [1e6, None, 0.0]
    assert log["value"].to_list() == [1e6, None, None]
    assert linear["text"].to_list() == ["1.00 ms", "\N{EN DASH}", "0 ns"]
    assert linear["time"].dtype == pl.Datetime("us", "UTC")
    assert linear["clock"].to_list()[1] == "1 Mar 12:01 UTC"
    encoding = charts.build(latency, lines, log=True)["encoding"]
    assert encoding["x"]["scale"] == {"type": "utc"}
    assert encoding["y"]["scale"]["type"] == "log"


def test_names_in_the_legend_are_no_html() -> None:
    html = charts.legend(charts.Lines(series(), "region", theme.LIGHT))
    assert "&lt;b&gt;eu&lt;/b&gt;" in html
    assert "<b>" not in html


def test_red_is_no_colour_of_a_series() -> None:
    for palette in (theme.LIGHT, theme.DARK):
        assert palette.worse not in palette.series
        assert len(set(palette.series)) == len(palette.series) >= 8


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:4318", "http://127.0.0.1:4318"), ("0.0.0.0:4318", "http://127.0.0.1:4318"),
        ("[::1]:4318", "http://[::1]:4318"), ("127.0.0.1:0", None),
    ],
)  # fmt: skip
def test_the_endpoint_for_an_exporter(address: str, url: str | None) -> None:
    assert states.endpoint(address) == url


def test_an_error_is_a_short_sentence() -> None:
    assert states.message(OperatorError("no lake here")) == "no lake here"
    text = states.message(RuntimeError("IO Error: gone\nstack\nstack"))
    assert "IO Error" in text
    assert "stack" not in text


def test_the_child_reads_the_configuration_of_its_parent(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        storage=StorageConfig(data=f"{tmp_path}/data"),
        collector=CollectorConfig(http="127.0.0.1:14318"),
        dashboard=DashboardConfig(refresh_seconds=7.5, port=0),
    )
    for name, value in launch.environment(config, {}).items():
        monkeypatch.setenv(name, value)
    assert load(None, {}) == config


def test_streamlit_takes_every_option_of_the_command() -> None:
    """Streamlit names the options that it does not know, and ends."""
    command = launch.command(Config(), 8501)
    program = (
        "import sys; from streamlit.web.cli import main_run; import click\n"
        "context = main_run.make_context('run', sys.argv[1:]); print(context.params['server_headless'])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *command[5:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "True"
    assert {"--browser.gatherUsageStats=false", "--server.address=127.0.0.1", "--server.enableXsrfProtection=true"} <= {
        *command
    }


def test_a_file_of_the_current_folder_is_no_module_of_the_child(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('the wrong click')")
    python = launch.command(Config(), 8501)[:4]
    ran = subprocess.run([*python, "version"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_names_of_other_machines_do_not_reach_a_loopback_server() -> None:
    assert "--server.allowedHosts=localhost" in launch.command(Config(), 8501)
    open_to_all = Config(dashboard=DashboardConfig(host="0.0.0.0"))
    assert not [flag for flag in launch.command(open_to_all, 8501) if "allowedHosts" in flag]
    assert launch.url(open_to_all, 8501) == "http://127.0.0.1:8501"


def test_a_taken_port_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OperatorError, match=f"dashboard.port = {port}"):
            launch.start(Config(dashboard=DashboardConfig(port=port)))
    with pytest.raises(OperatorError, match=r"203\.0\.113\.1"):
        launch.claim_port("203.0.113.1", 0)
