"""The spool: requests on disk from their acknowledgement until they are sealed into the lake.

One SQLite database (write-ahead log, synchronous=FULL). A request has a sequence number, rising without reuse, and
a digest, unique within the deduplication window: the digest outlives the payload, so that a request sent again
after its answer was lost is recognised, also after a restart. Digests are kept in two generations, each one window
long; the older is emptied as a whole when the younger is a window old. A repeated request is therefore recognised
for at least one window after it was first stored, and at most for two.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from collector.pipeline import Accepted, TraceRequest

DIGEST_BYTES = 16
_PAGE_BYTES = 16_384
_CHECKPOINT_PAGES = 2_000
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS identity (spool_id TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS requests (
        seq INTEGER PRIMARY KEY, received_at_ns INTEGER NOT NULL, tenant TEXT, payload BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS quarantine (
        seq INTEGER PRIMARY KEY, received_at_ns INTEGER NOT NULL, tenant TEXT, payload BLOB NOT NULL,
        reason TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS probe (id INTEGER PRIMARY KEY, content BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS generations (slot INTEGER PRIMARY KEY, started_at_ns INTEGER NOT NULL)",
    *(
        f"""CREATE TABLE IF NOT EXISTS digests_{slot} (
        digest BLOB PRIMARY KEY, rejected_spans INTEGER NOT NULL, message TEXT NOT NULL) WITHOUT ROWID"""
        for slot in (0, 1)
    ),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A request to be spooled, its digest, and the answer that it (and every repetition of it) gets."""

    digest: bytes
    request: TraceRequest
    answer: Accepted


def digest_of(request: TraceRequest) -> bytes:
    """The key that makes a repeated request count once: BLAKE2b-128 of the payload, keyed by its tenant."""
    tenant = b"" if request.tenant is None else b"t" + request.tenant.encode()
    key = hashlib.blake2b(tenant, digest_size=32).digest()
    return hashlib.blake2b(request.payload, digest_size=DIGEST_BYTES, key=key).digest()


