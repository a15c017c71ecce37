"""A simulated span: what the model makes and every emitter takes."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

AttributeValue = str | int | bool
Attributes = tuple[tuple[str, AttributeValue], ...]

SCOPE_NAME = "sample_data.simulator"
SCOPE_VERSION = "1"


class SpanKind(IntEnum):
    """OTLP's numbers of the kinds of spans."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class Span(NamedTuple):
    """A span as every emitter takes it; ids are bytes, `parent_span_id` is empty for a root.

    `instance` and `tenant` index the topology. `error` says that the status is an error, `exception` is
    (type, message) of an exception event at the end, `links` are (trace_id, span_id) of spans in other
    processes. The values of one attribute all have one type. `hit` and `undelivered` (subscribers that a
    fan-out never reached) are there to count the truth.
    """

    instance: int
    tenant: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    parent_is_remote: bool
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: Attributes
    error: bool = False
    status_message: str = ""
    exception: tuple[str, str] | None = None
    links: tuple[tuple[bytes, bytes], ...] = ()
    hit: bool | None = None
    undelivered: int = 0
