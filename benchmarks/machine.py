"""What a benchmark ran on: machine, versions, date, commit."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("duckdb", "polars", "pyarrow", "ptars", "grpcio")


def describe() -> dict[str, object]:
    """Machine, versions, date and commit as a flat mapping."""
    processors = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = [line.split(":")[1].strip() for line in processors if "model name" in line]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{len(model)} x {model[0] if model else platform.processor()}",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in PACKAGES},
        "commit": commit.stdout.strip(),
    }
