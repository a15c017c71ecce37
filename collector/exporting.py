"""Spans of the lake into files: OTLP as the Collector's file exporter writes it, or Parquet.

The name of a file says what it holds: `.pb` protobuf messages after a 4-byte big-endian length each, `.jsonl` one JSON
request a line, both also in `.gz` or `.zst`; `.parquet` the table `spans` as it is.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from collector.config import MappingConfig
from collector.decode.semantics import Mapping
from collector.encode.otlp_json import to_json
from collector.encode.protobuf import ProtobufEncoder, Resource
from collector.errors import OperatorError
from collector.lake.engine import literal
from collector.lake.sandbox import Sandbox
from collector.spans import SPAN_SCHEMA

FORMS = (".pb", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")
SECONDS_MAX = 86_400.0
"""How long an export may run, in place of `query.timeout_seconds`."""
_SPANS_PER_BATCH = 50_000


@dataclass(frozen=True)
class Target:
    """What a file is to hold: one of FORMS, and one of COMPRESSIONS or ''."""

    form: str
    compression: str


@dataclass(frozen=True)
class Selection:
    """Which spans: of a tenant, started from (and with) `since` to (without) `until` in UTC, where an SQL condition
    holds."""

    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    where: str | None = None

    def condition(self) -> str:
        """As an SQL expression on table `spans`."""
        terms = []
        if self.tenant is not None:
            terms.append(f"tenant = {literal(self.tenant)}")
        for moment, sign in ((self.since, ">="), (self.until, "<")):
            if moment is not None:
                terms.append(f"start_time {sign} TIMESTAMP_NS {literal(moment.isoformat(' '))}")
        if self.where:
            terms.append(f"(\n{self.where}\n)")
        return " AND ".join(terms) or "true"


def target(path: Path) -> Target:
    """What the name of a file asks for. Raises OperatorError."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    form = Path(path.stem).suffix if compression else path.suffix
    if form not in FORMS or (compression and form == ".parquet"):
        raise OperatorError(
            f"FILE is {str(path)!r}: expected a name that ends in .pb or .jsonl, either with or without .gz or .zst, "
            "or in .parquet"
        )
    return Target(form, compression)


def count(sandbox: Sandbox, selection: Selection) -> int:
    """How many spans there are to export. Raises QueryError."""
    with sandbox.run(f"SELECT count(*) FROM spans WHERE {selection.condition()}") as result:
        return int(next(iter(result.batches)).column(0)[0].as_py())


def export(
    sandbox: Sandbox,
    selection: Selection,
    mapping: MappingConfig,
    to: Target,
    output: IO[bytes],
    on_progress: Callable[[int], None],
) -> int:
    """Write the selected spans, each under the names from which it comes to the same columns again.

    Returns how many; `on_progress` is told of every batch how many it had. Raises QueryError, and OSError where the
    file cannot be written.
    """
    resources = _resources(sandbox) if to.form != ".parquet" else {}
    names = ", ".join(SPAN_SCHEMA.names)
    with (
        sandbox.run(f"SELECT {names} FROM spans WHERE {selection.condition()}") as result,
        _compressed(output, to.compression) as stream,
        _writer(to.form, stream, result.schema, ProtobufEncoder(resources, Mapping(mapping))) as write,
    ):
        spans = 0
        for table in _tables(result.batches):
            write(table)
            spans += table.num_rows
            on_progress(table.num_rows)
    return spans


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches in tables of about _SPANS_PER_BATCH rows, one chunk each."""
    waiting, rows = list[pa.RecordBatch](), 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _SPANS_PER_BATCH:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting, rows = [], 0
    if rows:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _resources(sandbox: Sandbox) -> dict[str, Resource]:
    found = {}
    sql = "SELECT resource_id, schema_url, attributes, dropped_attributes_count FROM resources"
    with sandbox.run(sql) as result:
        for batch in result.batches:
            for row in batch.to_pylist():
                attributes = dict(row["attributes"])
                found[row["resource_id"]] = Resource(
                    row["schema_url"] or "", attributes, row["dropped_attributes_count"]
                )
    return found


@contextmanager
def _compressed(output: IO[bytes], compression: str) -> Iterator[IO[bytes]]:
    if compression == ".gz":
        with gzip.GzipFile(fileobj=output, mode="wb", compresslevel=6, mtime=0) as stream:
            yield cast("IO[bytes]", stream)
    elif compression == ".zst":
        with pa.CompressedOutputStream(pa.PythonFile(output, "w"), "zstd") as stream:
            yield stream
    else:
        yield output


@contextmanager
def _writer(
    form: str, stream: Any, schema: pa.Schema, encoder: ProtobufEncoder
) -> Iterator[Callable[[pa.Table], object]]:
    if form == ".parquet":
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            yield writer.write_table
        return

    def write(table: pa.Table) -> None:
        for payload in encoder.requests(table):
            if form == ".pb":
                stream.write(len(payload).to_bytes(4, "big") + payload)
            else:
                stream.write(to_json(payload) + b"\n")

    yield write
