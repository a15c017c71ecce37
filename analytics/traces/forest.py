"""Spans as trees: which span is whose parent, across all traces of a frame at once.

Everything that follows a chain of spans (to the root, along siblings) goes by pointer jumping: each round doubles how
far every pointer reaches, so a chain of n spans takes log2(n) rounds over flat arrays, however wide or deep the trace
(Wyllie: "The complexity of parallel computations", Cornell 1979; JaJa: "An Introduction to Parallel Algorithms", 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NONE = -1
ID = ["trace_id", "span_id"]
IDS = (*ID, "parent_span_id")
PAIRS = pl.Schema({"from_row": pl.Int64(), "to_row": pl.Int64()})
LABELS = ("kind", "status", "service_name", "region", "tenant", "component", "operation", "destination", "host")
SPAN_COLUMNS = (*IDS, "start_time", "duration_ns", *LABELS, "links")
UNKNOWN_REGION = "unknown"

_INT64_MAX = np.iinfo(np.int64).max
_ORDER = ("trace_id", "start_time", "span_id", "duration_ns")


@dataclass(frozen=True, eq=False)
class Forest:
    """Spans in the order of trace, start and id, and for each of them the row of its parent.

    `spans` has SPAN_COLUMNS: ids of any type that joins, `start_time` as Datetime("ns"), labels as String or
    Categorical, `links` as a list of structs with trace_id and span_id. `parent` is NONE for a root, where the parent
    is missing, and on every span of a cycle. Of spans that share an id the first is the parent of their children.
    """

    spans: pl.DataFrame
    parent: Ints

    @classmethod
    def of(cls, spans: pl.DataFrame) -> Forest:
        """The forest of spans in any order."""
        ordered = spans.sort(_ORDER)
        return cls(ordered, without_cycles(_parent_rows(ordered)))

    @cached_property
    def start_ns(self) -> Ints:
        """Start of each span, ns since the Unix epoch."""
        start: Ints = self.spans["start_time"].cast(pl.Int64).to_numpy()
        return start

    @cached_property
    def end_ns(self) -> Ints:
        """End of each span; where it lies beyond 64 bits, the last moment within them."""
        duration: Ints = self.spans["duration_ns"].to_numpy()
        end: Ints = self.start_ns + np.minimum(duration, _INT64_MAX - np.maximum(self.start_ns, 0))
        return end

    @cached_property
    def waited_parent(self) -> Ints:
        """As `parent`, for spans that their parent may wait for: a consumer's producer does not."""
        is_consumer = (self.spans["kind"] == "consumer").to_numpy()
        return np.where(is_consumer, NONE, self.parent)

    @cached_property
    def path_root(self) -> Ints:
        """The row of the first span of the path that each span is on, following `waited_parent`."""
        return tops(self.waited_parent)

    @cached_property
    def calls(self) -> pl.DataFrame:
        """Rows of callers and of the server spans that are their children; columns of PAIRS.

        A caller is a client or producer span, or any span of another service.
        """
        return self._of_other_services(self._children("server"), ("client", "producer"))

    @cached_property
    def messages(self) -> pl.DataFrame:
        """Rows of producers and of consumer spans that have them as parent or in a link, each pair once; as PAIRS.

        A producer is a span of that kind, or any span of another service.
        """
        both = pl.concat([self._children("consumer"), self._linked("consumer")])
        return self._of_other_services(both.unique(), ("producer",))

    def _children(self, kind: str) -> pl.DataFrame:
        is_child = (self.spans["kind"] == kind).to_numpy() & (self.parent != NONE)
        return pl.DataFrame({"from_row": self.parent[is_child], "to_row": np.flatnonzero(is_child)}, schema=PAIRS)

    def _linked(self, kind: str) -> pl.DataFrame:
        spans = self.spans.select("kind", "links").with_row_index("to_row")
        links = spans.filter((pl.col("kind") == kind) & (pl.col("links").list.len() > 0)).explode("links")
        targets = links.select("to_row", *(pl.col("links").struct.field(name) for name in ID))
        found = targets.join(_first_of_ids(self.spans, "from_row"), on=ID)
        return found.select(PAIRS.names()).cast(PAIRS).unique()

    def _of_other_services(self, pairs: pl.DataFrame, kinds: Sequence[str]) -> pl.DataFrame:
        span = self.spans.select(pl.col("kind", "service_name").cast(pl.String))
        caller, called = span[pairs["from_row"]], span[pairs["to_row"]]
        return pairs.filter(caller["kind"].is_in(kinds) | (caller["service_name"] != called["service_name"]))


def _first_of_ids(spans: pl.DataFrame, row: str) -> pl.DataFrame:
    return spans.select(ID).with_row_index(row).unique(ID, keep="first")


def _parent_rows(spans: pl.DataFrame) -> Ints:
    children = spans.select("trace_id", span_id="parent_span_id")
    found = children.join(_first_of_ids(spans, "row"), on=ID, how="left", maintain_order="left")
    parent: Ints = found["row"].cast(pl.Int64).fill_null(NONE).to_numpy()
    return parent


def without_cycles(parent: Ints) -> Ints:
    """The same pointers, with NONE for each span that is its own ancestor."""
    ahead, reached = parent.copy(), 1
    while reached <= len(parent):
        active = np.flatnonzero(ahead != NONE)
        if not active.size:
            return parent
        ahead[active] = ahead[ahead[active]]
        reached *= 2
    cleaned = parent.copy()
    # After so many steps whoever is not out of the forest stands on a cycle, and each span of it is stood on.
    cleaned[ahead[ahead != NONE]] = NONE
    return cleaned


def tops(parent: Ints) -> Ints:
    """The last row that the pointers lead to from each row; itself for a root."""
    top, ahead = np.arange(len(parent)), parent.copy()
    while (active := np.flatnonzero(ahead != NONE)).size:
        up = ahead[active]
        top[active], ahead[active] = top[up], ahead[up]
    return top


def over_ancestors(parent: Ints, value: Ints, combine: np.ufunc) -> Ints:
    """`value` of each row combined with those of all its ancestors; `combine` as np.maximum, idempotent."""
    found, ahead = value.copy(), parent.copy()
    while (active := np.flatnonzero(ahead != NONE)).size:
        up = ahead[active]
        found[active], ahead[active] = combine(found[active], found[up]), ahead[up]
    return found


def reached(heads: Bools, following: Ints) -> Bools:
    """Which rows the pointers `following` (without cycles) lead to from the rows marked in `heads`, those included."""
    marked, ahead = heads.copy(), following.copy()
    while (active := np.flatnonzero(ahead != NONE)).size:
        marked[ahead[active[marked[active]]]] = True
        ahead[active] = ahead[ahead[active]]
    return marked


def sums_by(group: Ints, value: Ints, groups: int) -> Ints:
    """The sum of `value` for each number from 0 to below `groups`, exact in 64 bits."""
    total = np.zeros(groups, np.int64)
    np.add.at(total, group, value)
    return total
