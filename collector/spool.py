"""The spool: requests on disk from their acknowledgement until they are sealed into the lake.

One SQLite database (write-ahead log, synchronous=FULL). A request has a sequence number, rising without reuse, and
a digest, unique within the deduplication window: the digest outlives the payload, so that a request sent again
after its answer was lost is recognised, also after a restart. Digests are kept in two generations, each one window
long; the older is emptied as a whole when the younger is a window old. A repeated request is therefore recognised
for at least one window after it was first stored, and at most for two.

Every request has a checksum over all that is stored of it: what comes back is what was acknowledged, or is put aside.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import struct
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

from collector.pipeline import Accepted, TraceRequest

log = logging.getLogger(__name__)

FILE_NAME = "spool.sqlite"
DIGEST_BYTES = 16
PAGE_BYTES = 16_384
_CHECKPOINT_PAGES = 2_000
_TRIMMED_REQUESTS = 64
_TRIMMED_BYTES = 2 * 2**20
"""At once; at least one request."""
_TRIM_PAUSE_SECONDS = 0.001
"""Long enough for who waits for the lock to get it."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS identity (spool_id TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS requests (
        seq INTEGER PRIMARY KEY, received_at_ns INTEGER NOT NULL, tenant TEXT, payload BLOB NOT NULL,
        checksum BLOB NOT NULL)""",
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
# As SQLite keeps them.
_STORED = tuple(statement.replace("CREATE TABLE IF NOT EXISTS", "CREATE TABLE", 1) for statement in _SCHEMA)


@dataclass(frozen=True, slots=True)
class Entry:
    """A request to be spooled, its digest, and the answer that it (and every repetition of it) gets."""

    digest: bytes
    request: TraceRequest
    answer: Accepted


@dataclass(frozen=True, slots=True)
class Row:
    """A request as it is stored."""

    seq: int
    received_at_ns: int
    tenant: str | None
    payload: bytes
    checksum: bytes

    @property
    def request(self) -> TraceRequest:
        """The request."""
        return TraceRequest(self.payload, self.received_at_ns, self.tenant)


def digest_of(request: TraceRequest) -> bytes:
    """The key that makes a repeated request count once: BLAKE2b-128 of the payload's XXH3-128, keyed by its tenant.

    Payloads of one tenant that differ have different digests unless somebody who sends for it wants it otherwise.
    """
    return request.digest or _keyed(xxhash.xxh3_128_digest(request.payload), request.tenant)


def former_digest_of(request: TraceRequest) -> bytes:
    """What digests were before XXH3: BLAKE2b-128 of the payload, keyed by its tenant."""
    return _keyed(request.payload, request.tenant)


def _keyed(content: bytes, tenant: str | None) -> bytes:
    key = hashlib.blake2b(b"" if tenant is None else b"t" + tenant.encode(), digest_size=32).digest()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES, key=key).digest()


def checksum_of(digest: bytes, seq: int, received_at_ns: int) -> bytes:
    """BLAKE2b-128 over a request's number, time and digest, and so over its tenant and payload too."""
    return hashlib.blake2b(struct.pack("<qq", seq, received_at_ns) + digest, digest_size=DIGEST_BYTES).digest()


def is_whole(row: Row) -> bool:
    """Whether the row is as it was written, with a digest of today or a former one."""
    request = row.request
    digests = (digest(request) for digest in (digest_of, former_digest_of))
    return any(checksum_of(digest, row.seq, row.received_at_ns) == row.checksum for digest in digests)


