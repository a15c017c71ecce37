"""Events and links of spans: lists of structs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector.config import LimitsConfig
from collector.decode.attributes import Extra, decode_attributes
from collector.decode.guards import TRUNCATED, Losses, cut_texts, plus_dropped
from collector.decode.identifiers import TIME_NS_MAX, hex_texts
from collector.decode.wire import content, fixed, lengths, offsets, parse_messages, text
from collector.spans import ATTRIBUTES, EVENTS, LINKS


def decode_events(lists: pa.ListArray, limits: LimitsConfig, kinds: Counter[str]) -> pa.ListArray:
    """EVENTS of every span, in the order sent; `kinds` counts what is cut or dropped. Raises InvalidRequestError.

    A time beyond the signed 64-bit range is NULL, and kept as the attribute `spanlake.time_unix_nano`.
    """
    if not len(lists.values):
        return _lists(lists, pa.array([], EVENTS.value_type), EVENTS)
    batch = parse_messages("Event", lists.values)
    attributes = decode_attributes(batch.column("attributes"), limits)
    losses = attributes.losses
    names = cut_texts(text(batch.column("name")), limits.name_bytes_max, "name", losses)
    extras = truncation_extras(losses)
    sent_ns = fixed(batch.column("time_unix_nano"), np.uint64)
    late = sent_ns > TIME_NS_MAX
    if late.any():
        owners = np.flatnonzero(late)
        texts = pa.array(sent_ns[owners]).cast(pa.string())
        extras.append(Extra("spanlake.time_unix_nano", owners, texts))
    kinds.update(losses.kinds)
    columns = [
        pa.array(sent_ns.view("datetime64[ns]"), pa.timestamp("ns"), mask=late),
        names,
        (attributes.with_extras(extras) if extras else attributes).to_maps().cast(ATTRIBUTES),
        _dropped(batch, losses),
    ]
    return _lists(lists, pa.StructArray.from_arrays(columns, fields=list(EVENTS.value_type)), EVENTS)


def decode_links(lists: pa.ListArray, limits: LimitsConfig, kinds: Counter[str]) -> pa.ListArray:
    """LINKS of every span, in the order sent; ids as sent, of whatever length; `kinds` as for events.

    Raises InvalidRequestError.
    """
    if not len(lists.values):
        return _lists(lists, pa.array([], LINKS.value_type), LINKS)
    batch = parse_messages("Link", lists.values)
    attributes = decode_attributes(batch.column("attributes"), limits)
    losses = attributes.losses
    trace_state = text(batch.column("trace_state"))
    trace_state = cut_texts(trace_state, limits.attribute_value_bytes_max, "trace_state", losses)
    extras = truncation_extras(losses)
    kinds.update(losses.kinds)
    columns = [
        hex_texts(batch.column("trace_id")),
        hex_texts(batch.column("span_id")),
        null_where_empty(trace_state),
        (attributes.with_extras(extras) if extras else attributes).to_maps().cast(ATTRIBUTES),
        _dropped(batch, losses),
        batch.column("flags"),
    ]
    return _lists(lists, pa.StructArray.from_arrays(columns, fields=list(LINKS.value_type)), LINKS)


def truncation_extras(losses: Losses) -> list[Extra]:
    """The attribute that tells what was cut, for the owners of that."""
    return [Extra(TRUNCATED, *losses.marks())] if losses.sizes else []


def _dropped(batch: pa.RecordBatch, losses: Losses) -> pa.UInt32Array:
    sent = batch.column("dropped_attributes_count")
    return sent if losses.dropped is None else pa.array(plus_dropped(fixed(sent, np.uint32), losses.dropped))


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
