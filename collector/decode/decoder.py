"""Requests in, Arrow spans out: the one function of the decode stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from collector.config import MappingConfig
from collector.pipeline import Accepted, TraceRequest


@dataclass(frozen=True, slots=True)
class Decoded:
    """Spans of a group of requests.

    `spans` has SPAN_SCHEMA, rows in the order of the requests; `resources` has RESOURCE_SCHEMA, one row for
    each distinct resource in the group; `answers[i]` says what was rejected of `requests[i]`.
    """

    spans: pa.RecordBatch
    resources: pa.RecordBatch
    answers: tuple[Accepted, ...]


class Decoder:
    """Decodes groups of requests; holds caches by resource and scope, and no other state."""

    def __init__(self, mapping: MappingConfig) -> None:
        self._mapping = mapping

    def decode(self, requests: Sequence[TraceRequest]) -> Decoded:
        """Decode a group together. Safe to call from one thread at a time.

        Raises InvalidRequestError where any request of the group is not a valid
        ExportTraceServiceRequest (decode one by one to find which).
        """
        raise NotImplementedError
