"""How much an operation changed against its baseline: one score, the figure that moved most, and a phrase.

The score is the largest of four, each in doublings (1.0: twice or half as much; 0: nothing moved):

- rate: |log2((n + 20) / (b + 20))| of the spans in window and baseline;
- p95: |log2(p95 / baseline p95)|;
- error_rate: |log2((e + 0.005) / (baseline e + 0.005))|, so 0 to 1 % counts 1.6 and 0 to 0.1 % counts 0.3, times
  k / (k + 20), k being the larger of the two numbers of errors: a handful of them is chance;
- hit_ratio: |log2((m + 0.05) / (baseline m + 0.05))| of the miss ratio m.

The last three are multiplied by v / (v + 50), v being the smaller of the two volumes (for hit_ratio: lookups), and
are 0 where v is below VOLUME_MIN: few spans make no change. Where the baseline has fewer than VOLUME_MIN spans
the score is 0 and the phrase "insufficient history".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

VOLUME_MIN = 30
STEADY_BELOW = 0.2
INSUFFICIENT = "insufficient history"
_RATE_PRIOR = 20
_ERROR_PRIOR = 0.005
_MISS_PRIOR = 0.05
_HALF_TRUST = 50
_ERRORS_HALF_TRUST = 20


@dataclass(frozen=True)
class Figures:
    """The figures of a window that are compared; None where there is none."""

    count: int
    rate_per_second: float
    error_rate: float | None
    p95_ns: float | None
    hit_ratio: float | None
    lookups: int


@dataclass(frozen=True)
class Change:
    """`score` as the module says; `figure`: 'rate', 'error_rate', 'p95', 'hit_ratio', None where nothing moved."""

    score: float
    figure: str | None
    text: str


def change(now: Figures, before: Figures) -> Change:
    """Compare a window with its baseline."""
    if before.count < VOLUME_MIN:
        return Change(0.0, None, INSUFFICIENT)
    scores = _scores(now, before)
    figure = max(scores, key=lambda name: scores[name])
    if scores[figure] == 0:
        return Change(0.0, None, "steady")
    text = "steady" if scores[figure] < STEADY_BELOW else _phrase(figure, now, before)
    return Change(scores[figure], figure, text)


def _scores(now: Figures, before: Figures) -> dict[str, float]:
    trust = _trust(min(now.count, before.count))
    errors = max(now.count * (now.error_rate or 0.0), before.count * (before.error_rate or 0.0))
    chance = errors / (errors + _ERRORS_HALF_TRUST)
    lookups = _trust(min(now.lookups, before.lookups))
    return {
        "rate": abs(math.log2((now.count + _RATE_PRIOR) / (before.count + _RATE_PRIOR))),
        "p95": trust * _doublings(now.p95_ns, before.p95_ns, 1.0),
        "error_rate": trust * chance * _doublings(now.error_rate, before.error_rate, _ERROR_PRIOR),
        "hit_ratio": lookups * _doublings(_misses(now.hit_ratio), _misses(before.hit_ratio), _MISS_PRIOR),
    }


def _trust(volume: int) -> float:
    return volume / (volume + _HALF_TRUST) if volume >= VOLUME_MIN else 0.0


def _doublings(now: float | None, before: float | None, prior: float) -> float:
    return 0.0 if now is None or before is None else abs(math.log2((now + prior) / (before + prior)))


def _misses(hit_ratio: float | None) -> float | None:
    return None if hit_ratio is None else 1 - hit_ratio


def _phrase(figure: str, now: Figures, before: Figures) -> str:
    if figure == "rate":
        return _rate_phrase(now.rate_per_second, before.rate_per_second)
    if figure == "p95":
        return _p95_phrase(now.p95_ns or 0.0, before.p95_ns or 0.0)
    if figure == "error_rate":
        return f"errors {_percent(now.error_rate)} (was {_percent(before.error_rate)})"
    return f"hit ratio {_percent(now.hit_ratio)} (was {_percent(before.hit_ratio)})"


def _rate_phrase(now: float, before: float) -> str:
    if now == 0:
        return f"silent (was {_number(before)}/s)"
    factor, word = (now / before, "higher") if now >= before else (before / now, "lower")
    return f"rate {factor:.1f}x {word} ({_number(now)}/s, was {_number(before)}/s)"


def _p95_phrase(now_ns: float, before_ns: float) -> str:
    slower = now_ns >= before_ns
    high, low = max(now_ns, before_ns), min(now_ns, before_ns)
    word = "slower" if slower else "faster"
    return f"p95 {high / max(low, 1.0):.1f}x {word} ({duration(now_ns)}, was {duration(before_ns)})"


def duration(value_ns: float) -> str:
    """`4.1 ms`: two or three digits and the unit that suits them."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value_ns >= size * 0.9995:
            return f"{_number(value_ns / size)} {unit}"
    return f"{value_ns:.0f} ns"


def _percent(share: float | None) -> str:
    return f"{_number(100 * (share or 0.0))} %"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 or value == 0 else f"{value:.2g}"
