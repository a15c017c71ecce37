"""Spans of the lake as ExportTraceServiceRequests in protobuf, whole batches at a time.

Field numbers are those of opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage

from collector.decode.semantics import KINDS, STATUSES, Mapping
from collector.encode.fields import delimited, fixed32, fixed64, from_hex, gathered, joined, varints
from collector.encode.promoted import Restored, restored
from collector.varint import varint

REQUEST_BYTES = 4 * 2**20
LATE_EVENT = "spanlake.time_unix_nano"


@dataclass(frozen=True)
class Resource:
    """A row of table `resources`."""

    schema_url: str
    attributes: dict[str, str]
    dropped_attributes_count: int

    def message(self) -> bytes:
        """A serialized Resource; its values as texts."""
        pairs = [KeyValue(key=key, value=AnyValue(string_value=text)) for key, text in self.attributes.items()]
        message = ResourceMessage(attributes=pairs, dropped_attributes_count=self.dropped_attributes_count)
        return bytes(message.SerializeToString())


class ProtobufEncoder:
    """Makes requests of spans; `resources` by their ids."""

    def __init__(self, resources: dict[str, Resource], mapping: Mapping) -> None:
        self._attributes = {name: resource.attributes for name, resource in resources.items()}
        self._resources = resources
        self._mapping = mapping

    def requests(self, spans: pa.Table) -> Iterator[bytes]:
        """Serialized requests that hold these spans (SPAN_SCHEMA), each of about REQUEST_BYTES at most.

        Spans are put in the order of resource and scope, and keep theirs within one.
        """
        if not spans.num_rows:
            return
        groups, order = _groups(spans)
        spans = spans.take(pa.array(order))
        encoded = delimited(2, encode_spans(spans, restored(spans, self._attributes, self._mapping)))
        offsets = np.frombuffer(encoded.buffers()[1], np.int64)[encoded.offset : encoded.offset + len(encoded) + 1]
        content = memoryview(encoded.buffers()[2])
        parts, size = list[bytes](), 0
        for (resource_id, service_name, scope_name, scope_version), first, last in groups:
            head = self._resource(resource_id, service_name)
            for start, end in _stretches(offsets, first, last):
                scope = InstrumentationScope(name=scope_name or "", version=scope_version or "").SerializeToString()
                scoped = _field(1, scope) + bytes(content[offsets[start] : offsets[end]])
                parts.append(_field(1, head + _field(2, scoped) + self._schema_url(resource_id)))
                size += len(parts[-1])
                if size >= REQUEST_BYTES:
                    yield b"".join(parts)
                    parts, size = [], 0
        if parts:
            yield b"".join(parts)

    def _resource(self, resource_id: str, service_name: str) -> bytes:
        known = self._resources.get(resource_id)
        return _field(1, (known or Resource("", {"service.name": service_name}, 0)).message())

    def _schema_url(self, resource_id: str) -> bytes:
        known = self._resources.get(resource_id)
        return _field(3, known.schema_url.encode()) if known and known.schema_url else b""


def _field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


Group = tuple[tuple[str, str, str | None, str | None], int, int]


def _groups(spans: pa.Table) -> tuple[list[Group], npt.NDArray[np.int64]]:
    """(resource id, service, scope's name and version), first and last row of each after the rows were put in order."""
    names = ("resource_id", "service_name", "scope_name", "scope_version")
    code = np.zeros(spans.num_rows, np.int64)
    for name in names:
        encoded = _text(spans, name).dictionary_encode(null_encoding="encode")
        # Codes are made dense at each step, so that their product stays small.
        code = code * len(encoded.dictionary) + encoded.indices.to_numpy(zero_copy_only=False)
        code = np.unique(code, return_inverse=True)[1]
    order = np.argsort(code, kind="stable")
    bounds = np.flatnonzero(np.diff(code[order], prepend=-1)).tolist()
    firsts = spans.select(names).take(pa.array(order[bounds])).to_pylist()
    keys = [(row["resource_id"], row["service_name"], row["scope_name"], row["scope_version"]) for row in firsts]
    ends = [*bounds[1:], spans.num_rows]
    return list(zip(keys, bounds, ends, strict=True)), order


def _stretches(offsets: npt.NDArray[np.int64], first: int, last: int) -> Iterator[tuple[int, int]]:
    """first to last in stretches of about REQUEST_BYTES, of one row at least."""
    while first < last:
        end = int(np.searchsorted(offsets, offsets[first] + REQUEST_BYTES, "right")) - 1
        end = min(max(end, first + 1), last)
        yield first, end
        first = end


def encode_spans(spans: pa.Table, added: Sequence[Restored]) -> pa.LargeBinaryArray:
    """A serialized Span for each row; `added` attributes come before its others."""
    start_ns = _numbers(spans, "start_time")
    parts = [
        delimited(1, from_hex(_text(spans, "trace_id"))),
        delimited(2, from_hex(_text(spans, "span_id"))),
        delimited(3, _text(spans, "trace_state")),
        delimited(4, from_hex(_text(spans, "parent_span_id"))),
        delimited(5, _text(spans, "name")),
        varints(6, pc.index_in(_text(spans, "kind"), pa.array(KINDS))),
        fixed64(7, start_ns),
        fixed64(8, start_ns + _numbers(spans, "duration_ns")),
        *(_scattered(part, spans.num_rows) for part in added),
        _attributes(9, spans.column("attributes").combine_chunks()),
        _events(spans.column("events").combine_chunks()),
        _links(spans.column("links").combine_chunks()),
        delimited(15, _status(spans)),
        fixed32(16, spans.column("flags").combine_chunks().to_numpy()),
    ]
    return joined(parts)


def _text(spans: pa.Table, name: str) -> pa.StringArray:
    return spans.column(name).combine_chunks().cast(pa.string())


def _numbers(spans: pa.Table, name: str) -> npt.NDArray[np.uint64]:
    return np.asarray(spans.column(name).combine_chunks().cast(pa.int64()).to_numpy().view(np.uint64))


def _status(spans: pa.Table) -> pa.LargeBinaryArray:
    codes = varints(3, pc.index_in(_text(spans, "status"), pa.array(STATUSES)))
    message = delimited(2, _text(spans, "status_message"))
    empty = pc.and_(codes.is_null(), message.is_null())
    return pc.if_else(empty, pa.scalar(None, pa.large_binary()), joined([message, codes]))


def _key_values(number: int, keys: pa.Array, values: pa.Array) -> pa.LargeBinaryArray:
    """KeyValue fields with these AnyValues."""
    return delimited(number, joined([delimited(1, keys), delimited(2, values)]))


def _attributes(number: int, maps: pa.MapArray) -> pa.LargeBinaryArray:
    pairs = _key_values(number, maps.keys, delimited(1, maps.items))
    return gathered(maps.offsets.to_numpy(), pairs)


def _scattered(part: Restored, count: int) -> pa.LargeBinaryArray:
    """The attributes of a column as fields of all spans."""
    if pa.types.is_boolean(part.values.type):
        # False is a value here, so it is written where a plain field would leave it out.
        encoded = pa.array([b"\x10\x00", b"\x10\x01"], pa.large_binary()).take(part.values.cast(pa.int32()))
    elif pa.types.is_integer(part.values.type):
        encoded = pc.coalesce(varints(3, part.values), pa.scalar(b"\x18\x00", pa.large_binary()))
    else:
        encoded = delimited(1, part.values)
    fields = _key_values(9, part.keys, encoded)
    place = np.full(count, -1)
    place[part.rows] = np.arange(len(part.rows))
    return fields.take(pa.array(place, mask=place < 0))


def _events(lists: pa.ListArray) -> pa.LargeBinaryArray:
    events = lists.values
    offsets = lists.offsets.to_numpy()
    if not len(events):
        return gathered(np.zeros(len(lists) + 1, np.int64), pa.array([], pa.large_binary()))
    times, attributes = _event_times(events.field("time"), events.field("attributes"))
    messages = joined(
        [
            fixed64(1, times),
            delimited(2, events.field("name")),
            _attributes(3, attributes),
            varints(4, events.field("dropped_attributes_count")),
        ]
    )
    return gathered(offsets, delimited(11, messages))


def _event_times(times: pa.Array, maps: pa.MapArray) -> tuple[npt.NDArray[np.uint64], pa.MapArray]:
    """Times in ns; one that the column cannot hold comes from its attribute, which is taken away."""
    numbers = times.cast(pa.int64()).fill_null(0).to_numpy().view(np.uint64).copy()
    late = np.flatnonzero(times.is_null().to_numpy(zero_copy_only=False))
    if not late.size:
        return numbers, maps
    rows = maps.to_pylist()
    for row in late.tolist():
        found = dict(rows[row])
        numbers[row] = int(found.pop(LATE_EVENT, "0"))
        rows[row] = list(found.items())
    return numbers, pa.array(rows, maps.type)


def _links(lists: pa.ListArray) -> pa.LargeBinaryArray:
    links = lists.values
    if not len(links):
        return gathered(np.zeros(len(lists) + 1, np.int64), pa.array([], pa.large_binary()))
    messages = joined(
        [
            delimited(1, from_hex(links.field("trace_id"))),
            delimited(2, from_hex(links.field("span_id"))),
            delimited(3, links.field("trace_state")),
            _attributes(4, links.field("attributes")),
            varints(5, links.field("dropped_attributes_count")),
            fixed32(6, links.field("flags").to_numpy(zero_copy_only=False)),
        ]
    )
    return gathered(lists.offsets.to_numpy(), delimited(13, messages))
