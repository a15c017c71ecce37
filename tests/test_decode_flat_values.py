"""Flat arrays and maps: what is recognised reads as what is walked field by field."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from collector.decode import anyvalue
from collector.decode.anyvalue import FIELDS_MAX, Budget, Value, parse_value
from collector.decode.flat_values import flat_text
from collector.errors import InvalidRequestError

texts = st.one_of(st.text(max_size=6), st.integers(120, 140).map(lambda size: "x" * size))
scalars = st.one_of(
    texts.map(lambda value: AnyValue(string_value=value)),
    st.integers(-(1 << 63), (1 << 63) - 1).map(lambda value: AnyValue(int_value=value)),
    st.integers(0, 300).map(lambda value: AnyValue(int_value=value)),
    st.booleans().map(lambda value: AnyValue(bool_value=value)),
    st.floats().map(lambda value: AnyValue(double_value=value)),
    st.binary(max_size=3).map(lambda value: AnyValue(bytes_value=value)),
    st.just(AnyValue()),
)


def array_of(items: list[AnyValue]) -> AnyValue:
    return AnyValue(array_value=ArrayValue(values=items))


def map_of(items: list[tuple[str, AnyValue]]) -> AnyValue:
    return AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key=key, value=value) for key, value in items]))


def nested(inner: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[AnyValue]:
    keys = st.one_of(st.sampled_from(["a", "b"]), texts)
    arrays = st.lists(inner, max_size=5).map(array_of)
    return st.one_of(arrays, st.lists(st.tuples(keys, inner), max_size=5).map(map_of))


values = nested(st.one_of(scalars, nested(scalars)))


def outcome(raw: bytes) -> tuple[Value | str, int]:
    budget = Budget()
    try:
        return parse_value(raw, budget), budget.left
    except InvalidRequestError as error:
        return str(error), 0


def walked(raw: bytes) -> tuple[Value | str, int]:
    with mock.patch.object(anyvalue, "flat_text", return_value=None):
        return outcome(raw)


@given(values)
@settings(deadline=None)
def test_values_read_as_if_walked(value: AnyValue) -> None:
    raw = value.SerializeToString()
    assert outcome(raw) == walked(raw)


@given(values, st.data())
@settings(deadline=None)
def test_damaged_values_read_as_if_walked(value: AnyValue, data: st.DataObject) -> None:
    raw = bytearray(value.SerializeToString())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(1, len(raw)))])
    for damaged in (bytes(raw), cut):
        assert outcome(damaged) == walked(damaged)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (array_of([]), "[]"),
        (map_of([]), "{}"),
        (
            array_of([AnyValue(string_value="a"), AnyValue(int_value=1 << 62), AnyValue(bool_value=True)]),
            f'["a",{1 << 62},true]',
        ),
        (array_of([AnyValue(double_value=0.5), AnyValue(int_value=3), AnyValue(string_value='"')]), '[0.5,3,"\\""]'),
        (map_of([("a", AnyValue(int_value=1)), ("b", AnyValue())]), None),
        (map_of([("a", AnyValue(int_value=1)), ("b", AnyValue(int_value=2))] * 2), '{"a":1,"b":2}'),
        (array_of([AnyValue(string_value="x" * 100)] * 100), f"[{','.join(100 * [chr(34) + 100 * 'x' + chr(34)])}]"),
    ],
)
def test_usual_values_are_recognised(value: AnyValue, text: str | None) -> None:
    found = flat_text(value.SerializeToString())
    assert (found and found[0]) == text


def test_recognised_fields_count() -> None:
    raw = array_of([AnyValue(int_value=1)] * 3).SerializeToString()
    with pytest.raises(InvalidRequestError, match=f"more than {FIELDS_MAX} elements"):
        parse_value(raw, Budget(6))
    assert parse_value(raw, Budget(7)).text == "[1,1,1]"
