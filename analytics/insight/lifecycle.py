"""Findings over time: opened when seen twice in a row, ongoing while seen, resolved when quiet for some minutes.

Two looks in a row guard against what a minute or two bring by chance. A cause that has lasted for LASTING when it is
seen first was too small to be seen in fewer minutes: all of them speak for it, and it is opened at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta

from analytics.insight.finding import Finding, Place
from analytics.insight.folding import explains

SEEN_TO_OPEN = 2
WARM_UP_MINUTES = 4
"""That are looked at before the first one of which is told, for what goes on by then."""
LASTING = timedelta(minutes=3)
_CAUSES = frozenset(
    {"deploy", "noisy_neighbour", "instance", "exhaustion", "retry_storm", "hit_ratio", "delivery_lag",
     "lost_deliveries"}
)  # fmt: skip
"""Kinds that may be opened at once: symptoms wait for what explains them."""
_PLACE = tuple(field.name for field in fields(Place))


@dataclass
class _Track:
    finding: Finding
    seen: int
    last_seen: datetime
    opened: bool = False


class Tracker:
    """Keeps identity over updates. One instance follows one stream of findings; not for several threads."""

    def __init__(self, resolve_minutes: int = 3) -> None:
        self._quiet = timedelta(minutes=resolve_minutes)
        self._tracks: dict[str, _Track] = {}

    def update(self, findings: list[Finding], now: datetime) -> list[Finding]:
        """Take in what was found at `now`; return what is open, most important first, and what was resolved just now.

        A finding is told from the second time in a row on, or once it lasts (`opened`), then `ongoing`; it is kept as
        it was last seen while it pauses, and told once more as `resolved` when it has been quiet for `resolve_minutes`.
        What was seen the time before at a narrower or a wider place, and is not told yet, has been seen.
        """
        current = {finding.identity: finding for finding in reversed(findings)}
        gone = [one for identity, one in self._tracks.items() if identity not in current and not one.opened]
        for identity, finding in current.items():
            self._see(identity, finding, now, gone)
        told = [one for identity in list(self._tracks) if (one := self._tell(identity, identity in current, now))]
        return sorted(told, key=lambda finding: (finding.state == "resolved", -finding.score))

    def _see(self, identity: str, finding: Finding, now: datetime, gone: list[_Track]) -> None:
        track = self._tracks.get(identity)
        if track is None:
            before = next((one for one in gone if _same_trouble(one.finding, finding)), None)
            self._tracks[identity] = _Track(finding, 1 if before is None else before.seen + 1, now)
            return
        track.finding = replace(finding, since=min(finding.since, track.finding.since))
        track.seen += 1
        track.last_seen = now

    def _tell(self, identity: str, is_seen: bool, now: datetime) -> Finding | None:
        track = self._tracks[identity]
        if not is_seen and not track.opened:
            del self._tracks[identity]
            return None
        if not is_seen and now - track.last_seen >= self._quiet:
            del self._tracks[identity]
            return replace(track.finding, state="resolved")
        if track.opened:
            return replace(track.finding, state="ongoing")
        lasts = track.finding.kind in _CAUSES and track.last_seen - track.finding.since >= LASTING
        if (track.seen >= SEEN_TO_OPEN or lasts) and not self._is_explained(track):
            track.opened = True
            return replace(track.finding, state="opened")
        return None

    def _is_explained(self, track: _Track) -> bool:
        """Whether something that is open explains it: a symptom that outlives its cause by a minute is no news."""
        others = (other for other in self._tracks.values() if other.opened and other is not track)
        return any(explains(other.finding, track.finding) for other in others)


def _same_trouble(before: Finding, now: Finding) -> bool:
    """Whether one tells of a part of the other's place: of the same kind, and what both name is the same."""
    if before.kind != now.kind:
        return False
    pairs = [(getattr(before.place, name), getattr(now.place, name)) for name in _PLACE]
    return all(None in pair or pair[0] == pair[1] for pair in (*pairs, (before.tenant_scope, now.tenant_scope)))
