"""Lakes of many simulated spans, as a collector leaves them: stored in segments, merged, rolled up.

Spans of 48 tenants, about 1000 a second up to now, in segments of SEGMENT_SPANS. After the first PATTERN_SPANS, spans
repeat with other ids at later times. A large lake stores and merges LARGE_FILE_SPANS in this way and writes that file
again and again with other ids and earlier times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analytics import jobs
from collector.config import Config, MappingConfig
from collector.decode.decoder import Decoder
from collector.lake import maintain, retention
from collector.lake.lake import Lake
from collector.lake.location import Location
from collector.lake.merging import MEMORY_BYTES_MAX, open_for_upkeep
from collector.lake.order import by_tenant_and_time
from collector.lake.rewrite import ROWS_PER_GROUP
from collector.lake.segments import new_file, write_segment
from collector.pipeline import TraceRequest
from collector.spans import SPAN_SCHEMA
from sample_data.emit_files import requests

PATTERN_SPANS = 250_000
SEGMENT_SPANS = 20_480
OPERATIONS_PER_SECOND = 290.0
LARGE_FILE_SPANS = 5_000_000
IDS = ("trace_id", "span_id", "parent_span_id")


def pattern(start_second: int) -> tuple[list[pa.Table], int]:
    """Segments of simulated spans, and the nanoseconds they take."""
    decoder, waiting, found = Decoder(MappingConfig()), list[TraceRequest](), list[pa.Table]()
    stream = requests(1, PATTERN_SPANS, operations_per_second=OPERATIONS_PER_SECOND, start_second=start_second)
    per_segment = SEGMENT_SPANS // 512
    for number, payload in enumerate(stream):
        waiting.append(TraceRequest(payload, start_second * 10**9 + number * 400_000_000))
        if len(waiting) == per_segment:
            batch = decoder.decode(waiting).spans
            found.append(pa.Table.from_batches([batch]).unify_dictionaries().combine_chunks())
            waiting = []
    times = pa.concat_tables([table.select(["start_time"]) for table in found]).column(0).cast(pa.int64())
    return found, pc.max(times).as_py() - pc.min(times).as_py()


def repeated(segments: Sequence[pa.Table], length_ns: int, count: int) -> Iterator[pa.Table]:
    """Segments of at least `count` spans in order of time; ids of later rounds are those of the first, rotated."""
    done = number = 0
    while done < count:
        for segment in segments:
            table = later(turned(segment, number), number * length_ns)
            yield table
            done += table.num_rows
            if done >= count:
                break
        number += 1


def turned(table: pa.Table, by: int) -> pa.Table:
    """The same spans with other ids: their digits rotated."""
    for name in IDS if by else ():
        ids = table.column(name)
        digits = pc.binary_join_element_wise(pc.utf8_slice_codeunits(ids, by), pc.utf8_slice_codeunits(ids, 0, by), "")
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), digits)
    return table


def numbered(table: pa.Table, number: int) -> pa.Table:
    """The same spans with other ids: their first two digits are a number."""
    for name in IDS:
        ids = pc.binary_join_element_wise(f"{number:02x}", pc.utf8_slice_codeunits(table.column(name), 2), "")
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), ids)
    return table


def later(table: pa.Table, by_ns: int) -> pa.Table:
    """The same spans at other times."""
    for name in ("start_time", "received_at"):
        times = pc.add(table.column(name).cast(pa.int64()), by_ns).cast(pa.timestamp("ns"))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), times)
    return table


def fill(location: Location, spans: int, *, is_sorted: bool) -> dict[str, float]:
    """Store, merge and roll up; what storage and merges take."""
    store(location, spans, is_sorted=is_sorted)
    sizes = merge(location)
    with Lake(location, read_only=False) as lake:
        jobs.run_once(lake, Config())
    return sizes


def fill_large(location: Location, spans: int) -> dict[str, float]:
    """Store and merge LARGE_FILE_SPANS, copy the file until there are `spans`, and roll up; what storage takes."""
    store(location, LARGE_FILE_SPANS, is_sorted=True)
    merge(location)
    copy(location, spans)
    with Lake(location, read_only=False) as lake:
        jobs.roll_up(lake, Config(), threading.Event(), lambda _, left: print(f"{left:,} to roll up", flush=True))
    return stored(location)


def store(location: Location, spans: int, *, is_sorted: bool) -> None:
    """Segments of `spans` spans up to now, as a collector registers them."""
    segments, length_ns = pattern(0)
    rounds = -(-spans // sum(segment.num_rows for segment in segments))
    start_ns = time.time_ns() - rounds * length_ns
    with Lake(location, read_only=False) as lake:
        jobs.prepare(lake)
        maintain.configure(lake)
        for table in repeated(segments, length_ns, spans):
            rows = later(table, start_ns).combine_chunks()
            ordered = by_tenant_and_time(rows) if is_sorted else rows
            path = write_segment(ordered, location.files / "main" / "spans")
            with lake.write() as transaction:
                transaction.add_files("spans", [path])


def merge(location: Location) -> dict[str, float]:
    """Merge what is due; what storage and merges take."""
    with open_for_upkeep(location, MEMORY_BYTES_MAX[0]) as lake:
        begun, longest = time.process_time(), 0.0
        while True:
            started = time.perf_counter()
            if not maintain.merge_once(lake, "spans"):
                break
            longest = max(longest, time.perf_counter() - started)
        cpu_seconds = time.process_time() - begun
    sizes = stored(location)
    rate = {"spans merged per CPU-second": round(sizes["spans"] / cpu_seconds), "longest merge, s": round(longest, 1)}
    return sizes | rate


def stored(location: Location) -> dict[str, float]:
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        files = [file for file in retention.live_files(reader, location.files) if file.table == "spans"]
    rows = sum(file.rows for file in files)
    size = sum(file.size_bytes for file in files)
    return {"spans": rows, "files": len(files), "bytes a span": round(size / rows, 1)}


def copy(location: Location, spans: int) -> None:
    """Write the one file of spans again, each time with other ids at earlier times, until there are `spans`."""
    labels = [column.name for column in SPAN_SCHEMA if pa.types.is_dictionary(column.type)]
    with Lake(location, read_only=False) as lake:
        with lake.read() as reader:
            path, rows, first_ns, last_ns = reader.row(
                "SELECT filename, count(*), min(epoch_ns(start_time)), max(epoch_ns(start_time)) FROM spans GROUP BY 1"
            )
        for number in range(1, -(-spans // rows)):
            with pq.ParquetFile(path, read_dictionary=labels) as source:
                groups = (source.read_row_group(group, SPAN_SCHEMA.names) for group in range(source.num_row_groups))
                tables = (later(numbered(group, number), number * (first_ns - last_ns)) for group in groups)
                first = next(tables)
                with new_file(Path(path).parent, "copy", first, ROWS_PER_GROUP) as new:
                    for table in chain([first], tables):
                        new.writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            with lake.write() as transaction:
                transaction.add_files("spans", [new.path])
            print(f"{(number + 1) * rows:,} spans", flush=True)
