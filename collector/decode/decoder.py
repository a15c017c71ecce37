"""Requests in, Arrow spans out: the one function of the decode stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collector.config import LimitsConfig, MappingConfig
from collector.decode import semantics
from collector.decode.attributes import Extra, decode_attributes
from collector.decode.events import decode_events, decode_links, null_where_empty, truncation_extras, with_nulls
from collector.decode.guards import Losses, cut_labels, cut_texts, first_of_each, plus_dropped
from collector.decode.identifiers import SPAN_ID_BYTES, acceptable, blank, explain_rejections, hex_texts, valid
from collector.decode.labels import LabelColumns, Labels
from collector.decode.origins import Coded, Origins, Resource, Scope, make_resource, make_scope
from collector.decode.promotion import Promotion
from collector.decode.sampling import sample_weights
from collector.decode.screening import Screened, screened
from collector.decode.semantics import Mapping as Meaning
from collector.decode.wire import Int32s, WireSpans, fixed, joined, lengths, parse_requests, text
from collector.pipeline import Accepted, TraceRequest
from collector.spans import RESOURCE_SCHEMA, SPAN_SCHEMA

_COMPONENTS, _KINDS, _STATUSES = (
    pa.array(names, pa.string()) for names in (semantics.COMPONENTS, semantics.KINDS, semantics.STATUSES)
)


_NO_RESOURCE = [pa.array([], field.type) for field in RESOURCE_SCHEMA][:-1]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Spans of a group of requests.

    `spans` has SPAN_SCHEMA, rows in the order of the requests; `resources` has RESOURCE_SCHEMA, one row for
    each distinct resource that these spans refer to; `answers[i]` says what was rejected of `requests[i]`; `cuts`
    counts what was beyond a limit: `attributes`, `events` and `links` that were dropped, `values`, `name`,
    `status_message` and `trace_state` that were cut, `resource` and `scope` messages in which anything was.
    """

    spans: pa.RecordBatch
    resources: pa.RecordBatch
    answers: tuple[Accepted, ...]
    cuts: Mapping[str, int]

    @property
    def num_spans(self) -> int:
        """How many spans there are."""
        return int(self.spans.num_rows)

    @property
    def nbytes(self) -> int:
        """What its spans take in memory."""
        return int(self.spans.nbytes)


class Decoder:
    """Decodes groups of requests; holds caches by resource and scope, and no other state."""

    def __init__(self, mapping: MappingConfig, limits: LimitsConfig | None = None) -> None:
        """Without `limits` their defaults hold."""
        self._mapping = Meaning(mapping)
        self._limits = bounds = limits or LimitsConfig()
        columns = self._mapping.resource_columns
        self._resources = Origins[Resource](lambda raw, url, budget: make_resource(raw, url, budget, bounds, columns))
        self._scopes = Origins[Scope](lambda raw, url, budget: make_scope(raw, url, budget, bounds))

    def decode(self, requests: Sequence[TraceRequest]) -> Decoded:
        """Decode a group together. Safe to call from one thread at a time.

        Raises InvalidRequestError where any request of the group is not a valid
        ExportTraceServiceRequest (decode one by one to find which).
        """
        wire = _parsed(requests)
        return self._group(requests, wire, self._origins(wire)).decode(self._mapping)

    def screen_or_decode(self, requests: Sequence[TraceRequest]) -> Screened | Decoded:
        """Decode a group, as `decode` does, unless that may as well be done later. Raises InvalidRequestError."""
        wire = _parsed(requests)
        origins = self._origins(wire)
        is_cut = any(item.is_cut for coded in origins for item in coded.items)
        if not is_cut and (passed := screened(requests, wire, self._limits)) is not None:
            return passed
        return self._group(requests, wire, origins).decode(self._mapping)

    def decode_screened(self, groups: Sequence[Screened]) -> Decoded:
        """Decode groups, at least one, together, as `decode` does all their requests."""
        requests = [request for group in groups for request in group.requests]
        wire = joined([group.wire for group in groups])
        return self._group(requests, wire, self._origins(wire)).decode(self._mapping)

    def _origins(self, wire: WireSpans) -> tuple[Coded[Resource], Coded[Scope]]:
        return (
            self._resources.code(wire.resources.field("resource"), wire.resources.field("schema_url")),
            self._scopes.code(wire.scopes.field("scope"), wire.scopes.field("schema_url")),
        )

    def _group(
        self, requests: Sequence[TraceRequest], wire: WireSpans, origins: tuple[Coded[Resource], Coded[Scope]]
    ) -> _Group:
        resources, scopes = origins
        return _Group(
            limits=self._limits,
            cuts=Counter(resource=_cut_count(resources), scope=_cut_count(scopes)),
            wire=wire,
            requests=requests,
            request=np.repeat(np.arange(len(requests), dtype=np.int32), wire.span_counts_by_request),
            resources=_spread(resources, wire.span_counts_by_resource),
            scopes=_spread(scopes, wire.span_counts_by_scope),
        )


