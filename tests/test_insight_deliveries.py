"""Findings of deliveries: lags of what is delivered and of what is not yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from analytics.insight import topics
from analytics.insight.evidence import Evidence
from analytics.insight.finding import Finding
from analytics.insight.grains import BASE, COUNTS
from analytics.insight.scene import Scene
from analytics.insight.shares import clear
from analytics.insight.traced import DELIVERIES_SCHEMA, DELIVERY_CELLS_SCHEMA
from collector.config import InsightConfig
from tests.reference.grains import grain_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTES, BEGIN, MESSAGES = 60, 50, 400
USUAL_CELL, LATE_CELL = 170, 230


def told_of(rows: list[tuple[int, int, dict[int, int]]]) -> list[Finding]:
    """What is told of a topic: messages, deliveries, and deliveries by cell of each minute."""
    counts, cells = [], []
    for minute, (messages, delivered, by_cell) in enumerate(rows):
        time = (NOON + timedelta(minutes=minute)).replace(tzinfo=None)
        counts.append((time, "north", "a", "orders", messages, delivered))
        cells += [(time, "north", "a", "orders", cell, many) for cell, many in by_cell.items() if many]
    first = {"minute": [NOON.replace(tzinfo=None)]}
    first |= {**{name: ["north"] for name in BASE}, **{name: [1] for name in COUNTS}}
    evidence = replace(
        Evidence.empty(), base=grain_of(BASE, pl.DataFrame(first)),
        deliveries=pl.DataFrame(counts, schema=DELIVERIES_SCHEMA, orient="row"),
        delivery_cells=pl.DataFrame(cells, schema=DELIVERY_CELLS_SCHEMA, orient="row"),
    )  # fmt: skip
    return topics.find(Scene(evidence, NOON + timedelta(minutes=len(rows)), InsightConfig()))


def found(late: float, lost: float) -> list[Finding]:
    """A topic with two subscribers; from BEGIN on shares of its deliveries are late or lost."""
    rng = np.random.default_rng(4)
    rows = []
    for minute in range(MINUTES):
        due = 2 * MESSAGES
        gone = int(lost * due) if minute >= BEGIN else 0
        held = int(late * due) if minute >= BEGIN else 0
        usual = np.bincount(rng.binomial(6, 0.5, due - gone - held), minlength=7)
        rows.append((MESSAGES, due - gone, {**{USUAL_CELL + i: int(n) for i, n in enumerate(usual)}, LATE_CELL: held}))
    return told_of(rows)


def few(late_messages: int, fan_out: int) -> list[Finding]:
    """A topic with 30 deliveries a minute; now and then a message is late at all of its subscribers, in the last two
    minutes `late_messages`."""
    rng = np.random.default_rng(5)
    messages = 30 // fan_out
    late = fan_out * np.append(rng.binomial(messages, 0.04, MINUTES - 2), [late_messages] * 2)
    return told_of([(messages, 30, {USUAL_CELL: 30 - int(held), LATE_CELL: int(held)}) for held in late])


def test_deliveries_of_a_message_are_one_event() -> None:
    """Of five messages three are late, at all six subscribers; of thirty with one, as large a part."""
    assert few(3, 6) == []
    assert [one.kind for one in few(18, 1)] == ["delivery_lag"]


def test_nothing_is_told_of_a_topic_as_usual() -> None:
    assert found(0.0, 0.0) == []


def test_late_deliveries_are_told_with_intervals_and_a_test() -> None:
    (lag,) = found(0.7, 0.0)
    assert (lag.kind, lag.place.destination) == ("delivery_lag", "orders")
    assert (lag.effect.ratio_low or 0) <= lag.effect.ratio <= (lag.effect.ratio_high or 0)
    assert lag.effect.ratio > 5
    assert "log-rank" in lag.confidence.test
    assert (lag.confidence.p or 0.0) < 1e-6
    assert "one in 20 longer than" in lag.sentence


def test_what_the_exact_test_does_not_bear_out_is_not_told() -> None:
    (lag,) = found(0.7, 0.0)
    few = replace(lag, confidence=replace(lag.confidence, p=0.0026))
    scene = Scene(Evidence.empty(), NOON, InsightConfig())
    assert clear(scene, [few, lag]) == [lag]


def test_lost_deliveries_are_a_share_of_all_that_were_due() -> None:
    (lost,) = found(0.0, 0.2)
    assert (lost.kind, lost.effect.measure) == ("lost_deliveries", "undelivered_share")
    assert lost.effect.value == pytest.approx(0.2, abs=0.02)
    assert (lost.effect.ratio_low or 0) < lost.effect.ratio < (lost.effect.ratio_high or 0)


def test_what_is_not_delivered_yet_counts_as_late_and_is_not_left_out() -> None:
    """A third is lost and a third late: the median of what came is as before, that of all deliveries is not."""
    told = {one.kind: one for one in found(1 / 3, 1 / 3)}
    assert told["delivery_lag"].effect.ratio > 5
    assert "nothing is known yet" in told["delivery_lag"].sentence
