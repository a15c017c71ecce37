"""Statistics of the columns of a Parquet file, as DuckLake notes them in its catalog when a file is added.

After `MapColumnStats` and `MergeStats` of DuckLake's sources (ducklake_add_data_files.cpp, ducklake_stats.cpp). Values
are kept as text, as DuckDB writes them. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIELD_ID = b"PARQUET:field_id"


_INFINITE = {"inf", "-inf"}
"""Of floating point numbers, and two words that are rare as bounds of a text."""
_INFINITE_TIME = 2**63 - 1
"""As a number of any unit; DuckDB writes it, and its negative, as infinity."""


class Leaf(NamedTuple):
    """A column of a Parquet file: the id that the catalog gives it, and its type."""

    column_id: int
    kind: pa.DataType


class FileStats(NamedTuple):
    """Of one column of a file: its size compressed, how many values and NULLs, the least and greatest value as text."""

    column_id: int
    size_bytes: int
    values: int
    nulls: int
    least: str | None
    greatest: str | None


class TableStats(NamedTuple):
    """Of one column of all files of a table; None: not known."""

    contains_null: int | None
    least: str | None
    greatest: str | None


def leaves(schema: pa.Schema) -> list[Leaf]:
    """The columns that Parquet makes of a schema whose fields have their ids as metadata, in the order of the file."""
    return [leaf for field in schema for leaf in _leaves(field)]


def _leaves(field: pa.Field) -> Iterator[Leaf]:
    kind = field.type
    if pa.types.is_struct(kind):
        children: Iterable[pa.Field] = kind
    elif pa.types.is_map(kind):
        children = (kind.key_field, kind.item_field)
    elif pa.types.is_list(kind):
        children = (kind.value_field,)
    else:
        yield Leaf(int(field.metadata[FIELD_ID]), kind.value_type if pa.types.is_dictionary(kind) else kind)
        return
    for child in children:
        yield from _leaves(child)


def of_file(metadata: pq.FileMetaData, columns: Sequence[Leaf]) -> list[FileStats] | None:
    """The statistics of each column; None where a footer leaves open what DuckLake would make of it."""
    if metadata.num_columns != len(columns) or not metadata.num_row_groups:
        return None
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    found = []
    for number, leaf in enumerate(columns):
        stats = _of_column([group.column(number) for group in groups], leaf)
        if stats is None:
            return None
        found.append(stats)
    return found


def _of_column(chunks: Sequence[pq.ColumnChunkMetaData], leaf: Leaf) -> FileStats | None:
    size = values = nulls = 0
    bounds: list[tuple[Any, Any]] = []
    value_of = _value_of(leaf.kind)
    for chunk in chunks:
        stats = chunk.statistics
        if stats is None or not stats.has_null_count or (not stats.has_min_max and chunk.num_values > stats.null_count):
            return None  # a bound may be missing for its length alone: which one, pyarrow does not tell
        size += chunk.total_compressed_size
        values += chunk.num_values - stats.null_count
        nulls += stats.null_count
        if stats.has_min_max:
            bounds.append((value_of(stats.min_raw), value_of(stats.max_raw)))
    if len(bounds) < len(chunks):
        return FileStats(leaf.column_id, size, values, nulls, None, None)
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    if pa.types.is_timestamp(leaf.kind) and (low <= -_INFINITE_TIME or high >= _INFINITE_TIME):
        return None
    try:
        least, greatest = _text(low, leaf.kind), _text(high, leaf.kind)
    except UnicodeDecodeError:
        return None
    if any("\0" in bound or bound in _INFINITE for bound in (least, greatest)):
        return None
    return FileStats(leaf.column_id, size, values, nulls, least, greatest)


def _value_of(kind: pa.DataType) -> Callable[[Any], Any]:
    """What a value is that Parquet keeps as a signed integer of so many bits."""
    if pa.types.is_unsigned_integer(kind):
        return lambda raw: raw % (1 << kind.bit_width)
    return lambda raw: raw


def _text(value: Any, kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        text = str(np.datetime_as_string(np.datetime64(value, kind.unit))).replace("T", " ")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def merged(old: TableStats, new: FileStats, kind: pa.DataType) -> TableStats:
    """The statistics of a table's column once a file with `new` is added."""
    contains_null = None if old.contains_null is None else int(old.contains_null or new.nulls > 0)
    if not new.values:
        return TableStats(contains_null, old.least, old.greatest)
    if old.least is None and old.greatest is None:
        return TableStats(contains_null, new.least, new.greatest)
    rank = _rank(kind)
    least = None if old.least is None or new.least is None else min(old.least, new.least, key=rank)
    greatest = None if old.greatest is None or new.greatest is None else max(old.greatest, new.greatest, key=rank)
    return TableStats(contains_null, least, greatest)


def _rank(kind: pa.DataType) -> Callable[[str], Any]:
    """How values of a type are ranked; times and truth values are written so that text ranks them."""
    if pa.types.is_integer(kind):
        return int
    return float if pa.types.is_floating(kind) else str
