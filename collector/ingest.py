"""From received requests to the spool, in groups; and from there to the sealer.

    accept() -> waiting -> [decode thread: deduplicate, decode] -> [spool thread: one fsync] -> answer
                                                                                     \\-> the sealer

While one group is being decoded or written, the next requests gather: the busier the collector, the larger the
groups, so the cost of a transaction is shared. Small ones wait a moment for each other (see gathering.py), and are
decoded later where they need no decoding to be answered (see decode/screening.py).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from collector.config import CollectorConfig
from collector.decode.decoder import Decoded, Decoder
from collector.decode.screening import Screened
from collector.errors import InvalidRequestError, OverloadedError, RetryableError
from collector.gathering import Gathering
from collector.pipeline import Accepted, TraceRequest
from collector.spool import Entry, Spool, digest_of
from collector.telemetry.traces import Tracing
from collector.tenants.fair_queue import FairQueue

log = logging.getLogger(__name__)

GROUP_REQUESTS_MAX = 256
_GROUPS_DECODED_AHEAD_MAX = 2
_TURN_BYTES = 256 * 1024
_REQUEST_COST_BYTES = 1024
"""What a request costs besides its bytes, so that tiny ones do not pass for free."""
_CONTENDED_GROUP_BYTES_MAX = 512 * 1024
"""While several tenants send, so that none of them waits long for a group filled by another."""


@dataclass(frozen=True, slots=True)
class SpooledGroup:
    """Spans whose requests are durable under the sequence numbers first_seq..last_seq, decoded or still to decode."""

    first_seq: int
    last_seq: int
    content: Decoded | Screened
    is_own: bool = False
    """Whether all of them are about this collector, exported by itself (see telemetry/traces.py)."""


@dataclass(frozen=True, slots=True)
class Append:
    """The outcome of a transaction of the spool: when (monotonic seconds), of what size, and why it failed."""

    at: float
    size_bytes: int
    fault: str = ""


class SpooledSink(Protocol):
    """Takes what is durable, on its way to the lake."""

    def offer(self, group: SpooledGroup) -> None:
        """Take over a group; never blocks, never refuses (what it cannot keep, it reads from the spool)."""
        ...


Answer = Accepted | Exception


@dataclass(slots=True)
class _Waiting:
    """A request and who waits for its answer: its sender, and senders of the same bytes meanwhile."""

    request: TraceRequest
    futures: list[asyncio.Future[Accepted]]
    digest: bytes = b""


@dataclass(slots=True)
class _Group:
    members: list[_Waiting]
    content: Decoded | Screened

    def answered(self) -> Iterator[tuple[_Waiting, Accepted]]:
        return zip(self.members, self.content.answers, strict=True)


class Ingest:
    """The TraceSink of the servers: what `accept` returns is done once the request is durable in the spool."""

    def __init__(
        self,
        config: CollectorConfig,
        decoder: Decoder,
        spool: Spool,
        sink: SpooledSink,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._tracing = tracing or Tracing()
        self._decoder = decoder
        self._spool = spool
        self._sink = sink
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = threading.Condition()
        self._waiting: FairQueue[_Waiting] = FairQueue(_TURN_BYTES)
        self._in_flight: dict[bytes, _Waiting] = {}
        self._decoded: queue.Queue[_Group | None] = queue.Queue(_GROUPS_DECODED_AHEAD_MAX)
        self._gathering = Gathering()
        self._stopping = False
        self.deduplicated_requests = 0
        self.rejected_spans = 0
        self.cuts: Counter[str] = Counter()
        """What was beyond a limit, as Decoded.cuts."""
        self.last_append: Append | None = None
        """None before the first."""
        self._threads = [
            threading.Thread(target=self._decode_forever, name="decode", daemon=True),
            threading.Thread(target=self._spool_forever, name="spool", daemon=True),
        ]

    def start(self) -> None:
        """Start the threads; call it in the event loop that will call `accept`."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish every accepted request, then stop the threads. Call it from outside of the event loop."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether both threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def accept(self, request: TraceRequest) -> asyncio.Future[Accepted]:
        """See TraceSink; call it in the event loop. An empty request holds nothing to store and is answered at once."""
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        if not request.payload:
            future.set_result(Accepted())
        elif self._spool.payload_bytes >= self._config.spool_bytes_max:
            future.set_exception(self._full())
        elif not self._push(request, future):
            future.set_exception(RetryableError("the collector is stopping; send the request again"))
        return future

    def _full(self) -> OverloadedError:
        return OverloadedError(
            f"the spool holds {self._spool.payload_bytes} bytes that are not in the lake yet, the limit "
            f"collector.spool_bytes_max = {self._config.spool_bytes_max} is reached; try again later"
        )

    def _push(self, request: TraceRequest, future: asyncio.Future[Accepted]) -> bool:
        """Let a request wait for the decode thread; False where this one stops."""
        with self._arrived:
            if self._stopping:
                return False
            size_bytes = len(request.payload) + _REQUEST_COST_BYTES
            self._waiting.push(request.tenant or "", size_bytes, _Waiting(request, [future]))
            if len(self._waiting) == 1 or self._is_enough():
                self._arrived.notify()
        return True

    # The decode thread.

    def _decode_forever(self) -> None:
        while (members := self._next_members()) is not None:
            try:
                fresh = self._deduplicate(members)
                self.deduplicated_requests += len(members) - len(fresh)
                for group in self._decode(fresh):
                    self._decoded.put(group)
            except Exception as error:
                log.exception("a group of %d requests was refused", len(members))
                self._answer((m, _retryable(error)) for m in members)
        self._decoded.put(None)

    def _next_members(self) -> list[_Waiting] | None:
        with self._arrived:
            self._arrived.wait_for(lambda: len(self._waiting) or self._stopping)
            if not self._waiting:
                return None
            seconds_left = self._gathering.seconds_left(time.monotonic())
            has_waited = seconds_left > 0
            if has_waited:
                self._arrived.wait_for(self._is_enough, seconds_left)
            count, size_bytes = len(self._waiting), self._waiting.size_bytes
            self._gathering.start_group(count, size_bytes, time.monotonic(), has_waited=has_waited)
            bytes_max = self._config.spool_group_bytes_max
            if self._waiting.is_contended:
                bytes_max = min(bytes_max, _CONTENDED_GROUP_BYTES_MAX)
            return self._waiting.take(GROUP_REQUESTS_MAX, bytes_max)

    def _is_enough(self) -> bool:
        """Whether the next group need not wait for more. The caller has the lock."""
        return self._stopping or self._gathering.is_enough(len(self._waiting), self._waiting.size_bytes)

    def _deduplicate(self, members: Sequence[_Waiting]) -> list[_Waiting]:
        """Those that are new; a repetition waits for its original, or gets the answer that this one got."""
        for member in members:
            member.digest = digest_of(member.request)
        candidates: list[_Waiting] = []
        with self._arrived:
            for member in members:
                original = self._in_flight.setdefault(member.digest, member)
                if original is member:
                    candidates.append(member)
                else:
                    original.futures.extend(member.futures)
        known = self._spool.recall(member.digest for member in candidates)
        if known:
            self._answer((m, known[m.digest]) for m in candidates if m.digest in known)
        return [m for m in candidates if m.digest not in known]

    def _decode(self, members: list[_Waiting]) -> list[_Group]:
        """One group where all decode together; else one group for each that decodes alone."""
        if not members:
            return []
        try:
            return [_Group(members, self._decoder.screen_or_decode([m.request for m in members]))]
        except Exception as error:
            if len(members) == 1:
                if not isinstance(error, InvalidRequestError):
                    log.exception("a request of %d bytes was refused", len(members[0].request.payload))
                    error = _retryable(error)
                self._answer([(members[0], error)])
                return []
            return [group for member in members for group in self._decode([member])]

    # The spool thread.

    def _spool_forever(self) -> None:
        while (group := self._decoded.get()) is not None:
            groups = [group]
            while not self._decoded.empty():
                following = self._decoded.get()
                if following is None:
                    self._decoded.put(None)
                    break
                groups.append(following)
            self._store(groups)

    def _store(self, groups: list[_Group]) -> None:
        entries = [
            Entry(member.digest, member.request, answer) for group in groups for member, answer in group.answered()
        ]
        size_bytes = sum(len(entry.request.payload) for entry in entries)
        started_at_ns = time.time_ns()
        try:
            last = self._spool.append(entries, started_at_ns)
        except Exception as error:
            log.exception("the spool did not take %d requests", len(entries))
            self.last_append = Append(time.monotonic(), size_bytes, str(error))
            refused = (pair for group in groups for pair in group.answered())
            self._answer((member, _retryable(error, answer.spans)) for member, answer in refused)
            return
        self.last_append = Append(time.monotonic(), size_bytes)
        self.rejected_spans += sum(entry.answer.rejected_spans for entry in entries)
        for group in groups:
            self.cuts.update(group.content.cuts)
        is_own = self._offer(groups, last - len(entries))
        self._answer(pair for group in groups for pair in group.answered())
        if not is_own and self._tracing.is_sampled():
            attributes = {"spanlake.requests": len(entries), "spanlake.bytes": size_bytes}
            self._tracing.record("spool", started_at_ns, attributes)

    def _offer(self, groups: Sequence[_Group], seq: int) -> bool:
        """Give groups, spooled behind `seq`, to the sealer; whether all of them are own exports."""
        all_own = True
        for group in groups:
            first, seq = seq + 1, seq + len(group.members)
            is_own = self._tracing.is_own(member.request for member in group.members)
            self._sink.offer(SpooledGroup(first, seq, group.content, is_own))
            all_own = all_own and is_own
        return all_own

    def _answer(self, answers: Iterable[tuple[_Waiting, Answer]]) -> None:
        """Answer everybody who waits for these requests, and forget that they are in flight."""
        settled: list[tuple[asyncio.Future[Accepted], Answer]] = []
        with self._arrived:
            for member, answer in answers:
                if self._in_flight.get(member.digest) is member:
                    del self._in_flight[member.digest]
                first, *others = member.futures
                settled.append((first, answer))
                if others:
                    repeated = replace(answer, spans=0) if isinstance(answer, Accepted) else answer
                    settled.extend((future, repeated) for future in others)
        if self._loop is not None and settled:
            self._loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[Accepted], Answer]]) -> None:
    for future, answer in settled:
        if future.done():
            continue
        if isinstance(answer, Accepted):
            future.set_result(answer)
        else:
            future.set_exception(answer)


def _retryable(error: Exception, spans: int | None = None) -> RetryableError:
    return RetryableError(f"the request could not be stored ({error}); send it again", refused_spans=spans)
