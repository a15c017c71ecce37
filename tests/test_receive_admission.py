"""Admission: whatever tickets do, nothing leaks and the bounds hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.errors import OverloadedError, RetryableError
from collector.receive.admission import Admission, Ticket

BYTES_MAX = 100
REQUESTS_MAX = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ticket", "hold", "enter", "hand over", "release"]),
        st.integers(0, 9),
        st.integers(0, 150),
    ),
    max_size=60,
)


def step(admission: Admission, tickets: list[Ticket], what: str, which: int, size_bytes: int) -> None:
    if what == "ticket" or not tickets:
        tickets.append(admission.ticket())
        return
    at = which % len(tickets)
    if what == "hold":
        tickets[at].hold(size_bytes)
    elif what == "enter":
        tickets[at].enter()
    elif what == "hand over":
        tickets.append(tickets[at].hand_over())
    else:
        tickets[at].release()


@given(steps=STEPS)
def test_bounds_hold_and_nothing_leaks(steps: list[tuple[str, int, int]]) -> None:
    admission = Admission(REQUESTS_MAX, BYTES_MAX)
    tickets: list[Ticket] = []
    for what, which, size_bytes in steps:
        before = admission.pending_bytes
        try:
            step(admission, tickets, what, which, size_bytes)
        except RetryableError:
            assert admission.pending_bytes == before
        assert 0 <= admission.requests <= REQUESTS_MAX
        holders = [ticket for ticket in tickets if ticket._held_bytes]
        assert admission.pending_bytes <= BYTES_MAX or len(holders) == 1
    for ticket in tickets:
        ticket.release()
    assert (admission.requests, admission.pending_bytes) == (0, 0)


def test_a_released_ticket_holds_nothing_more() -> None:
    admission = Admission(REQUESTS_MAX, BYTES_MAX)
    with admission.ticket() as ticket:
        ticket.hold(10)
    with pytest.raises(RetryableError, match="given up"):
        ticket.hold(10)
    assert admission.pending_bytes == 0


def test_messages_name_key_and_value() -> None:
    admission = Admission(1, BYTES_MAX)
    first = admission.ticket()
    first.enter()
    with pytest.raises(OverloadedError, match="requests_in_flight_max = 1"):
        admission.ticket().enter()
    first.hold(BYTES_MAX)
    with pytest.raises(OverloadedError, match="pending_bytes_max = 100: 100 bytes"):
        admission.ticket()


def test_after_close_everything_new_is_refused() -> None:
    admission = Admission(REQUESTS_MAX, BYTES_MAX)
    early = admission.ticket()
    admission.close()
    with pytest.raises(RetryableError, match="stopping"):
        admission.ticket()
    with pytest.raises(RetryableError, match="stopping"):
        early.enter()
