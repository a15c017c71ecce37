"""`spanlake status`, while nothing runs and while a collector does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sample_data.emit_files import framed, requests

SPANLAKE = Path(sys.executable).with_name("spanlake")


def status(folder: Path) -> dict[str, Any]:
    command = [SPANLAKE, "status", "--data", folder, "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_lake_at_rest(lake_folder: Path) -> None:
    found = status(lake_folder)
    assert found["spans"] == 3000
    assert found["latest_span"].endswith("Z")
    assert found["collector"] == {"running": False, "pid": None, "grpc": None, "http": None}
    assert found["jobs"]["running"] is False
    (lag,) = found["jobs"]["lag"]
    assert (lag["job"], lag["spans_behind"], lag["seconds_behind"]) == ("rollup", 0, 0.0)
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["spans"]["files"] >= 1
    assert tables["spans"]["bytes"] == sum(
        path.stat().st_size for path in (lake_folder / "lake").rglob("spans/*.parquet")
    )
    assert found["spool_bytes"] > 0
    assert {"spanlake", "schema", "duckdb", "ducklake", "python"} <= set(found["versions"])


def test_a_copied_folder_opens_elsewhere_and_takes_more(lake_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere's folder"
    shutil.copytree(lake_folder, copy)
    before, found = status(lake_folder), status(copy)
    assert found | {"data": ""} == before | {"data": ""}
    file = tmp_path / "more.pb"
    file.write_bytes(b"".join(map(framed, requests(7, 200))))
    subprocess.run([SPANLAKE, "import", file, "--data", copy], check=True, capture_output=True, timeout=60)
    assert (status(copy)["spans"], status(lake_folder)["spans"]) == (3200, 3000)


def test_the_text_form_says_the_same(lake_folder: Path) -> None:
    done = subprocess.run([SPANLAKE, "status", "--data", lake_folder], capture_output=True, text=True, check=True)
    assert "spans      3,000, the latest started 20" in done.stdout
    assert "collector  not running" in done.stdout
    assert "rollup                 0 spans, 0.0 s behind" in done.stdout


def test_a_new_lake_without_jobs_under_a_running_collector(tmp_path: Path) -> None:
    command = [SPANLAKE, "collect", "--data", tmp_path, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        found = status(tmp_path)
        process.terminate()
    expected = {"running": True, "pid": process.pid, "grpc": ready["grpc"], "http": ready["http"]}
    assert found["collector"] == expected
    assert (found["spans"], found["latest_span"]) == (0, None)
    assert found["jobs"]["lag"][0]["spans_behind"] == 0