class Spool:
    """Durable, ordered requests. Safe to use from several threads. Every method raises sqlite3.Error."""

    def __init__(self, folder: Path, dedup_window_seconds: float) -> None:
        """Open or create `folder`/spool.sqlite."""
        self._window_ns = int(dedup_window_seconds * 1e9)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(folder / "spool.sqlite", isolation_level=None, check_same_thread=False)
        for pragma in (
            f"page_size = {_PAGE_BYTES}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        for statement in _SCHEMA:
            self._connection.execute(statement)
        self.spool_id = self._identity()
        self._last_seq = self._one("SELECT max(seq) FROM (SELECT seq FROM requests UNION SELECT seq FROM quarantine)")
        self._payload_bytes = self._one("SELECT sum(length(payload)) FROM requests")
        self._quarantined = self._one("SELECT count(*) FROM quarantine")
        self._generation_slot, self._generation_started_at_ns = self._generation()

    @property
    def last_seq(self) -> int:
        """The sequence number of the newest request ever spooled that is still known; 0 where none is."""
        return self._last_seq

    @property
    def payload_bytes(self) -> int:
        """Bytes of the payloads not yet trimmed."""
        return self._payload_bytes

    @property
    def quarantined_requests(self) -> int:
        """Requests put aside."""
        return self._quarantined

    def start_after(self, position: int) -> None:
        """Never give out a sequence number up to `position`: the lake has them already."""
        self._last_seq = max(self._last_seq, position)

    def append(self, entries: Sequence[Entry], now_ns: int) -> int:
        """Store `entries` and their digests in one transaction; return the sequence number of the last.

        When this returns, the requests are on disk: they survive a crash of the process or of the machine.
        When it raises, none of them is stored.
        """
        first = self._last_seq + 1
        numbered = [
            (first + i, e.request.received_at_ns, e.request.tenant, e.request.payload) for i, e in enumerate(entries)
        ]
        digests = [(e.digest, e.answer.rejected_spans, e.answer.message) for e in entries]
        with self._transaction():
            slot, started_at_ns = self._rotate(now_ns)
            self._connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?)", numbered)
            self._connection.executemany(f"INSERT OR REPLACE INTO digests_{slot} VALUES (?, ?, ?)", digests)
        self._generation_slot, self._generation_started_at_ns = slot, started_at_ns
        self._last_seq += len(entries)
        self._payload_bytes += sum(len(e.request.payload) for e in entries)
        return self._last_seq

    def recall(self, digests: Iterable[bytes]) -> dict[bytes, Accepted]:
        """The answers of those digests that were stored within the window."""
        found: dict[bytes, Accepted] = {}
        query = (
            "SELECT rejected_spans, message FROM digests_0 WHERE digest = ?1 "
            "UNION ALL SELECT rejected_spans, message FROM digests_1 WHERE digest = ?1"
        )
        with self._lock:
            for digest in digests:
                row = self._connection.execute(query, (digest,)).fetchone()
                if row is not None:
                    found[digest] = Accepted(*row)
        return found

    def pending(self, after: int, upto: int, bytes_max: int) -> list[tuple[int, TraceRequest]]:
        """The requests with after < seq <= upto in order, cut where their payloads reach `bytes_max`."""
        found: list[tuple[int, TraceRequest]] = []
        size = 0
        with self._lock:
            rows = self._connection.execute(
                "SELECT seq, payload, received_at_ns, tenant FROM requests WHERE seq > ? AND seq <= ? ORDER BY seq",
                (after, upto),
            )
            for seq, payload, received_at_ns, tenant in rows:
                found.append((seq, TraceRequest(payload, received_at_ns, tenant)))
                size += len(payload)
                if size >= bytes_max:
                    break
        return found

    def trim(self, position: int) -> None:
        """Forget the payloads up to `position`: they are sealed. Their digests stay."""
        with self._transaction():
            freed = self._one("SELECT sum(length(payload)) FROM requests WHERE seq <= ?", (position,))
            self._connection.execute("DELETE FROM requests WHERE seq <= ?", (position,))
        self._payload_bytes -= freed

    def quarantine(self, seq: int, reason: str) -> None:
        """Put a request aside that can no longer be decoded, with the reason; it stays on disk."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO quarantine SELECT seq, received_at_ns, tenant, payload, ? FROM requests WHERE seq = ?",
                (reason, seq),
            )
            self._connection.execute("DELETE FROM requests WHERE seq = ?", (seq,))
        self._quarantined += 1

    def quarantined(self) -> list[tuple[int, str]]:
        """(seq, reason) of the requests that were put aside."""
        with self._lock:
            return self._connection.execute("SELECT seq, reason FROM quarantine ORDER BY seq").fetchall()

    def probe(self, size_bytes: int) -> None:
        """Prove that a request of this size could be stored: write as many bytes to disk, in a place of their own."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO probe VALUES (1, randomblob(?))", (size_bytes,))

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rotate(self, now_ns: int) -> tuple[int, int]:
        """The young generation (slot, start), after starting a new one where it is a window old."""
        if now_ns - self._generation_started_at_ns < self._window_ns:
            return self._generation_slot, self._generation_started_at_ns
        slot = 1 - self._generation_slot
        self._connection.execute(f"DELETE FROM digests_{slot}")
        self._connection.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", (slot, now_ns))
        return slot, now_ns

    def _generation(self) -> tuple[int, int]:
        row = self._connection.execute(
            "SELECT slot, started_at_ns FROM generations ORDER BY started_at_ns DESC LIMIT 1"
        ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    def _identity(self) -> str:
        row = self._connection.execute("SELECT spool_id FROM identity").fetchone()
        if row is None:
            row = (uuid.uuid4().hex,)
            self._connection.execute("INSERT INTO identity VALUES (?)", row)
        return str(row[0])

    def _one(self, sql: str, parameters: tuple[object, ...] = ()) -> int:
        return int(self._connection.execute(sql, parameters).fetchone()[0] or 0)
