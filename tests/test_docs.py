"""The pages say what is so: generated parts are current, examples run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import duckdb
import pyarrow as pa
import pytest

from collector import settings
from collector.config import QueryConfig
from collector.lake import engine
from collector.lake.location import Location
from collector.lake.sandbox import Sandbox, open_sandbox
from collector.spans import RESOURCE_SCHEMA, SPAN_SCHEMA
from dashboard.cli import main as spanlake

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def sandbox(lake_folder: Path) -> Iterator[Sandbox]:
    with open_sandbox(Location(lake_folder), QueryConfig()) as opened:
        yield opened


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", generate().PAGES)
def test_generated_parts_are_current(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert generate().page(text) == text, "run `make docs`"
    assert "<!-- generated: " in text


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(spanlake)
    for name in spanlake.list_commands(context):
        command = spanlake.get_command(context, name)
        assert command is not None
        yield name, command


@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_every_flag_has_help_and_is_on_the_page(name: str, command: click.Command) -> None:
    page = (ROOT / "docs/command-line.md").read_text()
    section = page.split(f"### `spanlake {name}`\n")[1].split("\n### ")[0]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert all(flag in section for flag in option.opts)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def sql_examples() -> list[str]:
    pages = ("docs/sql.md", "docs/traces.md")
    return [sql for page in pages for sql in blocks(ROOT / page, "sql") if not sql.startswith("ATTACH")]


@pytest.mark.parametrize("sql", sql_examples())
def test_an_example_of_sql_runs_and_finds_something(sandbox: Sandbox, sql: str) -> None:
    with sandbox.run(sql) as result:
        found = sum(batch.num_rows for batch in result.batches)
    assert found or "tenant_health" in sql  # it looks at whole minutes before this one


def shell_queries() -> list[str]:
    lines = [
        line for page in (ROOT / "README.md", ROOT / "docs/sql.md") for line in "".join(blocks(page, "sh")).splitlines()
    ]
    return [shlex.split(line)[-1] for line in lines if line.startswith("spanlake sql")]


@pytest.mark.parametrize("sql", shell_queries())
def test_a_query_of_a_shell_example_runs(sandbox: Sandbox, sql: str) -> None:
    with sandbox.run(sql) as result:
        assert result.schema.names


def test_the_attach_statement_on_the_page_works(lake_folder: Path) -> None:
    (statement,) = (sql for sql in blocks(ROOT / "docs/sql.md", "sql") if sql.startswith("ATTACH"))
    with engine.connect(64 * 2**20, 1) as connection:
        connection.execute(statement.replace("spanlake-data", str(lake_folder)))
        assert connection.execute("SELECT count(*) > 0 FROM lake.spans").fetchall() == [(True,)]


def test_the_example_of_configuration_is_valid() -> None:
    (example,) = blocks(ROOT / "docs/configuration.md", "toml")
    assert settings.resolve(None, tomllib.loads(example), {}).origins


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("table", "schema"), [("spans", SPAN_SCHEMA), ("resources", RESOURCE_SCHEMA)])
def test_the_ddl_is_the_schema(table: str, schema: pa.Schema) -> None:
    ddl = (ROOT / f"collector/lake/sql/{table}.sql").read_text()
    with duckdb.connect() as connection:
        connection.execute(ddl)
        found = connection.execute(f"SELECT * FROM {table}").to_arrow_table().schema
        nulls = connection.execute(f"SELECT name, NOT \"notnull\" FROM pragma_table_info('{table}')").fetchall()
    assert [(field.name, field.type) for field in found] == [(field.name, plain(field.type)) for field in schema]
    assert nulls == [(field.name, field.nullable) for field in schema]


def plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), kind.item_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def test_every_table_and_view_is_on_the_page(sandbox: Sandbox) -> None:
    page = (ROOT / "docs/tables.md").read_text()
    with sandbox.run("SHOW TABLES") as result:
        names = [name for batch in result.batches for name in batch.column("name").to_pylist()]
    assert names
    assert [name for name in names if f"`{name}`" not in page] == []
