"""What certainly decodes: whole, with nothing rejected and nothing cut. Only that may be decoded later.

To decode a group takes 2 ms and to wake up for it as much again, however small it is. So a small group that passes here
is answered and spooled at once, and decoded with others of its second; whatever is unusual is decoded first, because
only that tells what is rejected of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from collector.config import LimitsConfig
from collector.decode.guards import TEXT_GROWTH_MAX
from collector.decode.identifiers import acceptable
from collector.decode.values import are_simple
from collector.decode.wire import WireSpans, fixed, lengths, split_key_values, text
from collector.pipeline import Accepted, TraceRequest

SPANS_MAX = 1_000
"""Spans of a group that may wait: the more it has, the less is saved. At full load groups are larger."""


@dataclass(frozen=True, slots=True)
class Screened:
    """A group of valid requests, taken apart and not decoded yet; the rest as in Decoded, with nothing in `cuts`."""

    requests: tuple[TraceRequest, ...]
    wire: WireSpans
    answers: tuple[Accepted, ...]

    @property
    def num_spans(self) -> int:
        """How many spans these requests have."""
        return sum(answer.spans for answer in self.answers)

    @property
    def nbytes(self) -> int:
        """What is kept of it in memory."""
        return sum(len(request.payload) for request in self.requests) + self.wire.nbytes

    @property
    def cuts(self) -> Mapping[str, int]:
        """Nothing was beyond a limit."""
        return {}


def screened(requests: Sequence[TraceRequest], wire: WireSpans, limits: LimitsConfig) -> Screened | None:
    """The group, `wire` being its requests; None where it may not wait.

    Raises InvalidRequestError where a text is not UTF-8.
    """
    spans = wire.spans
    if len(spans) > SPANS_MAX or not (_are_usual(spans, limits) and _are_simple_attributes(spans, limits)):
        return None
    answers = tuple(Accepted(spans=count) for count in wire.span_counts_by_request.tolist())
    return Screened(tuple(requests), wire, answers)


def _are_usual(spans: pa.StructArray, limits: LimitsConfig) -> bool:
    """Whether all but the attributes is acceptable, within the limits, and has no messages within messages."""
    if len(spans.field("events").values) or len(spans.field("links").values):
        return False
    start_ns, end_ns = (fixed(spans.field(f"{end}_time_unix_nano"), np.uint64) for end in ("start", "end"))
    value_bytes_max = limits.attribute_value_bytes_max
    texts = (
        (spans.field("name"), limits.name_bytes_max),
        (spans.field("trace_state"), value_bytes_max),
        (spans.field("status").field("message"), value_bytes_max),
    )
    return bool(acceptable(spans, start_ns, end_ns).all()) and all(
        _are_within(text(array), bytes_max) for array, bytes_max in texts
    )


def _are_simple_attributes(spans: pa.StructArray, limits: LimitsConfig) -> bool:
    lists = spans.field("attributes")
    if not len(lists.values):
        return True
    if lengths(lists).max() > limits.attributes_max:
        return False
    split = split_key_values(lists.values)
    value_bytes_max = limits.attribute_value_bytes_max // TEXT_GROWTH_MAX
    return (
        _are_within(text(split.keys), limits.attribute_key_bytes_max)
        and int((split.end - split.start).max()) <= value_bytes_max
        and are_simple(split)
    )


def _are_within(texts: pa.StringArray, bytes_max: int) -> bool:
    return not len(texts) or int(lengths(texts).max()) <= bytes_max