def _parsed(requests: Sequence[TraceRequest]) -> WireSpans:
    return parse_requests([request.payload for request in requests])


def _cut_count(coded: Coded[Any]) -> int:
    """How many messages were cut."""
    is_cut = [item.is_cut for item in coded.items]
    return int(np.count_nonzero(np.array(is_cut)[coded.codes])) if any(is_cut) else 0


def _spread(coded: Coded[Any], counts: Int32s) -> Coded[Any]:
    return Coded(coded.items, np.repeat(coded.codes, counts))


@dataclass(frozen=True, slots=True)
class _Within:
    """Parts of spans that have limits, within these; `dropped_*` are counts by span, None where there are none."""

    names: Labels
    status_message: pa.StringArray
    trace_state: pa.StringArray
    events: pa.ListArray
    links: pa.ListArray
    dropped_events: npt.NDArray[np.int64] | None
    dropped_links: npt.NDArray[np.int64] | None
    losses: Losses


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans of a group, and by span: its request, its resource, its scope. `cuts` is counted while decoding."""

    limits: LimitsConfig
    cuts: Counter[str]
    wire: WireSpans
    requests: Sequence[TraceRequest]
    request: Int32s
    resources: Coded[Resource]
    scopes: Coded[Scope]

    def decode(self, mapping: Meaning) -> Decoded:
        spans = self.wire.spans
        start_ns = fixed(spans.field("start_time_unix_nano"), np.uint64)
        end_ns = fixed(spans.field("end_time_unix_nano"), np.uint64)
        columns = self._columns(mapping, start_ns, end_ns)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in SPAN_SCHEMA.names], schema=SPAN_SCHEMA)
        good = acceptable(spans, start_ns, end_ns)
        counts = self.wire.span_counts_by_request.tolist()
        cuts = {kind: count for kind, count in self.cuts.items() if count}
        if good.all():
            answers = [Accepted(spans=count) for count in counts]
            return Decoded(batch, self._resource_rows(good), tuple(answers), cuts)
        explained = explain_rejections(spans, self.request, good, len(self.requests))
        answers = [replace(a, spans=count - a.rejected_spans) for a, count in zip(explained, counts, strict=True)]
        return Decoded(batch.filter(pa.array(good)), self._resource_rows(good), tuple(answers), cuts)

    def _columns(self, mapping: Meaning, start_ns: npt.NDArray[Any], end_ns: npt.NDArray[Any]) -> dict[str, pa.Array]:
        spans = self.wire.spans
        backwards = end_ns < start_ns
        duration = end_ns - start_ns
        duration[backwards] = 0
        within = self._within_limits()
        parents = spans.field("parent_span_id")
        labels = LabelColumns(len(spans))
        received = np.array([request.received_at_ns for request in self.requests], np.int64)
        return {
            "trace_id": hex_texts(spans.field("trace_id")),
            "span_id": hex_texts(spans.field("span_id")),
            "parent_span_id": with_nulls(hex_texts(parents), valid(parents, SPAN_ID_BYTES)),
            "trace_state": null_where_empty(within.trace_state),
            "flags": spans.field("flags"),
            "start_time": _times(start_ns.view(np.int64)),
            "duration_ns": pa.array(duration.view(np.int64)),
            "status_message": null_where_empty(within.status_message),
            "sample_weight": sample_weights(text(spans.field("trace_state"))),
            "scope_name": labels.of(self.scopes.codes, [scope.name or None for scope in self.scopes.items]),
            "scope_version": labels.of(self.scopes.codes, [scope.version or None for scope in self.scopes.items]),
            "events": decode_events(within.events, self.limits, self.cuts),
            "links": decode_links(within.links, self.limits, self.cuts),
            "resource_id": labels.of(self.resources.codes, [resource.id for resource in self.resources.items]),
            "received_at": _times(np.repeat(received, self.wire.span_counts_by_request)),
            **self._meaning(mapping, labels, within, backwards, end_ns),
        }

    def _within_limits(self) -> _Within:
        spans, limits, losses = self.wire.spans, self.limits, Losses()
        message = text(spans.field("status").field("message"))
        events, dropped_events = first_of_each(spans.field("events"), limits.events_max)
        links, dropped_links = first_of_each(spans.field("links"), limits.links_max)
        for kind, dropped in (("events", dropped_events), ("links", dropped_links)):
            if dropped is not None:
                self.cuts[kind] += int(dropped.sum())
        return _Within(
            names=cut_labels(_names(spans.field("name")), limits.name_bytes_max, "name", losses),
            status_message=cut_texts(message, limits.attribute_value_bytes_max, "status_message", losses),
            trace_state=cut_texts(
                text(spans.field("trace_state")), limits.attribute_value_bytes_max, "trace_state", losses
            ),
            events=events,
            links=links,
            dropped_events=dropped_events,
            dropped_links=dropped_links,
            losses=losses,
        )

    def _meaning(
        self,
        mapping: Meaning,
        labels: LabelColumns,
        within: _Within,
        backwards: npt.NDArray[np.bool_],
        end_ns: npt.NDArray[Any],
    ) -> dict[str, Any]:
        """The columns that attributes fill, and the attributes that are left."""
        spans = self.wire.spans
        kinds = fixed(spans.field("kind"), np.int32)
        codes = fixed(spans.field("status").field("code"), np.int32)
        names = within.names
        attributes = decode_attributes(spans.field("attributes"), self.limits)
        losses = within.losses.merged(attributes.losses)
        self.cuts.update(losses.kinds)
        promotion = Promotion(mapping, attributes, self.resources, labels)
        component = promotion.component(kinds)
        columns = {
            column: promotion.text(column, self._tenants() if column == "tenant" else None)
            for column in semantics.TEXT_COLUMNS
            if column != "operation"
        }
        columns |= {
            "name": names.to_arrow(),
            "kind": _enum(kinds, _KINDS),
            "status": _enum(codes, _STATUSES),
            "component": Labels(component.astype(np.int32), _COMPONENTS).to_arrow(),
            "operation": promotion.operation(names, component),
            "cache_hit": promotion.cache_hit(),
        }
        for column in semantics.INTEGER_RANGES:
            columns[column] = promotion.integer(column, SPAN_SCHEMA.field(column).type)
        extras = self._dropped_extras(within, losses)
        extras += self._extras(kinds, codes, backwards, end_ns)
        extras += truncation_extras(losses)
        left = attributes.without(promotion.moved)
        columns["attributes"] = (left.with_extras(extras) if extras else left).to_maps()
        return columns

    def _tenants(self) -> Labels | None:
        """Tenants that transports name, by span; None where none does."""
        tenants = [request.tenant or None for request in self.requests]
        return Labels.of(self.request, tenants) if any(tenants) else None

    def _dropped_extras(self, within: _Within, losses: Losses) -> list[Extra]:
        """How many attributes, events and links were dropped, by the client or here."""
        spans = self.wire.spans
        extras = []
        for name, dropped in (
            ("dropped_attributes_count", losses.dropped),
            ("dropped_events_count", within.dropped_events),
            ("dropped_links_count", within.dropped_links),
        ):
            counts = plus_dropped(fixed(spans.field(name), np.uint32), dropped)
            extras += _number_extra(f"otel.{name}", counts > 0, counts)
        return extras

    def _extras(
        self, kinds: Int32s, codes: Int32s, backwards: npt.NDArray[np.bool_], end_ns: npt.NDArray[Any]
    ) -> list[Extra]:
        """What has no column and is no attribute, so that nothing a client sent is lost."""
        spans = self.wire.spans
        extras = []
        for i, scope in enumerate(self.scopes.items):
            if scope.extras:
                owners = np.flatnonzero(self.scopes.codes == i)
                extras += [Extra(key, owners, pa.repeat(pa.scalar(value), len(owners))) for key, value in scope.extras]
        extras += _number_extra("spanlake.kind", _unknown(kinds, _KINDS), kinds)
        extras += _number_extra("spanlake.status_code", _unknown(codes, _STATUSES), codes)
        extras += _number_extra("spanlake.end_time_unix_nano", backwards, end_ns)
        parents = spans.field("parent_span_id")
        malformed = _malformed(parents)
        if malformed.size:
            extras.append(Extra("spanlake.parent_span_id", malformed, hex_texts(parents.take(pa.array(malformed)))))
        return extras

    def _resource_rows(self, good: npt.NDArray[np.bool_]) -> pa.RecordBatch:
        used, first = np.unique(self.resources.codes[good], return_index=True)
        received = np.array([request.received_at_ns for request in self.requests], np.int64)
        rows = [self.resources.items[code].row for code in used.tolist()]
        columns = [pa.concat_arrays(parts) for parts in zip(*rows, strict=True)] or _NO_RESOURCE
        first_seen = _times(received[self.request[good][first]])
        return pa.RecordBatch.from_arrays([*columns, first_seen], schema=RESOURCE_SCHEMA)


def _times(times_ns: npt.NDArray[np.int64]) -> pa.TimestampArray:
    return pa.Array.from_buffers(pa.timestamp("ns"), len(times_ns), [None, pa.py_buffer(times_ns)])


def _names(names: pa.BinaryArray) -> Labels:
    encoded = names.dictionary_encode()
    return Labels(encoded.indices.to_numpy(), text(encoded.dictionary))


def _unknown(codes: Int32s, names: pa.StringArray) -> npt.NDArray[np.bool_]:
    return (codes < 0) | (codes >= len(names))


def _enum(codes: Int32s, names: pa.StringArray) -> pa.DictionaryArray:
    """Names of an enum's numbers; the first name for numbers that have none."""
    return Labels(np.where(_unknown(codes, names), 0, codes), names).to_arrow()


def _malformed(parents: pa.BinaryArray) -> npt.NDArray[np.intp]:
    """Parent ids that are neither empty, nor all zero, nor of the right length."""
    size = lengths(parents)
    odd = (size != SPAN_ID_BYTES) & (size > 0)
    return np.flatnonzero(odd & ~blank(parents)) if odd.any() else np.flatnonzero(odd)


def _number_extra(key: str, where: npt.NDArray[np.bool_], numbers: npt.NDArray[Any]) -> list[Extra]:
    """The numbers as an extra of those spans, none where there are no such spans."""
    owners = np.flatnonzero(where)
    return [Extra(key, owners, pa.array(numbers[owners]).cast(pa.string()))] if owners.size else []
