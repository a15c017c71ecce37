"""Writes the generated parts of the pages in this folder: `make docs`. A test holds them to what this gives."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click
import pyarrow as pa
from pydantic.fields import FieldInfo

from analytics.rollup.sets import configured
from collector.config import AnalyzeConfig, Config
from collector.settings import environment_variable
from collector.settings_text import limits, shown, type_name
from collector.spans import RESOURCE_SCHEMA, SPAN_COLUMNS
from dashboard.cli import main as spanlake

FOLDER = Path(__file__).parent
PAGES = ("configuration.md", "tables.md", "rollups.md", "command-line.md")
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_LABELS = {pa.string(): "text", pa.bool_(): "boolean", pa.timestamp("ns"): "timestamp (ns)"}
HELP_COLUMNS = 100


def page(text: str) -> str:
    """The text of a page with its generated parts made anew. Raises KeyError for an unknown part."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}\n{part[3]}", text)


def configuration() -> str:
    """One table of keys for each section of the configuration."""
    parts = []
    for section, info in Config.model_fields.items():
        model = info.annotation
        if model is None:
            continue
        rows = [_configuration_row(section, key, field) for key, field in model.model_fields.items()]
        about = " ".join((model.__doc__ or "").split())
        parts.append(f"### `[{section}]`\n\n{about}\n\n" + _table(["Key", "Type", "Default", "Meaning"], rows))
    return "\n\n".join(parts)


def _configuration_row(section: str, key: str, info: FieldInfo) -> list[str]:
    kind = ", ".join(part for part in (type_name(info), limits(info)) if part)
    default = shown(info.get_default(call_default_factory=True))
    meaning = info.description or f"attributes that feed the column `{key}`"
    return [f"`{key}`<br>`{environment_variable(section, key)}`", kind, f"`{default}`", meaning]


def span_columns() -> str:
    """The table `spans`, column by column."""
    rows = [
        [f"`{c.name}`", _type(c.arrow_type), "yes" if c.nullable else "", c.unit, c.source, c.meaning]
        for c in SPAN_COLUMNS
    ]
    return _table(["Column", "Type", "NULL", "Unit", "From", "Meaning"], rows)


def resource_columns() -> str:
    """The table `resources`, column by column."""
    rows = [[f"`{field.name}`", _type(field.type), "yes" if field.nullable else ""] for field in RESOURCE_SCHEMA]
    return _table(["Column", "Type", "NULL"], rows)


def rollup_sets() -> str:
    """The default sets of dimensions and their tables."""
    rows = [
        [", ".join(f"`{table}`" for table, _ in found.tables), ", ".join(f"`{name}`" for name in found.dimensions)]
        for found in configured(AnalyzeConfig())
    ]
    return _table(["Tables", "Dimensions"], rows)


def command_line() -> str:
    """The help of every command."""
    context = click.Context(spanlake, info_name="spanlake", terminal_width=HELP_COLUMNS, **spanlake.context_settings)
    parts = [f"### `spanlake`\n\n```text\n{spanlake.get_help(context)}\n```"]
    for name in spanlake.list_commands(context):
        command = spanlake.get_command(context, name)
        if command is None:
            continue
        inner = click.Context(command, info_name=name, parent=context, terminal_width=HELP_COLUMNS)
        parts.append(f"### `spanlake {name}`\n\n```text\n{command.get_help(inner)}\n```")
    return "\n\n".join(parts)


def _type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_map(kind):
        return f"map from {_type(kind.key_type)} to {_type(kind.item_type)}"
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "(" + ", ".join(f"`{field.name}` {_type(field.type)}" for field in kind) + ")"
    return _LABELS.get(kind, str(kind))


def _table(names: list[str], rows: Iterable[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


PARTS = {
    "configuration": configuration,
    "span_columns": span_columns,
    "resource_columns": resource_columns,
    "rollup_sets": rollup_sets,
    "command_line": command_line,
}

if __name__ == "__main__":
    for name in PAGES:
        path = FOLDER / name
        path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
