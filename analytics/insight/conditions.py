"""Conditions on spans as people type them: `region=us-east-1` for `region = 'us-east-1'`."""

from __future__ import annotations

import re

import pyarrow as pa

from collector.spans import SPAN_SCHEMA

_AND = re.compile(r",|\band\b", re.IGNORECASE)
_EQUAL = re.compile(r"\s*(\w+)\s*=\s*([^\s'\"()<>=,;]+)\s*")
_PLAIN = {
    field.name for field in SPAN_SCHEMA if pa.types.is_boolean(field.type) or pa.types.is_primitive(field.type)
} - {field.name for field in SPAN_SCHEMA if pa.types.is_temporal(field.type)}
"""Columns of numbers and truths, whose values SQL reads without quotes."""


def as_sql(condition: str) -> str:
    """`column=value`, or several joined by commas or AND, as SQL with the values as texts where columns hold such.

    All else is SQL already and comes back as it is; so does what names no column of spans, or compares two of them.
    """
    found = [_EQUAL.fullmatch(part) for part in _AND.split(condition)]
    pairs = [(match[1].lower(), match[2]) for match in found if match]
    if len(pairs) < len(found) or not all(_is_short(*pair) for pair in pairs):
        return condition
    return " AND ".join(f"{name} = {value}" if name in _PLAIN else f"{name} = '{value}'" for name, value in pairs)


def _is_short(name: str, value: str) -> bool:
    return name in SPAN_SCHEMA.names and value.lower() not in SPAN_SCHEMA.names
