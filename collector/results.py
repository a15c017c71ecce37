"""Results of queries as people and programs read them: a table, JSON, CSV or Parquet, written batch by batch.

In JSON and CSV every timestamp is ISO 8601 in UTC with all its digits (nanoseconds kept), an interval is an
ISO 8601 duration, a BLOB is hexadecimal. JSON has maps as objects, integers of any size as numbers, and null
for NaN and infinities, which JSON has no way to say. CSV has nested values as JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collector.lake.sandbox import QueryError, Result

TABLE_ROWS_MAX = 1000
CELL_CHARACTERS_MAX = 60
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY

Writer = Callable[[Result, IO[bytes]], int]


def write_json(result: Result, output: IO[bytes]) -> int:
    """Write an array of objects, one a line; returns the number of rows."""
    count = 0
    output.write(b"[")
    for values in _rows(result):
        output.write(b",\n " if count else b"\n ")
        output.write(orjson.dumps(dict(zip(_names(result), values, strict=True)), _plain, _OPTIONS))
        count += 1
    output.write(b"\n]\n" if count else b"]\n")
    return count


def write_csv(result: Result, output: IO[bytes]) -> int:
    """Write a header and a line for each row (RFC 4180, NULL is empty); returns the number of rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(result.schema.names)
    count = 0
    for values in _rows(result):
        writer.writerow([_cell(value) for value in values])
        count += 1
        if text.tell() > 2**16:
            output.write(text.getvalue().encode())
            text.seek(0)
            text.truncate()
    output.write(text.getvalue().encode())
    return count


def write_parquet(result: Result, output: IO[bytes]) -> int:
    """Write one Parquet file (zstd) with the result's own types; returns the number of rows.

    Raises QueryError for a type that Parquet does not have.
    """
    count = 0
    try:
        with pq.ParquetWriter(output, result.schema, compression="zstd") as writer:
            for batch in result.batches:
                writer.write_batch(batch)
                count += batch.num_rows
    except pa.ArrowNotImplementedError as error:
        raise QueryError(f"Parquet has no such type: {error}; cast the column to VARCHAR") from error
    return count


def write_table(result: Result, output: IO[bytes]) -> int:
    """Write aligned columns for people: at most TABLE_ROWS_MAX rows, long cells cut; returns the rows shown."""
    rows = _rows(result)
    shown = [[_short(value) for value in values] for values in islice(rows, TABLE_ROWS_MAX)]
    names = [_short(name) for name in result.schema.names]
    widths = [max(len(cell) for cell in column) for column in zip(names, *shown, strict=True)]
    to_right = [_is_number(field.type) for field in result.schema]

    def line(cells: list[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, to_right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    lines = [line(names), line(["-" * width for width in widths]), *map(line, shown)]
    more = next(rows, None) is not None
    lines.append(f"({len(shown)} {'row' if len(shown) == 1 else 'rows'}{' shown, there are more' if more else ''})")
    output.write(("\n".join(lines) + "\n").encode())
    return len(shown)


WRITERS: dict[str, Writer] = {
    "table": write_table,
    "json": write_json,
    "csv": write_csv,
    "parquet": write_parquet,
}


def _names(result: Result) -> list[str]:
    """The columns' names; of several that are the same, the later ones are numbered (`n`, `n_1`)."""
    names: list[str] = []
    for name in result.schema.names:
        unique, number = name, 0
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def _rows(result: Result) -> Iterator[tuple[Any, ...]]:
    for batch in result.batches:
        columns = [_readable(column).to_pylist(maps_as_pydicts="lossy") for column in batch.columns]
        yield from zip(*columns, strict=True)


def _readable(array: pa.Array) -> pa.Array:
    """The array with timestamps as ISO 8601 text, also within lists, maps and structs."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        naive = array.cast(pa.timestamp(kind.unit))
        return pc.binary_join_element_wise(pc.strftime(naive, format="%Y-%m-%dT%H:%M:%S"), "Z", "")
    if pa.types.is_struct(kind):
        children = [_readable(array.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, names=[field.name for field in kind], mask=array.is_null())
    if pa.types.is_map(kind) and _has_timestamp(kind):
        keys, items = _readable(array.keys), _readable(array.items)
        return pa.MapArray.from_arrays(array.offsets, keys, items, mask=array.is_null())
    if pa.types.is_list(kind) and _has_timestamp(kind):
        return pa.ListArray.from_arrays(array.offsets, _readable(array.values), mask=array.is_null())
    return array


def _has_timestamp(kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return True
    return any(_has_timestamp(kind.field(i).type) for i in range(kind.num_fields))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _plain(value: object) -> object:
    """What orjson does not know by itself."""
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f")) if value.is_finite() else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):
        seconds, nanoseconds = divmod(value.nanoseconds, 10**9)
        return f"P{value.months}M{value.days}DT{seconds}.{nanoseconds:09d}S"
    return str(value)


def _cell(value: object) -> object:
    """A value of a CSV line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, str | int | float):
        return value
    text = orjson.dumps(value, _plain, _OPTIONS).decode()
    return orjson.loads(text) if text.startswith('"') else text


def _short(value: object) -> str:
    text = " ".join(str(_cell(value) if value is not None else "NULL").split())
    return text if len(text) <= CELL_CHARACTERS_MAX else text[: CELL_CHARACTERS_MAX - 1] + "…"
