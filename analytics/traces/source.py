"""The spans that the trace tables are made of, read from the lake, and those that late ones may still join."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analytics.traces import forest
from analytics.traces.sightings import ATTRIBUTES
from collector.lake import engine
from collector.lake.lake import Reader

LABELS = tuple(dict.fromkeys((*forest.LABELS, *ATTRIBUTES.values())))
_PLAIN = (*forest.IDS, "start_time", "duration_ns", *LABELS, "received_at")
_LINKS = "list_transform(links, lambda l: {'trace_id': l.trace_id, 'span_id': l.span_id}) AS links"
TRACE_SPANS_MAX = 50_000
_ROUNDS = 2
_CHUNK_SPANS = 50_000


def read(reader: Reader, after: int, upto: int, key_attributes: Sequence[str]) -> pl.DataFrame:
    """The spans inserted after snapshot `after`, up to and with `upto`: what every part of the trace tables needs.

    Columns: `forest.SPAN_COLUMNS`, those of `sightings`, and `key`, the first of `key_attributes` that a span has.
    """
    keys = ", ".join("attributes[?]" for _ in key_attributes)
    key = f"COALESCE({keys}, NULL)" if keys else "NULL::VARCHAR"
    sql = f"SELECT {', '.join(_PLAIN)}, {_LINKS}, {key} AS key FROM spans WHERE snapshot_id > ? AND snapshot_id <= ?"
    found = reader.frame(sql, [*key_attributes, after, upto])
    return found.with_columns(pl.col(LABELS).cast(pl.Categorical))


@dataclass(frozen=True)
class Chunk:
    """Spans (forest.SPAN_COLUMNS) up to snapshot `upto`, committed at `seconds`, with `trace`, a hash of their trace.

    `links` has the hashes of the traces that a link leads from and to.
    """

    upto: int
    seconds: float
    spans: pl.DataFrame
    links: pl.DataFrame

    @classmethod
    def of(cls, spans: pl.DataFrame, upto: int, seconds: float) -> Chunk:
        """The chunk of spans as `read` gives them."""
        kept = spans.select(*forest.SPAN_COLUMNS, trace=pl.col("trace_id").hash())
        linked = kept.select("trace", "links").filter(pl.col("links").list.len() > 0).explode("links")
        to = pl.col("links").struct.field("trace_id").hash()
        return cls(upto, seconds, kept, linked.select(from_trace="trace", to_trace=to).unique())


class Window:
    """The newest spans, in memory, so that the spans of a trace that comes in parts are found without a search.

    Holds spans for at least `late_seconds` after their commit, but at most `late_spans_max` (and one chunk). It is
    made of the lake alone: `load` after a restart gives what was there before.
    """

    def __init__(self, late_seconds: float, late_spans_max: int) -> None:
        self._late_seconds = late_seconds
        self._late_spans_max = late_spans_max
        self._chunks: deque[Chunk] = deque()
        self.position: int | None = None
        """The snapshot up to which it holds spans; None where it holds none."""

    @property
    def spans(self) -> int:
        """How many it holds."""
        return sum(chunk.spans.height for chunk in self._chunks)

    def load(self, reader: Reader, position: int | None) -> None:
        """Hold the spans before and at snapshot `position` anew, as far back as it goes."""
        self._chunks.clear()
        self.position = position
        if position is None:
            return
        times: dict[int, float] = dict(
            reader.rows(f"SELECT snapshot_id, epoch(snapshot_time) FROM {engine.CATALOG}.snapshots()")
        )
        newest = times.get(position, 0.0)
        # Where the snapshot has expired, only the number of spans says how far to go back.
        since = min((i for i, s in times.items() if s >= newest - self._late_seconds), default=0) if newest else 0
        counts = reader.rows(
            "SELECT snapshot_id, count(*) FROM spans WHERE snapshot_id >= ? AND snapshot_id <= ? "
            "GROUP BY snapshot_id ORDER BY snapshot_id DESC",
            [since, position],
        )
        for after, upto in _stretches(counts, position, self._late_spans_max):
            chunk = Chunk.of(read(reader, after, upto, ()), upto, times.get(upto, newest))
            self._chunks.append(chunk)

    def add(self, chunk: Chunk) -> None:
        """Take in the spans of a run that is committed; let go of what is too old or too much."""
        self._chunks.append(chunk)
        self.position = chunk.upto
        held = self.spans
        while len(self._chunks) > 1 and (
            self._chunks[0].seconds < chunk.seconds - self._late_seconds
            or held - self._chunks[0].spans.height >= self._late_spans_max
        ):
            held -= self._chunks.popleft().spans.height

    def joined(self, new: Chunk) -> pl.DataFrame:
        """The spans held of all traces that new spans may change: theirs, and those joined to them by links.

        Links are followed both ways, _ROUNDS times: from a new span to its message, and to all who have that message
        and what else they have. Traces that are found by accident (of the same hash) change nothing. Of a trace of more
        than TRACE_SPANS_MAX spans none are given: it counts in pieces, so that no trace makes every run expensive.
        """
        links = pl.concat([chunk.links for chunk in (*self._chunks, new)])
        traces = new.spans.select("trace").unique()
        for _ in range(_ROUNDS):
            forth = links.join(traces, left_on="from_trace", right_on="trace", how="semi").select(trace="to_trace")
            back = links.join(traces, left_on="to_trace", right_on="trace", how="semi").select(trace="from_trace")
            traces = pl.concat([traces, forth, back]).unique()
        found = pl.concat([new.spans.clear(), *(c.spans.join(traces, on="trace", how="semi") for c in self._chunks)])
        huge = found.group_by("trace").len().filter(pl.col("len") > TRACE_SPANS_MAX)
        return found.join(huge, on="trace", how="anti")


def _stretches(counts: Sequence[tuple[int, int]], newest: int, spans_max: int) -> list[tuple[int, int]]:
    """Stretches of snapshots (after, upto) of about _CHUNK_SPANS each, oldest first, that hold `spans_max` or all.

    `counts` are snapshots with their number of spans, the newest first.
    """
    stretches: list[tuple[int, int]] = []
    total = size = 0
    upto = newest
    for snapshot_id, spans in counts:
        total, size = total + spans, size + spans
        if size >= _CHUNK_SPANS or snapshot_id == counts[-1][0] or total > spans_max:
            stretches.append((snapshot_id - 1, upto))
            upto, size = snapshot_id - 1, 0
        if total > spans_max:
            break
    return stretches[::-1]
