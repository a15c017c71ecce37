"""Files joined chunk by chunk: the same rows, in the same row groups, to every reader; and the footers' protocol."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.lake.compact import (
    BINARY,
    BYTE,
    DOUBLE,
    I16,
    I32,
    I64,
    LIST,
    SET,
    STRUCT,
    TRUE,
    CompactError,
    Struct,
    read_struct,
    write_struct,
)
from collector.lake.segments import write_segment
from collector.lake.splice import are_alike, source_of, write_spliced
from collector.spans import SPAN_SCHEMA

SCALARS = {
    TRUE: st.booleans(),
    BYTE: st.integers(0, 255),
    I16: st.integers(-(2**15), 2**15 - 1),
    I32: st.integers(-(2**31), 2**31 - 1),
    I64: st.integers(-(2**63), 2**63 - 1),
    DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=200),
}
FURTHER = pa.schema([pa.field("further", pa.int64(), True)])


def fields(kinds: dict[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Struct]:
    of_kind = [st.tuples(st.just(kind), values) for kind, values in kinds.items()]
    lists = [
        st.tuples(st.sampled_from([LIST, SET]), st.tuples(st.just(kind), st.lists(values, max_size=20)))
        for kind, values in kinds.items()
    ]
    return st.dictionaries(st.integers(1, 2**15 - 1), st.one_of(of_kind + lists), max_size=6)


STRUCTS = fields({**SCALARS, STRUCT: fields({**SCALARS, STRUCT: fields(SCALARS)})})


@given(STRUCTS)
def test_structs_come_back_as_they_were_written(value: Struct) -> None:
    assert read_struct(write_struct(value)) == value


@given(st.binary(max_size=60))
def test_bytes_that_are_no_struct_are_told(data: bytes) -> None:
    try:
        value = read_struct(data)
    except CompactError:
        return
    assert read_struct(write_struct(value)) == value


def test_a_footer_comes_back_byte_by_byte(tmp_path: Path) -> None:
    content = spans(500, 1, tmp_path).read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert write_struct(read_struct(footer)) == footer


def spans(rows: int, seed: int, folder: Path) -> Path:
    """A segment with texts, maps, lists and nulls; values differ by `seed`."""
    number = pa.array(range(seed, seed + rows), pa.int64())
    texts = pc.binary_join_element_wise(pc.cast(number, pa.string()), str(seed), "-")
    pairs = [[(f"key{j}", f"{seed + i}") for j in range(i % 4)] for i in range(rows)]
    columns = {column.name: pa.nulls(rows, column.type) for column in SPAN_SCHEMA if column.nullable}
    for column in SPAN_SCHEMA:
        if column.nullable:
            continue
        if pa.types.is_dictionary(column.type):
            columns[column.name] = texts.dictionary_encode()
        elif pa.types.is_map(column.type):
            columns[column.name] = pa.array(pairs, column.type)
        elif pa.types.is_list(column.type):
            columns[column.name] = pa.array([[]] * rows, column.type)
        else:
            columns[column.name] = texts if pa.types.is_string(column.type) else pc.cast(number, column.type)
    return write_segment(pa.table([columns[name] for name in SPAN_SCHEMA.names], schema=SPAN_SCHEMA), folder)


def spliced(paths: list[Path], folder: Path) -> Path:
    files = [path.open("rb") for path in paths]
    sources = [source_of(file) for file in files]
    schema = pa.unify_schemas([SPAN_SCHEMA, FURTHER])
    assert are_alike(sources, schema, SPAN_SCHEMA)
    further = io.BytesIO()
    with pq.ParquetWriter(further, FURTHER, store_schema=False) as writer:
        for number, rows in enumerate(count for source in sources for count in source.rows_by_group):
            writer.write_table(pa.table([pa.array([number] * rows, pa.int64())], schema=FURTHER))
    new = write_spliced(sources, source_of(further), folder, "joined", schema)
    for file in files:
        file.close()
    return new


def test_rows_are_those_of_the_sources_to_both_readers(tmp_path: Path) -> None:
    paths = [spans(rows, seed, tmp_path) for seed, rows in ((10, 41_000), (50_000, 3), (90_000, 700))]
    new = spliced(paths, tmp_path)
    found, wanted = pq.read_table(new), pa.concat_tables(pq.read_table(path) for path in paths)
    assert found.drop_columns(["further"]).equals(wanted)
    assert pc.value_counts(found["further"]).to_pylist() == [
        {"values": number, "counts": rows} for number, rows in enumerate((20_500, 20_500, 3, 700))
    ]
    names = [str(path) for path in paths]
    with duckdb.connect() as connection:
        of_new = connection.execute("SELECT * EXCLUDE (further) FROM read_parquet(?)", [str(new)]).fetchall()
        assert of_new == connection.execute("SELECT * FROM read_parquet(?)", [names]).fetchall()


def test_statistics_and_bloom_filters_still_tell_where_values_are(tmp_path: Path) -> None:
    paths = [spans(2000, seed, tmp_path) for seed in (10, 50_000)]
    new = spliced(paths, tmp_path)
    statistics = [
        pq.read_metadata(new).row_group(i).column(SPAN_SCHEMA.names.index("duration_ns")).statistics for i in (0, 1)
    ]
    assert [(each.min, each.max) for each in statistics] == [(10, 2009), (50_000, 51_999)]
    probe = "SELECT list(bloom_filter_excludes ORDER BY row_group_id) FROM parquet_bloom_probe(?, 'trace_id', ?)"
    with duckdb.connect() as connection:
        for trace, wanted in (("12-10", [False, True]), ("50001-50000", [True, False])):
            assert connection.execute(probe, [str(new), trace]).fetchone() == (wanted,)


def test_a_spliced_file_is_spliced_again(tmp_path: Path) -> None:
    paths = [spans(100, seed, tmp_path) for seed in (1, 2)]
    once = spliced(paths, tmp_path)
    twice = spliced([once, spans(50, 3, tmp_path)], tmp_path)
    assert pq.read_table(twice)["further"].to_pylist() == [0] * 100 + [1] * 100 + [2] * 50


def test_files_of_other_columns_are_not_alike(tmp_path: Path) -> None:
    path = spans(10, 1, tmp_path)
    last = SPAN_SCHEMA.names[-1]
    shorter, fewer = SPAN_SCHEMA.remove(len(SPAN_SCHEMA) - 1), SPAN_SCHEMA.remove(0)
    nullable = SPAN_SCHEMA.set(4, pa.field("flags", pa.uint32(), True))
    with path.open("rb") as file:
        whole = source_of(file)
        assert are_alike([whole], SPAN_SCHEMA, SPAN_SCHEMA)
        for schema in (shorter, fewer, nullable):
            assert not are_alike([whole], schema, schema)
    with write_segment(pq.read_table(path).drop_columns([last]), tmp_path).open("rb") as file:
        assert not are_alike([source_of(file)], SPAN_SCHEMA, SPAN_SCHEMA)


def test_only_columns_that_are_written_beside_may_lack(tmp_path: Path) -> None:
    with spans(10, 1, tmp_path).open("rb") as file:
        schema = pa.unify_schemas([SPAN_SCHEMA, FURTHER])
        assert are_alike([source_of(file)], schema, SPAN_SCHEMA)
        assert not are_alike([source_of(file)], schema, schema)


def test_a_file_that_ends_too_early_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    path = spans(5000, 1, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with path.open("rb") as file, pytest.raises(ValueError, match="does not end as a Parquet file"):
        source_of(file)
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    path.write_bytes(b"PAR1" + content[-footer_bytes:])
    with pytest.raises(OSError, match="bytes from"):
        spliced([path], tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
