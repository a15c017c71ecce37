"""What is built, locked and installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("collector", "analytics", "dashboard", "sample_data")
KINDS = {".py", ".sql"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel, built offline from what git tracks or would track."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    flags = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", str(output)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(source)], check=True, timeout=100)
    (built,) = output.glob("spanlake-*.whl")
    with zipfile.ZipFile(built) as content:
        return content.namelist()


def tracked() -> Iterator[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return (name for name in names if name and (ROOT / name).is_file())


def test_the_wheel_holds_the_four_packages_and_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert len(tops) == len(PACKAGES) + 1


def test_the_wheel_holds_every_module_and_sql_file_and_no_data(wheel: list[str]) -> None:
    packed = {name for name in wheel if ".dist-info/" not in name}
    expected = {
        name
        for name in tracked()
        if name.split("/")[0] in PACKAGES and (Path(name).suffix in KINDS or name.endswith("/py.typed"))
    }
    assert packed == expected


def test_the_lock_pins_and_hashes_everything_that_is_needed() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith(" ")]
    assert all(re.match(r"[a-z0-9-]+==\S+ .*\\$", line) for line in pins)
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines if line.startswith(" "))
    locked = {line.split("==")[0] for line in pins}
    assert names_needed() <= locked


def test_the_lock_is_as_exact_as_the_project_is() -> None:
    text = (ROOT / "requirements.lock").read_text()
    for pin in (need for need in needs() if "==" in need):
        assert f"{pin} " in text


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs/adr/0003-dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasoned = re.findall(r"^\| ([a-z0-9-]+) \|", page, re.MULTILINE)
    assert reasoned == sorted(name_of(need) for need in project["dependencies"])
    for need in project["optional-dependencies"]["test"]:
        assert re.search(rf"\b{name_of(need)}\b", page), need


def test_every_import_is_declared() -> None:
    """What is imported directly is named in pyproject.toml, not there by chance because another package needs it."""
    providers = packages_distributions()
    missing = {
        (name, path)
        for path in tracked()
        if path.endswith(".py")
        for name in imported(ROOT / path)
        if name in providers
        and not names_needed() & {provider.lower().replace("_", "-") for provider in providers[name]}
    }
    assert missing == set()


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports from other projects; pydantic_core is a part of pydantic."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(PACKAGES) - {"pydantic_core"} - sys.stdlib_module_names


def needs() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]


def names_needed() -> set[str]:
    return {name_of(need) for need in needs()}


def name_of(need: str) -> str:
    return re.split(r"[=<>~! ]", need)[0]