class Spool:
    """Durable, ordered requests. Safe to use from several threads. Every method raises sqlite3.Error."""

    def __init__(self, folder: Path, dedup_window_seconds: float) -> None:
        """Open or create `folder`/spool.sqlite."""
        self._window_ns = int(dedup_window_seconds * 1e9)
        self._lock = threading.Lock()
        self._file = folder / FILE_NAME
        self._connection = _connect(folder)
        for pragma in (
            f"page_size = {PAGE_BYTES}",
            "journal_mode = WAL",
            f"wal_autocheckpoint = {_CHECKPOINT_PAGES}",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        for statement in _SCHEMA:
            self._connection.execute(statement)
        self._opened = os.stat(self._file)
        self.spool_id = self._identity()
        # Digests are looked up while others write: a reader of the write-ahead log waits for nobody.
        self._lookup_lock = threading.Lock()
        self._lookup = _connect(folder)
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
        When it raises, none of them is stored. Raises also OSError where the file is no longer in its folder.
        """
        numbered = [
            (seq, at_ns, e.request.tenant, e.request.payload, checksum_of(e.digest, seq, at_ns))
            for seq, e in enumerate(entries, self._last_seq + 1)
            for at_ns in (e.request.received_at_ns,)
        ]
        digests = [(e.digest, e.answer.rejected_spans, e.answer.message) for e in entries]
        with self._transaction():
            slot, started_at_ns = self._rotate(now_ns)
            self._connection.executemany("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", numbered)
            if self._window_ns:
                self._connection.executemany(f"INSERT OR REPLACE INTO digests_{slot} VALUES (?, ?, ?)", digests)
            self._check_in_place()
        self._generation_slot, self._generation_started_at_ns = slot, started_at_ns
        self._last_seq += len(entries)
        self._payload_bytes += sum(len(e.request.payload) for e in entries)
        return self._last_seq

    def recall(self, digests: Iterable[bytes]) -> dict[bytes, Accepted]:
        """The answers of those digests, at most a group's, that were stored within the window; none where it is 0."""
        found: dict[bytes, Accepted] = {}
        if not self._window_ns:
            return found
        wanted = list(digests)
        is_wanted = f"WHERE digest IN ({', '.join(f'?{n}' for n in range(1, len(wanted) + 1))})"
        query = " UNION ALL ".join(f"SELECT * FROM digests_{slot} {is_wanted}" for slot in (0, 1))
        with self._reading() as connection:
            for digest, *answer in connection.execute(query, wanted):
                found[digest] = Accepted(*answer)
        return found

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection that writes, which has read most pages already, unless it is writing: then the other one."""
        if self._lock.acquire(blocking=False):
            try:
                yield self._connection
            finally:
                self._lock.release()
        else:
            with self._lookup_lock:
                yield self._lookup

    def pending(self, after: int, upto: int, bytes_max: int) -> list[tuple[int, TraceRequest]]:
        """The requests with after < seq <= upto in order, cut where their payloads reach `bytes_max`.

        Those that are not as they were written are put aside instead.
        """
        found: list[tuple[int, TraceRequest]] = []
        damaged: list[int] = []
        size = 0
        query = (
            "SELECT seq, received_at_ns, CAST(tenant AS BLOB), CAST(payload AS BLOB), checksum FROM requests "
            "WHERE seq > ? AND seq <= ? ORDER BY seq"
        )
        with self._lock:
            for columns in self._connection.execute(query, (after, upto)):
                row = _whole_row(*columns)
                if row is None:
                    damaged.append(columns[0])
                    continue
                found.append((row.seq, row.request))
                size += len(row.payload)
                if size >= bytes_max:
                    break
        for seq in damaged:
            log.error("request %d of the spool is damaged and is put aside: its checksum is wrong", seq)
            self.quarantine(seq, "the checksum is wrong: it is not as it was received")
        return found

    def missing(self, after: int) -> list[tuple[int, int]]:
        """Sequence numbers behind `after`, as ranges (first, last), that should be here and are not."""
        query = """
            WITH known AS (SELECT seq FROM requests WHERE seq > ?1 UNION SELECT seq FROM quarantine WHERE seq > ?1),
            steps AS (SELECT lag(seq, 1, ?1) OVER (ORDER BY seq) AS before, seq FROM known)
            SELECT before + 1, seq - 1 FROM steps WHERE seq > before + 1 ORDER BY seq
        """
        with self._lock:
            return self._connection.execute(query, (after,)).fetchall()

    def trim(self, position: int) -> None:
        """Forget the payloads up to `position`: they are sealed. Their digests stay.

        In small transactions, so that no request waits long for its own; and without fsync, since after a crash
        they would only be trimmed again.
        """
        query = "SELECT seq, length(payload) FROM requests WHERE seq <= ? ORDER BY seq LIMIT ?"
        while True:
            with self._transaction("NORMAL"):
                upto, freed = _bite(self._connection.execute(query, (position, _TRIMMED_REQUESTS)).fetchall())
                self._connection.execute("DELETE FROM requests WHERE seq <= ?", (upto,))
            self._payload_bytes -= freed
            if upto is None or upto >= position:
                return
            time.sleep(_TRIM_PAUSE_SECONDS)

    def quarantine(self, seq: int, reason: str) -> None:
        """Put a request aside that can no longer be decoded, with the reason; it stays on disk."""
        with self._transaction():
            freed = self._one("SELECT length(CAST(payload AS BLOB)) FROM requests WHERE seq = ?", (seq,))
            self._connection.execute(
                "INSERT OR REPLACE INTO quarantine SELECT seq, coalesce(received_at_ns, 0), tenant, "
                "coalesce(payload, x''), ? FROM requests WHERE seq = ?",
                (reason, seq),
            )
            self._connection.execute("DELETE FROM requests WHERE seq = ?", (seq,))
        self._quarantined += 1
        self._payload_bytes -= freed

    def quarantined(self) -> list[tuple[int, str]]:
        """(seq, reason) of the requests that were put aside."""
        with self._lock:
            return self._connection.execute("SELECT seq, reason FROM quarantine ORDER BY seq").fetchall()

    def probe(self, size_bytes: int) -> None:
        """Prove that a request of this size could be stored: write as many bytes to disk, in a place of their own."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO probe VALUES (1, randomblob(?))", (size_bytes,))
            self._check_in_place()

    def damage(self) -> str | None:
        """What SQLite finds wrong with the file as a whole, None where nothing. Reads all of it."""
        unknown = self._one(
            f"SELECT count(*) FROM sqlite_master WHERE sql NOT IN ({', '.join('?' * len(_SCHEMA))})", _STORED
        )
        if unknown:
            return "it has tables that no spool has"
        with self._lock:
            found = str(self._connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        return None if found == "ok" else found

    def restore(self, spool_id: str | None, rows: Sequence[Row], answers: Sequence[tuple[bytes, int, str]]) -> None:
        """Fill a new spool with what another one held: rows as they are, digests as if stored now."""
        with self._transaction():
            if spool_id is not None:
                self._connection.execute("UPDATE identity SET spool_id = ?", (spool_id,))
            self._connection.executemany(
                "INSERT INTO requests VALUES (?, ?, ?, ?, ?)",
                [(row.seq, row.received_at_ns, row.tenant, row.payload, row.checksum) for row in rows],
            )
            slot, _ = self._rotate(time.time_ns())
            self._connection.executemany(f"INSERT OR IGNORE INTO digests_{slot} VALUES (?, ?, ?)", answers)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock, self._lookup_lock:
            self._lookup.close()
            self._connection.close()

    def _check_in_place(self) -> None:
        """A file that was deleted or replaced can still be written: what is written there is lost."""
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            found = None
        if found is None or not os.path.samestat(found, self._opened):
            raise FileNotFoundError(
                f"{str(self._file)!r} is no longer the file that the collector opened; was the data folder deleted or "
                "moved? Restart the collector"
            )

    @contextmanager
    def _transaction(self, synchronous: str = "FULL") -> Iterator[None]:
        with self._lock:
            self._connection.execute(f"PRAGMA synchronous = {synchronous}")
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
        age_ns = now_ns - self._generation_started_at_ns
        if not self._window_ns:
            return self._generation_slot, self._generation_started_at_ns
        if 0 <= age_ns < self._window_ns:
            return self._generation_slot, self._generation_started_at_ns
        if age_ns < 0:  # the clock was set back: its new time is the start, else the generation would never end
            return self._generation_slot, self._restart_generation(now_ns)
        slot = 1 - self._generation_slot
        self._connection.execute(f"DELETE FROM digests_{slot}")
        self._connection.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", (slot, now_ns))
        return slot, now_ns

    def _restart_generation(self, now_ns: int) -> int:
        older_ns = now_ns - self._window_ns
        self._connection.execute("UPDATE generations SET started_at_ns = min(started_at_ns, ?)", (older_ns,))
        self._connection.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", (self._generation_slot, now_ns))
        return now_ns

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


def _bite(rows: Iterable[tuple[int, int]]) -> tuple[int | None, int]:
    """Of (number, size) those that are trimmed at once: the last number, None where there is none, and their bytes."""
    upto, size = None, 0
    for seq, payload_bytes in rows:
        upto, size = seq, size + payload_bytes
        if size >= _TRIMMED_BYTES:
            break
    return upto, size


def _connect(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / FILE_NAME, isolation_level=None, check_same_thread=False)


def _whole_row(seq: int, received_at_ns: object, tenant: object, payload: object, checksum: object) -> Row | None:
    """The row of these columns; None where they are not as they were written."""
    match received_at_ns, tenant, payload, checksum:
        case int(), bytes() | None, bytes(), bytes():
            try:
                text = None if tenant is None else tenant.decode()
                row = Row(seq, received_at_ns, text, payload, checksum)
                return row if is_whole(row) else None
            except (UnicodeDecodeError, struct.error):
                return None
    return None
