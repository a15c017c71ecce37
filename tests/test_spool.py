"""The spool on a real SQLite file: order, durability across reopening, deduplication and its window."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.pipeline import Accepted, TraceRequest
from collector.spool import _TRIMMED_BYTES, Entry, Spool, _bite, digest_of, former_digest_of

SECOND_NS = 1_000_000_000


def entry(payload: bytes, tenant: str | None = None, answer: Accepted | None = None) -> Entry:
    request = TraceRequest(payload, received_at_ns=5, tenant=tenant)
    return Entry(digest_of(request), request, answer or Accepted())


def pending(spool: Spool, after: int = 0) -> list[tuple[int, bytes]]:
    return [(seq, request.payload) for seq, request in spool.pending(after, spool.last_seq, 2**30)]


def test_requests_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    assert spool.append([entry(b"a"), entry(b"b", "acme")], 0) == 2
    assert spool.append([entry(b"c")], 0) == 3
    identity = spool.spool_id
    spool.close()

    again = Spool(tmp_path, 3600)
    assert again.spool_id == identity
    assert again.last_seq == 3
    assert again.payload_bytes == 3
    assert pending(again) == [(1, b"a"), (2, b"b"), (3, b"c")]
    assert [r.tenant for _, r in again.pending(0, 3, 2**30)] == [None, "acme", None]


def test_pending_is_cut_by_bytes_and_bounds(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    spool.append([entry(bytes([i]) * 10) for i in range(6)], 0)
    assert [seq for seq, _ in spool.pending(1, 5, 25)] == [2, 3, 4]
    assert [seq for seq, _ in spool.pending(1, 3, 10_000)] == [2, 3]


def test_trimmed_requests_are_gone_and_their_numbers_never_come_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    spool.append([entry(b"a"), entry(b"b")], 0)
    spool.trim(2)
    assert pending(spool) == []
    assert spool.payload_bytes == 0
    spool.close()

    again = Spool(tmp_path, 3600)
    again.start_after(2)
    assert again.append([entry(b"c")], 0) == 3


def test_many_requests_are_trimmed_up_to_a_position_and_no_further(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    spool.append([entry(b"%03d" % i) for i in range(60)], 0)
    spool.trim(50)
    assert [seq for seq, _ in pending(spool)] == list(range(51, 61))
    assert spool.payload_bytes == 30


@given(sizes=st.lists(st.integers(0, 2**22), max_size=30), position=st.integers(0, 31))
def test_a_trim_takes_pieces_of_bounded_size(sizes: list[int], position: int) -> None:
    left, pieces = list(enumerate(sizes, 1)), []
    while (piece := _bite([row for row in left if row[0] <= position]))[0] is not None:
        pieces.append([row for row in left if row[0] <= piece[0]])
        assert piece[1] == sum(size for _, size in pieces[-1])
        left = left[len(pieces[-1]) :]
    assert [row[0] for row in left] == list(range(min(position, len(sizes)) + 1, len(sizes) + 1))
    assert all(sum(size for _, size in piece[:-1]) < _TRIMMED_BYTES for piece in pieces)


def test_while_one_writes_another_recalls(tmp_path: Path) -> None:
    spool, writer = Spool(tmp_path, 3600), sqlite3.connect(tmp_path / "spool.sqlite", isolation_level=None)
    spool.append([entry(b"a")], 0)
    writer.execute("BEGIN IMMEDIATE")
    assert set(spool.recall([entry(b"a").digest])) == {entry(b"a").digest}
    writer.close()


def test_while_it_writes_itself_it_recalls_what_was_stored_before(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    spool.append([entry(b"a"), entry(b"b")], 0)
    with spool._transaction():
        assert set(spool.recall([entry(text).digest for text in (b"b", b"c")])) == {entry(b"b").digest}
    assert set(spool.recall([entry(text).digest for text in (b"b", b"a", b"c")])) == {
        entry(b"a").digest,
        entry(b"b").digest,
    }


def test_without_a_window_nothing_is_recalled_and_no_digest_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    assert spool.append([entry(b"a")], 0) == 1
    assert spool.append([entry(b"a")], 0) == 2
    assert spool.recall([entry(b"a").digest]) == {}
    assert pending(spool) == [(1, b"a"), (2, b"a")]


def test_a_digest_is_recalled_with_its_answer_after_trim_and_reopening(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    first = entry(b"a", answer=Accepted(2, "2 spans rejected"))
    spool.append([first], 0)
    spool.trim(1)
    spool.close()
    again = Spool(tmp_path, 3600)
    assert again.recall([first.digest, entry(b"other").digest]) == {first.digest: Accepted(2, "2 spans rejected")}


@given(st.binary(max_size=40), st.sampled_from([None, "", "a", "b"]), st.sampled_from([None, "", "a", "b"]))
@settings(deadline=None)
def test_a_digest_names_payload_and_tenant(payload: bytes, one: str | None, other: str | None) -> None:
    same = digest_of(TraceRequest(payload, 1, one)) == digest_of(TraceRequest(payload, 2, other))
    assert same == (one == other)


@pytest.mark.parametrize(("age_seconds", "known"), [(0, True), (99, True), (100, True), (199, True), (201, False)])
def test_the_window_holds_for_one_length_and_ends_before_two(tmp_path: Path, age_seconds: int, known: bool) -> None:
    spool = Spool(tmp_path, dedup_window_seconds=100)
    start = 1_000 * SECOND_NS
    first = entry(b"first")
    spool.append([first], start)
    for second in (100, 200):
        if second <= age_seconds:
            spool.append([entry(b"at %d" % second)], start + second * SECOND_NS)
    assert (first.digest in spool.recall([first.digest])) == known


def test_a_failed_append_stores_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    broken = Entry(b"d", TraceRequest(object(), 1, None), Accepted())  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(sqlite3.Error):
        spool.append([entry(b"a"), broken], 0)
    assert pending(spool) == []
    assert spool.recall([entry(b"a").digest]) == {}
    assert spool.append([entry(b"b")], 0) == 1


def test_quarantined_requests_leave_the_queue_and_stay_on_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 3600)
    spool.append([entry(b"a"), entry(b"b")], 0)
    spool.quarantine(1, "does not decode")
    assert pending(spool) == [(2, b"b")]
    assert spool.quarantined() == [(1, "does not decode")]


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    program = """
import os, sys, signal
from pathlib import Path
from collector.pipeline import Accepted, TraceRequest
from collector.spool import _TRIMMED_BYTES, Entry, Spool, _bite, digest_of
spool = Spool(Path(sys.argv[1]), 3600)
for i in range(7):
    request = TraceRequest(b"%d" % i, i)
    print(spool.append([Entry(digest_of(request), request, Accepted())], 0), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -9
    acknowledged = [int(line) for line in done.stdout.split()]
    assert acknowledged == [1, 2, 3, 4, 5, 6, 7]
    assert [seq for seq, _ in pending(Spool(tmp_path, 3600))] == acknowledged
    assert os.listdir(tmp_path)


@given(st.binary(min_size=1, max_size=600), st.data())
@settings(deadline=None)
def test_a_flipped_bit_changes_the_digest(payload: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    other = bytearray(payload)
    other[bit // 8] ^= 1 << bit % 8
    assert digest_of(TraceRequest(payload, 1)) != digest_of(TraceRequest(bytes(other), 1))


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_rows_with_a_former_digest_are_whole_unless_they_are_damaged(tmp_path: Path, tenant: str | None) -> None:
    requests = [TraceRequest(payload, 5, tenant) for payload in (b"whole", b"damaged")]
    spool = Spool(tmp_path, 3600)
    spool.append([Entry(former_digest_of(request), request, Accepted()) for request in requests], 0)
    spool.close()
    with sqlite3.connect(tmp_path / "spool.sqlite") as connection:
        connection.execute("UPDATE requests SET payload = ? WHERE seq = 2", (b"damageD",))
    again = Spool(tmp_path, 3600)
    assert pending(again) == [(1, b"whole")]
    assert [seq for seq, _ in again.quarantined()] == [2]
