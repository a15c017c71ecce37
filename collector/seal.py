"""From the spool into the lake, exactly once: one Parquet segment and one transaction a seal.

The transaction registers the segment, adds resources not seen before, and moves the spool's mark in `progress`.
Whatever is killed when, the mark says what is in the lake: a seal goes on behind it, and only then is the spool
trimmed. Groups come from memory, the small ones to be decoded here, together; what is missing there (after a restart,
or when memory was full) is read back from the spool and decoded anew. Both are the same path.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from collector.config import CollectorConfig
from collector.decode.decoder import Decoded, Decoder
from collector.decode.screening import Screened
from collector.errors import InvalidRequestError
from collector.ingest import SpooledGroup
from collector.lake.append import Appender
from collector.lake.lake import Lake
from collector.lake.order import as_one, by_tenant_and_time
from collector.lake.rewrite import COPIED_GROUP_ROWS_MIN, COPIED_ROWS_MIN
from collector.lake.segments import COMPRESSION, INTERIM_COMPRESSION, write_segment
from collector.resources import SeenResources
from collector.spool import Spool
from collector.telemetry.latency import Latencies
from collector.telemetry.traces import Tracing

log = logging.getLogger(__name__)

_RETRY_SECONDS_MAX = 10.0
DECODED_SPANS = 16_384
"""Spans decoded together, where that waited: memory for more is not worth what it saves."""


def job_name(spool_id: str) -> str:
    """The name in `progress` under which a spool's position in the lake stands."""
    return f"spool/{spool_id}"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A seal that is on: its last sequence number and number of spans, and whether all are of own exports."""

    last_seq: int
    spans: int
    is_own: bool


def last_spool(lake: Lake) -> tuple[str | None, int]:
    """The spool that was sealed into the lake last, and up to which of its requests; (None, 0) where none was."""
    with lake.read() as reader:
        found = reader.rows(
            "SELECT job, max(position) FROM progress WHERE starts_with(job, ?) GROUP BY job "
            "ORDER BY max(committed_at) DESC, job LIMIT 1",
            [job_name("")],
        )
    return (found[0][0].removeprefix(job_name("")), int(found[0][1])) if found else (None, 0)


class Sealer:
    """Seals what is offered, about once an interval, in a thread of its own. Implements SpooledSink."""

    def __init__(
        self, config: CollectorConfig, decoder: Decoder, spool: Spool, lake: Lake, tracing: Tracing | None = None
    ) -> None:
        self._config = config
        self._tracing = tracing or Tracing()
        self._decoder = decoder
        self._spool = spool
        self._lake = lake
        self._job = job_name(spool.spool_id)
        self._folder = lake.location.files / "main" / "spans"
        self._resources = SeenResources()
        self._appender = Appender(lake)
        self._changed = threading.Condition()
        self._kept: deque[SpooledGroup] = deque()
        self._kept_bytes = 0
        self._kept_spans = 0
        self._offered_seq = spool.last_seq
        self._stopping = False
        self._failures = 0
        self._progress_at = time.monotonic()
        self._attempt: _Attempt | None = None
        self.last_fault = ""
        self.sealed_spans = 0
        self.failed_spans = 0
        """Spans of seals that failed; they are sealed later, or counted again."""
        self.seal_latencies = Latencies()
        self.commit_latencies = Latencies()
        with lake.read() as reader:
            self._mark = reader.position(self._job)
        spool.start_after(self._mark or 0)
        for first, last in spool.missing(self._mark or 0):
            log.error("requests %d to %d are lost: they were acknowledged, and are not in the spool", first, last)
        self._offered_seq = spool.last_seq
        self._thread = threading.Thread(target=self._seal_forever, name="seal", daemon=True)

    def start(self) -> None:
        """Start sealing, at first what a former process left in the spool."""
        self._thread.start()

    def stop(self) -> None:
        """Seal everything that was offered and stop; gives up after `stop_timeout_seconds` of failures."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def offer(self, group: SpooledGroup) -> None:
        """Take over a group. Beyond `unsealed_bytes_max` only its number is kept: it is read back later."""
        with self._changed:
            if not self.unsealed_requests:
                self._progress_at = time.monotonic()
            self._offered_seq = group.last_seq
            if self._kept_bytes + group.content.nbytes <= self._config.unsealed_bytes_max:
                self._kept.append(group)
                self._kept_bytes += group.content.nbytes
                self._kept_spans += group.content.num_spans
            if self._kept_spans >= self._config.seal_spans_max:
                self._changed.notify()

    @property
    def unsealed_requests(self) -> int:
        """Requests that are durable in the spool and not yet in the lake."""
        return self._offered_seq - (self._mark or 0)

    @property
    def is_filling(self) -> bool:
        """Whether more is kept in memory than should wait: who can send later saves that it is decoded twice."""
        return self._kept_bytes > self._config.unsealed_bytes_max // 2

    @property
    def stalled_seconds(self) -> float:
        """How long requests have been waiting without a seal that succeeded; 0 where none waits."""
        return time.monotonic() - self._progress_at if self.unsealed_requests else 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def consecutive_failures(self) -> int:
        """Seals that failed since the last one that succeeded."""
        return self._failures

    # The seal thread.

    def _seal_forever(self) -> None:
        due = time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due, max(0.0, due - time.monotonic()))
                stopping = self._stopping
            due = time.monotonic() + self._config.seal_interval_seconds
            try:
                self._seal_all()
            except Exception as error:
                self._failures += 1
                self.last_fault = str(error)
                log.exception("a seal failed (%d in a row); the spans stay in the spool", self._failures)
                self._after_failure()
                if stopping:
                    break
                due = time.monotonic() + min(_RETRY_SECONDS_MAX, 0.1 * 2**self._failures)
            else:
                self._failures = 0
            if stopping and self._offered_seq <= (self._mark or 0):
                break

    def _is_due(self) -> bool:
        return self._stopping or (not self._failures and self._kept_spans >= self._config.seal_spans_max)

    def _seal_all(self) -> None:
        """Seal what is offered by now. What comes meanwhile waits for the next interval: else, where requests come
        faster than a seal takes, one tiny seal would follow the other without a pause.
        """
        upto = self._offered_seq
        while (self._mark or 0) < upto and (groups := self._next_groups()) is not None:
            self._seal(groups)

    def _next_groups(self) -> list[SpooledGroup] | None:
        """The groups that follow the mark without a gap, at most about a segment; None where none waits."""
        following = (self._mark or 0) + 1
        groups: list[SpooledGroup] = []
        spans = 0
        with self._changed:
            while self._kept and self._kept[0].last_seq < following:
                self._drop_oldest()
            upto = self._kept[0].first_seq - 1 if self._kept else self._offered_seq
            while self._kept and self._kept[0].first_seq == following and spans < self._config.seal_spans_max:
                group = self._drop_oldest()
                groups.append(group)
                following = group.last_seq + 1
                spans += group.content.num_spans
        if groups:
            return groups
        return None if upto < following else self._read_back(following - 1, upto)

    def _drop_oldest(self) -> SpooledGroup:
        group = self._kept.popleft()
        self._kept_bytes -= group.content.nbytes
        self._kept_spans -= group.content.num_spans
        return group

    def _read_back(self, after: int, upto: int) -> list[SpooledGroup]:
        """Decode the requests behind `after` anew; those that no longer decode are put aside."""
        pending = self._spool.pending(after, upto, self._config.spool_group_bytes_max)
        last = pending[-1][0] if pending else upto
        requests = [request for _, request in pending]
        try:
            return [SpooledGroup(after + 1, last, self._decoder.decode(requests))]
        except InvalidRequestError:
            groups = []
            for seq, request in pending:
                try:
                    groups.append(SpooledGroup(seq, seq, self._decoder.decode([request])))
                except InvalidRequestError as error:
                    log.warning("request %d of the spool does not decode and is put aside: %s", seq, error)
                    self._spool.quarantine(seq, str(error))
            return groups or [SpooledGroup(after + 1, last, self._decoder.decode([]))]

    def _seal(self, groups: Sequence[SpooledGroup]) -> None:
        started = time.perf_counter()
        decoded = list(self._decoded(groups))
        spans = pa.Table.from_batches([part.spans for part in decoded])
        last, is_own = groups[-1].last_seq, all(group.is_own for group in groups)
        attempt = self._attempt = _Attempt(last, spans.num_rows, is_own)
        attributes = {"spanlake.requests": last - groups[0].first_seq + 1, "spanlake.spans": spans.num_rows}
        with self._tracing.span("seal", attributes, is_own=is_own):
            self._write(spans, self._resources.unseen([part.resources for part in decoded]), attempt)
        self._settle(attempt, is_sealed=True)
        self._mark = last
        self._progress_at = time.monotonic()
        self.seal_latencies.record(time.perf_counter() - started)
        self._spool.trim(last)

    def _decoded(self, groups: Iterable[SpooledGroup]) -> Iterator[Decoded]:
        """Their contents; of those not decoded yet as many together as DECODED_SPANS."""
        waiting: list[Screened] = []
        spans = 0
        for group in groups:
            if isinstance(group.content, Decoded):
                yield group.content
                continue
            waiting.append(group.content)
            spans += group.content.num_spans
            if spans >= DECODED_SPANS:
                yield self._decoder.decode_screened(waiting)
                waiting, spans = [], 0
        if waiting:
            yield self._decoder.decode_screened(waiting)

    def _settle(self, attempt: _Attempt, *, is_sealed: bool) -> None:
        """Count an attempt, once, as what it came to."""
        self._attempt = None
        if is_sealed:
            self.sealed_spans += attempt.spans
        else:
            self.failed_spans += attempt.spans

    def _write(self, spans: pa.Table, resources: pa.Table, attempt: _Attempt) -> None:
        segment = self._segment(spans) if spans.num_rows else None
        try:
            self._commit(segment, resources, attempt)
        except BaseException:
            if segment is not None and not self._is_committed(attempt.last_seq):
                segment.unlink(missing_ok=True)
            raise

    def _segment(self, spans: pa.Table) -> Path:
        """A file of the spans. What is sorted anew in a minute or two may be larger, and a single row group need not be
        in order.
        """
        is_interim = spans.num_rows < COPIED_ROWS_MIN
        is_one_group = spans.num_rows < COPIED_GROUP_ROWS_MIN
        rows = as_one(spans) if is_one_group else by_tenant_and_time(spans)
        return write_segment(rows, self._folder, INTERIM_COMPRESSION if is_interim else COMPRESSION)

    def _commit(self, segment: Path | None, resources: pa.Table, attempt: _Attempt) -> None:
        started = time.perf_counter()
        with self._tracing.span("commit", {}, is_own=attempt.is_own):
            if (
                segment is None
                or resources.num_rows
                or not self._appender.commit(segment, self._job, self._mark, attempt.last_seq)
            ):
                self._commit_by_ducklake(segment, resources, attempt.last_seq)
        self.commit_latencies.record(time.perf_counter() - started)
        self._resources.remember(resources)

    def _commit_by_ducklake(self, segment: Path | None, resources: pa.Table, last_seq: int) -> None:
        with self._lake.write() as transaction:
            if segment is not None:
                transaction.add_files("spans", [segment])
            if resources.num_rows:
                self._resources.insert(transaction, resources)
            transaction.advance(self._job, expected=self._mark, position=last_seq)
        if segment is not None:
            self._appender.learn(segment)

    def _is_committed(self, last: int) -> bool:
        """Whether the lake has the mark; where it cannot tell, yes: a file is never deleted on a doubt."""
        try:
            with self._lake.read() as reader:
                return (reader.position(self._job) or 0) >= last
        except Exception:
            log.exception("the lake does not tell its position")
            return True

    def _after_failure(self) -> None:
        """Go on behind what the lake has: a commit that failed may still have come through."""
        try:
            with self._lake.read() as reader:
                self._mark = reader.position(self._job)
        except Exception:
            log.exception("the lake does not tell its position")
        if self._attempt is not None:
            self._settle(self._attempt, is_sealed=(self._mark or 0) >= self._attempt.last_seq)
