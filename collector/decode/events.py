"""Events and links of spans: lists of structs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector.decode.attributes import Extra, decode_attributes
from collector.decode.identifiers import TIME_NS_MAX, hex_texts
from collector.decode.wire import content, fixed, lengths, offsets, parse_messages, text
from collector.spans import EVENTS, LINKS


def decode_events(lists: pa.ListArray) -> pa.ListArray:
    """EVENTS of every span, in the order sent. Raises InvalidRequestError.

    A time beyond the signed 64-bit range is NULL, and kept as the attribute `spanlake.time_unix_nano`.
    """
    if not len(lists.values):
        return _lists(lists, pa.array([], EVENTS.value_type), EVENTS)
    batch = parse_messages("Event", lists.values)
    attributes = decode_attributes(batch.column("attributes"))
    sent_ns = fixed(batch.column("time_unix_nano"), np.uint64)
    late = sent_ns > TIME_NS_MAX
    if late.any():
        owners = np.flatnonzero(late)
        texts = pa.array(sent_ns[owners]).cast(pa.string())
        attributes = attributes.with_extras([Extra("spanlake.time_unix_nano", owners, texts)])
    columns = [
        pa.array(sent_ns.view("datetime64[ns]"), pa.timestamp("ns"), mask=late),
        text(batch.column("name")),
        attributes.to_maps(),
        batch.column("dropped_attributes_count"),
    ]
    return _lists(lists, pa.StructArray.from_arrays(columns, fields=list(EVENTS.value_type)), EVENTS)


def decode_links(lists: pa.ListArray) -> pa.ListArray:
    """LINKS of every span, in the order sent; ids as sent, of whatever length. Raises InvalidRequestError."""
    if not len(lists.values):
        return _lists(lists, pa.array([], LINKS.value_type), LINKS)
    batch = parse_messages("Link", lists.values)
    columns = [
        hex_texts(batch.column("trace_id")),
        hex_texts(batch.column("span_id")),
        null_where_empty(text(batch.column("trace_state"))),
        decode_attributes(batch.column("attributes")).to_maps(),
        batch.column("dropped_attributes_count"),
        batch.column("flags"),
    ]
    return _lists(lists, pa.StructArray.from_arrays(columns, fields=list(LINKS.value_type)), LINKS)


def null_where_empty(strings: pa.StringArray) -> pa.StringArray:
    """The same strings, NULL for the empty text."""
    if not content(strings).size:
        return pa.nulls(len(strings), pa.string())
    return with_nulls(strings, lengths(strings) > 0)


def with_nulls(strings: pa.StringArray, present: npt.NDArray[Any]) -> pa.StringArray:
    """The same strings, NULL where not present; shares their buffers."""
    bitmap = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(pa.string(), len(strings), [bitmap, *strings.buffers()[1:]])


def _lists(lists: pa.ListArray, items: pa.StructArray, list_type: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets(lists)), items, type=list_type)
