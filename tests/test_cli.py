"""The command line as a process: exit codes, messages, forms of results, what is imported when."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from dashboard.cli import main as spanlake

SPANLAKE = Path(sys.executable).with_name("spanlake")
VALUES = """
SELECT i, sum(i) OVER () AS total, 99999999999999999999999999::HUGEINT AS big, 1.50::DECIMAL(5, 2) AS price,
    '2026-01-02 03:04:05.123456789'::TIMESTAMP_NS AS t, [{'at': '2026-01-02 03:04:05'::TIMESTAMP}] AS events,
    map{'k': i} AS m, map{1: 2} AS n, 'NaN'::DOUBLE AS nan, NULL AS nothing, true AS yes, '\\xAB'::BLOB AS raw,
    'a"b,c' AS text, i AS i, INTERVAL '1 month 2 days 3 seconds'::VARCHAR AS span
FROM range(2) t(i)
"""


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [SPANLAKE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def run(*arguments: object, stdin: str | None = None, **environment: str) -> Result:
    """Run a command within this process."""
    done = CliRunner().invoke(spanlake, [str(part) for part in arguments], stdin, environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def query(folder: Path, sql: str, *flags: object, stdin: str | None = None) -> str:
    done = run("sql", "--data", folder, *flags, sql, stdin=stdin)
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def test_help_and_collect_import_no_engine_that_they_do_not_need() -> None:
    code = (
        "import sys, click\nfrom dashboard.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
        "print([m for m in ('duckdb', 'polars', 'pyarrow', 'pydantic', 'streamlit', 'grpc') if m in sys.modules])\n"
        "import collector.collect\nprint([m for m in ('polars', 'streamlit', 'analytics.jobs') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "[]"]


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["sql"], ["sql", "--format", "xml", "SELECT 1"], ["collect", "--no-such-flag"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("Usage: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sql", "--data", "NOWHERE", "SELECT 1"], "no lake at storage.data"),
        (["status", "--data", "NOWHERE"], "no lake at storage.data"),
        (["sql", "--data", "LAKE", "SELECT nothing"], "Binder Error"),
        (["sql", "--data", "LAKE", "DROP TABLE spans"], "DROP is refused"),
        (["sql", "--data", "LAKE", "--output", "NOWHERE/x", "SELECT 1"], "cannot be written"),
        (["sql", "--data", "LAKE", "--format", "parquet", "SELECT INTERVAL 1 DAY"], "cast the column"),
        (["dashboard", "--config", "/nowhere.toml"], "file /nowhere.toml cannot be read"),
    ],
)
def test_a_failure_is_1_with_a_message(arguments: list[str], message: str, tmp_path: Path, lake_folder: Path) -> None:
    nowhere = str(tmp_path / "no")
    done = run(*(part.replace("LAKE", str(lake_folder)).replace("NOWHERE", nowhere) for part in arguments))
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/proc/nowhere"], "cannot be written"),
        (["--grpc", "nonsense"], "collector.grpc = 'nonsense'"),
    ],
)
def test_a_collector_that_cannot_start_says_why_without_a_traceback(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = process("collect", "--data", tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_prints_what_holds_or_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "spanlake.toml"
    path.write_text("[query]\ntimeout_seconds = 5\n")
    good = run("validate", "--config", path, "--data", "here", SPANLAKE_DASHBOARD_PORT="0")
    assert (good.exit_code, good.stderr) == (0, "valid\n")
    assert f"timeout_seconds = 5.0  # file {path}\n" in good.stdout
    assert "port = 0  # variable SPANLAKE_DASHBOARD_PORT\n" in good.stdout
    assert 'data = "here"  # flag --data\n' in good.stdout
    bad = run("validate", "--config", path, SPANLAKE_DASHBOARD_PORT="x", SPANLAKE_QUERY_TIMEOUT_SECONDS="0")
    assert bad.exit_code == 1
    assert "has 2 problems" in bad.stderr


def test_json_keeps_every_digit(lake_folder: Path) -> None:
    text = query(lake_folder, VALUES, "--format", "json")
    assert '"big":99999999999999999999999999,' in text
    assert '"price":1.50,' in text
    rows = json.loads(text)
    assert rows[1] == {
        "i": 1, "total": 1, "big": 99999999999999999999999999, "price": 1.5, "t": "2026-01-02T03:04:05.123456789Z",
        "events": [{"at": "2026-01-02T03:04:05.000000Z"}], "m": {"k": 1}, "n": {"1": 2}, "nan": None,
        "nothing": None, "yes": True, "raw": "ab", "text": 'a"b,c', "i_1": 1, "span": rows[0]["span"],
    }  # fmt: skip
    assert json.loads(query(lake_folder, "SELECT 1 WHERE false", "--format", "json")) == []


def test_csv_reads_back(lake_folder: Path) -> None:
    header, _first, second = csv.reader(io.StringIO(query(lake_folder, VALUES, "--format", "csv")))
    row = dict(zip(header, second, strict=True))
    assert row["t"] == "2026-01-02T03:04:05.123456789Z"
    assert (row["text"], row["nothing"], row["yes"], row["raw"]) == ('a"b,c', "", "true", "ab")
    assert json.loads(row["m"]) == {"k": 1}
    assert row["big"] == "99999999999999999999999999"


def test_parquet_is_whole_or_absent(lake_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    query(lake_folder, "SELECT i, ago('1 day') AS t FROM range(25000) r(i)", "--format", "parquet", "--output", output)
    assert pq.read_table(output)["i"].to_pylist() == list(range(25000))
    failing = "SELECT CASE WHEN i = 24999 THEN error('late') ELSE i END AS i FROM range(25000) r(i)"
    done = run("sql", "--data", lake_folder, "--format", "parquet", "--output", tmp_path / "other", failing)
    assert done.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_table_is_for_people_and_bounded(lake_folder: Path) -> None:
    text = query(lake_folder, "SELECT i AS n, repeat('x', 100) AS long, 'a\nb' AS lines FROM range(1001) r(i)")
    lines = text.splitlines()
    assert len(lines) == 1003
    assert lines[2] == f"  0  {'x' * 59}…  a b"
    assert lines[-1] == "(1000 rows shown, there are more)"
    assert query(lake_folder, "SELECT NULL AS n, 1 AS one").splitlines()[2:] == ["NULL    1", "(1 row)"]


def test_a_statement_comes_from_standard_input(lake_folder: Path) -> None:
    assert json.loads(query(lake_folder, "-", "--format", "json", stdin="SELECT 1 AS x;\n")) == [{"x": 1}]


def test_a_reader_that_goes_away_is_no_error(lake_folder: Path) -> None:
    command = [SPANLAKE, "sql", "--data", lake_folder, "--format", "csv", "SELECT * FROM range(10000000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def on_terminal(*arguments: object, keys: bytes = b"", until: bytes = b"") -> tuple[int, bytes]:
    """Run on a pseudo terminal; once it has printed `until`, press `keys`. Exit code and all that it printed."""
    descriptor, other = pty.openpty()
    command = [sys.executable, "-c", ON_TERMINAL, SPANLAKE, *map(str, arguments)]
    running = subprocess.Popen(command, stdin=other, stdout=other, stderr=other)
    os.close(other)
    printed = b""
    deadline = time.monotonic() + 60
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        try:
            printed += os.read(descriptor, 4096)
        except OSError:
            break  # the other end is closed
        if keys and until in printed:
            os.write(descriptor, keys)
            keys = b""
    else:
        running.kill()
    os.close(descriptor)
    return running.wait(), printed


def test_a_long_query_says_so_on_a_terminal_and_stops_at_ctrl_c(lake_folder: Path) -> None:
    endless = "SELECT count(*) FROM range(1000000000000)"
    code, printed = on_terminal("sql", "--data", lake_folder, endless, keys=b"\x03", until=b"the query runs")
    assert code == 1, printed
    assert b"Aborted!" in printed
    assert b"Traceback" not in printed


def test_parquet_does_not_go_to_a_terminal(lake_folder: Path) -> None:
    code, printed = on_terminal("sql", "--data", lake_folder, "--format", "parquet", "SELECT 1")
    assert code == 2
    assert b"add --output FILE" in printed
