"""Serialized requests to Arrow, natively: a descriptor trimmed for ingest, and the flat view of what it gives.

The descriptor declares as `bytes` whatever is better taken apart elsewhere: resources and scopes (cached by
their bytes), attributes (split by vectorised kernels), events and links (mostly absent). Strings are `bytes`
here too; whoever turns them into text checks UTF-8 once for a whole column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import ptars
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool

from collector.errors import InvalidRequestError

Int32s = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]

_Type = descriptor_pb2.FieldDescriptorProto
_BYTES = _Type.TYPE_BYTES
_INT32 = _Type.TYPE_INT32
_UINT32 = _Type.TYPE_UINT32
_FIXED32 = _Type.TYPE_FIXED32
_FIXED64 = _Type.TYPE_FIXED64

# Empty messages take 2 bytes each on the wire and hundreds here, so their number is bounded.
SPANS_MAX = 1_000_000
ITEMS_MAX = 8_000_000
_OUTLINE_BYTES_MIN = 2**20
COUNTED_BYTES_MAX = 2**20

# message -> fields: name, number, type (a message by its name); '*' before the name: repeated
_MESSAGES: dict[str, tuple[tuple[str, int, int | str], ...]] = {
    "Request": (("*resource_spans", 1, "ResourceSpans"),),
    "ResourceSpans": (("resource", 1, _BYTES), ("*scope_spans", 2, "ScopeSpans"), ("schema_url", 3, _BYTES)),
    "ScopeSpans": (("scope", 1, _BYTES), ("*spans", 2, "Span"), ("schema_url", 3, _BYTES)),
    "Span": (
        ("trace_id", 1, _BYTES),
        ("span_id", 2, _BYTES),
        ("trace_state", 3, _BYTES),
        ("parent_span_id", 4, _BYTES),
        ("name", 5, _BYTES),
        ("kind", 6, _INT32),
        ("start_time_unix_nano", 7, _FIXED64),
        ("end_time_unix_nano", 8, _FIXED64),
        ("*attributes", 9, _BYTES),
        ("dropped_attributes_count", 10, _UINT32),
        ("*events", 11, _BYTES),
        ("dropped_events_count", 12, _UINT32),
        ("*links", 13, _BYTES),
        ("dropped_links_count", 14, _UINT32),
        ("status", 15, "Status"),
        ("flags", 16, _FIXED32),
    ),
    "Status": (("message", 2, _BYTES), ("code", 3, _INT32)),
    "Event": (
        ("time_unix_nano", 1, _FIXED64),
        ("name", 2, _BYTES),
        ("*attributes", 3, _BYTES),
        ("dropped_attributes_count", 4, _UINT32),
    ),
    "Link": (
        ("trace_id", 1, _BYTES),
        ("span_id", 2, _BYTES),
        ("trace_state", 3, _BYTES),
        ("*attributes", 4, _BYTES),
        ("dropped_attributes_count", 5, _UINT32),
        ("flags", 6, _FIXED32),
    ),
    "KeyValue": (("key", 1, _BYTES), ("value", 2, _BYTES)),
    "Outline": (("*resource_spans", 1, "ResourceOutline"),),
    "ResourceOutline": (("*scope_spans", 2, "ScopeOutline"),),
    "ScopeOutline": (("*spans", 2, _BYTES),),
}


def _descriptor() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="ingest.proto", package="ingest", syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind in fields:
            field = message.field.add(name=name.lstrip("*"), number=number)
            field.label = _Type.LABEL_REPEATED if name.startswith("*") else _Type.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = _Type.TYPE_MESSAGE, f".ingest.{kind}"
            else:
                field.type = kind
    return file


@cache
def _handler(message: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_descriptor())
    handlers = ptars.HandlerPool([pool.FindFileByName("ingest.proto")])
    return handlers.get_for_message(pool.FindMessageTypeByName(f"ingest.{message}"))


def offsets(array: pa.Array) -> Int32s:
    """Offsets of a list, string or binary array, one more than it has elements; a view, not a copy."""
    buffer = array.buffers()[1]
    if buffer is None or buffer.size == 0:
        return np.zeros(1, np.int32)
    return np.frombuffer(buffer, np.int32, len(array) + 1, array.offset * 4)


def lengths(array: pa.Array) -> Int32s:
    """Length of every element of a list, string or binary array."""
    bounds = offsets(array)
    return bounds[1:] - bounds[:-1]


def content(array: pa.Array) -> Bytes:
    """All bytes behind a string or binary array; a view, not a copy."""
    buffer = array.buffers()[2]
    return np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)


def fixed(array: pa.Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Values of a fixed-width array without nulls; a view, not a copy."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def text(array: pa.Array) -> pa.StringArray:
    """The same bytes as strings, without a copy. Raises InvalidRequestError where they are not UTF-8."""
    strings = pa.Array.from_buffers(pa.string(), len(array), array.buffers(), offset=array.offset)
    return checked(strings)


def checked(strings: pa.StringArray) -> pa.StringArray:
    """The argument itself. Raises InvalidRequestError where it holds what is not UTF-8."""
    raw = content(strings)
    # ASCII needs no look at the boundaries between strings, and is nearly everything that comes.
    if raw.size and raw.max() >= 0x80:
        try:
            strings.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InvalidRequestError(f"not an ExportTraceServiceRequest: a string is not UTF-8 ({error})") from error
    return strings


@dataclass(frozen=True, slots=True)
class WireSpans:
    """A group of requests, taken apart but not interpreted.

    `spans` is a StructArray, one element a span in the order sent. `resources` / `scopes` are StructArrays
    (`resource` or `scope` and `schema_url`, all bytes); `span_counts_by_*` say how many spans each request,
    resource and scope has.
    """

    spans: pa.StructArray
    resources: pa.StructArray
    scopes: pa.StructArray
    span_counts_by_request: Int32s
    span_counts_by_resource: Int32s
    span_counts_by_scope: Int32s

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return int(self.spans.nbytes + self.resources.nbytes + self.scopes.nbytes)


@dataclass(frozen=True, slots=True)
class KeyValues:
    """KeyValue messages: `keys` (binary), and the AnyValue of each as `data[start:end]`; `start` and `end` ascend."""

    keys: pa.BinaryArray
    buffer: pa.Buffer
    data: Bytes
    start: Int32s
    end: Int32s


def parse_requests(payloads: Sequence[bytes]) -> WireSpans:
    """Take serialized ExportTraceServiceRequests apart.

    Raises InvalidRequestError, also where they hold more than SPANS_MAX spans, resources or scopes, or more than
    ITEMS_MAX attributes, events or links.
    """
    for payload in payloads:
        if len(payload) > _OUTLINE_BYTES_MIN:
            _check_outline(payload)
    batch = _convert("Request", list(payloads))
    by_request = batch.column(0)
    resources = by_request.values
    by_resource = resources.field("scope_spans")
    scopes = by_resource.values
    by_scope = scopes.field("spans")
    scope_ends = offsets(by_scope)
    resource_ends = scope_ends[offsets(by_resource)]
    request_ends = resource_ends[offsets(by_request)]
    spans = by_scope.values
    for name in ("attributes", "events", "links"):
        _bounded(name, len(spans.field(name).values), ITEMS_MAX)
    return WireSpans(
        spans=spans,
        resources=_with_fields(resources, ("resource", "schema_url")),
        scopes=_with_fields(scopes, ("scope", "schema_url")),
        span_counts_by_request=request_ends[1:] - request_ends[:-1],
        span_counts_by_resource=resource_ends[1:] - resource_ends[:-1],
        span_counts_by_scope=scope_ends[1:] - scope_ends[:-1],
    )


def _with_fields(messages: pa.StructArray, names: Sequence[str]) -> pa.StructArray:
    """Only these fields: in the others of a resource or scope lie all of its spans."""
    return pa.StructArray.from_arrays([messages.field(name) for name in names], names)


def joined(groups: Sequence[WireSpans]) -> WireSpans:
    """Several groups, at least one, as one: what `parse_requests` gives for all their requests, in less time."""
    first, *others = groups
    if not others:
        return first
    return WireSpans(
        spans=pa.concat_arrays([group.spans for group in groups]),
        resources=pa.concat_arrays([group.resources for group in groups]),
        scopes=pa.concat_arrays([group.scopes for group in groups]),
        span_counts_by_request=np.concatenate([group.span_counts_by_request for group in groups]),
        span_counts_by_resource=np.concatenate([group.span_counts_by_resource for group in groups]),
        span_counts_by_scope=np.concatenate([group.span_counts_by_scope for group in groups]),
    )


def count_spans(payload: bytes) -> int | None:
    """How many spans a request has; None where that is not found out: it is over COUNTED_BYTES_MAX, or no request."""
    if len(payload) > COUNTED_BYTES_MAX:
        return None
    try:
        outline = _convert("Outline", [payload]).column(0)
    except InvalidRequestError:
        return None
    return len(outline.values.field("scope_spans").values.field("spans").values)


def _check_outline(payload: bytes) -> None:
    """Refuse swarms of tiny messages before anything is built for each of them."""
    resources = _convert("Outline", [payload]).column(0)
    scopes = resources.values.field("scope_spans")
    spans = scopes.values.field("spans")
    for name, lists in (("resource_spans", resources), ("scope_spans", scopes), ("spans", spans)):
        _bounded(name, len(lists.values), SPANS_MAX)


def _bounded(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequestError(f"{name}: {count} in one request, expected at most {most}; send smaller batches")


def parse_messages(message: str, serialized: pa.BinaryArray) -> pa.RecordBatch:
    """Take messages (`Event`, `Link` or `KeyValue`) apart, one row each. Raises InvalidRequestError."""
    return _convert(message, serialized)


def _convert(message: str, serialized: list[bytes] | pa.BinaryArray) -> pa.RecordBatch:
    handler = _handler(message)
    convert = handler.list_to_record_batch if isinstance(serialized, list) else handler.array_to_record_batch
    try:
        return convert(serialized)
    except BaseException as error:
        # A length that overflows 64 bits is a panic of Rust to ptars, which is no Exception and would end the thread.
        if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
            raise
        raise InvalidRequestError(
            f"not an ExportTraceServiceRequest: {error}; send the protobuf message, or JSON with content type "
            "application/json"
        ) from error


def split_key_values(serialized: pa.BinaryArray) -> KeyValues:
    """Split KeyValue messages. Raises InvalidRequestError.

    Every encoder in use writes tag 1, length, key, tag 2, length, value: that form is recognised and split by
    arithmetic on all of them at once. If any message of the array has another form, the array is parsed instead.
    """
    bounds, data = offsets(serialized), content(serialized)
    begin, end = bounds[:-1], bounds[1:]
    if not data.size:
        return _parse_key_values(serialized)
    key_start = begin + 2
    key_end = key_start + np.take(data, begin + 1, mode="clip")
    value_start, plain = _after_length(data, key_end + 1, end)
    plain &= np.take(data, begin, mode="clip") == 0x0A
    plain &= key_end - key_start < 0x80
    plain &= (np.take(data, key_end, mode="clip") == 0x12) & (key_end < end)
    if not plain.all():
        return _parse_key_values(serialized)
    pieces = np.empty(2 * len(begin), np.int32)
    pieces[0::2], pieces[1::2] = key_start, key_end
    buffer = serialized.buffers()[2]
    between = pa.Array.from_buffers(pa.binary(), len(pieces) - 1, [None, pa.py_buffer(pieces), buffer])
    keys = between.take(pa.array(np.arange(0, len(pieces), 2, dtype=np.int32)))
    return KeyValues(keys=keys, buffer=buffer, data=data, start=value_start, end=end)


def _after_length(data: Bytes, position: Int32s, end: Int32s) -> tuple[Int32s, npt.NDArray[np.bool_]]:
    """Where the content starts whose length stands at `position`, and whether it then reaches exactly to `end`."""
    rest = end - position
    first = np.take(data, position, mode="clip")
    start = position + 1
    fits = (first == rest - 1) & (first < 0x80)
    if fits.all():
        return start, fits
    others = np.flatnonzero(~fits)
    for size in (2, 3, 4):
        where = position[others]
        length = rest[others] - size
        good = length > 0
        for i in range(size):
            expected = (length >> (7 * i)) & 0x7F | (0x80 if i < size - 1 else 0)
            good &= np.take(data, where + i, mode="clip") == expected
        good &= length < 1 << (7 * size)
        start[others[good]] = where[good] + size
        fits[others[good]] = True
        others = others[~good]
    return start, fits


def _parse_key_values(serialized: pa.BinaryArray) -> KeyValues:
    batch = parse_messages("KeyValue", serialized)
    values = batch.column("value")
    bounds = offsets(values)
    buffer = values.buffers()[2] or pa.py_buffer(b"")
    return KeyValues(batch.column("key"), buffer, content(values), bounds[:-1], bounds[1:])


def strip_string_header(data: Bytes, start: Int32s, end: Int32s) -> tuple[Int32s, npt.NDArray[np.bool_]]:
    """For messages of tag and length: start of the content, and whether it reaches exactly to `end`."""
    return _after_length(data, start + 1, end)
