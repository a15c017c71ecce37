"""Imports point upstream only, and only the package of the lake opens the database."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector", "analytics", "dashboard", "sample_data")
ALLOWED = {
    "collector": {"collector"},
    "analytics": {"analytics", "collector"},
    "dashboard": {"dashboard", "analytics", "collector"},
    "sample_data": {"sample_data"},
}
RECEIVE_KNOWS = (
    "collector.receive",
    "collector.tenants",
    "collector.config",
    "collector.errors",
    "collector.pipeline",
)
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, tree: ast.AST) -> list[str]:
    package, *inner = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for name in imported(tree):
        top = name.split(".")[0]
        if top in PACKAGES and top not in ALLOWED[package]:
            found.append(f"{package} imports {name}")
        in_receive = inner[:1] == ["receive"]
        known = name.startswith((*RECEIVE_KNOWS, "collector.decode.otlp_json"))
        if in_receive and top == "collector" and not known:
            found.append(f"collector.receive imports {name}")
        if top in ("duckdb", "sqlite3") and name not in ("duckdb", "sqlite3") and not name.endswith("Error"):
            found.append(f"{name}: import the module")
    if inner[:1] != ["lake"] or package != "collector":
        found += [f"uses duckdb.{name}" for name in names_of_duckdb(tree) if not name.endswith("Error")]
    return found


def names_of_duckdb(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "duckdb":
            yield node.attr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_upstream_only(path: Path) -> None:
    assert violations(path, ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("collector/x.py", "import analytics"),
        ("collector/x.py", "def f():\n    from dashboard.launch import start"),
        ("analytics/x.py", "from dashboard import launch"),
        ("sample_data/x.py", "from collector.spans import SPAN_SCHEMA"),
        ("collector/receive/x.py", "from collector.lake.lake import Lake"),
        ("collector/receive/x.py", "from collector.decode.decoder import Decoder"),
        ("analytics/x.py", "import duckdb\nduckdb.connect()"),
        ("dashboard/x.py", "from duckdb import connect"),
    ],
)
def test_the_rules_find_what_breaks_them(place: str, code: str) -> None:
    assert violations(ROOT / place, ast.parse(code))
