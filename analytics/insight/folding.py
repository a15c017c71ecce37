"""Causes over symptoms: what one cause explains is told once, with it.

Only changes of state are causes: a version, an instance, a tenant's traffic, a cache that forgets. Latency and errors
explain nothing; they are explained, by what began in the same place at about the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from analytics.insight.finding import Finding

SYMPTOMS = frozenset(
    {"latency", "errors", "region_slow", "region_errors", "slo_burn", "blast_radius", "mix_shift", "forecast"}
)
EXPLAINS: dict[str, frozenset[str]] = {
    "deploy": SYMPTOMS
    | {"instance", "retry_storm", "traffic_surge", "exhaustion", "hit_ratio", "noisy_neighbour", "deploy"},
    "hot_key": SYMPTOMS | {"instance", "burst", "hit_ratio", "noisy_neighbour", "traffic_surge", "exhaustion"},
    "noisy_neighbour": SYMPTOMS | {"instance", "burst", "exhaustion", "traffic_surge", "delivery_lag"},
    "exhaustion": SYMPTOMS | {"instance"},
    "instance": SYMPTOMS,
    "retry_storm": SYMPTOMS | {"traffic_surge", "burst", "hit_ratio", "instance", "retry_storm"},
    "hit_ratio": frozenset({"latency", "slo_burn", "blast_radius", "traffic_surge", "mix_shift"}),
    "clock_skew": frozenset({"delivery_lag", "instance", "mix_shift"}),
    "region_slow": frozenset(
        {"latency", "slo_burn", "blast_radius", "mix_shift", "errors", "region_errors", "delivery_lag"}
    ),
    "lost_deliveries": frozenset({"errors", "traffic_drop", "delivery_lag", "slo_burn", "blast_radius"}),
    "delivery_lag": frozenset({"latency", "slo_burn", "traffic_drop", "mix_shift", "instance", "deploy"}),
    "mix_shift": frozenset({"burst", "traffic_drop", "traffic_surge", "mix_shift"}),
    "burst": frozenset(
        {"latency", "errors", "instance", "slo_burn", "blast_radius", "hit_ratio", "traffic_surge", "delivery_lag",
         "lost_deliveries"}
    ),
    "region_errors": frozenset(
        {"errors", "slo_burn", "blast_radius", "traffic_drop", "latency", "region_slow", "mix_shift"}
    ),
    "errors": frozenset({"slo_burn", "blast_radius", "latency"}),
    "latency": frozenset({"slo_burn", "blast_radius", "mix_shift"}),
    "slo_burn": frozenset({"blast_radius"}),
}  # fmt: skip
"""What each kind explains, where place and time agree. Order of precedence: as here."""

_PRECEDENCE = {kind: position for position, kind in enumerate(EXPLAINS)}
_BEFORE_MAX = timedelta(minutes=4)


@dataclass(frozen=True)
class _Node:
    finding: Finding
    symptoms: tuple[Finding, ...] = ()


def fold(found: list[Finding]) -> list[Finding]:
    """Findings with those that another explains folded into it, as phrases of `symptoms`; ranked by score."""
    ordered = sorted(_merged(found), key=lambda one: (_precedence(one), -one.score))
    causes = _causes(ordered)
    told = [
        _with_symptoms(_Node(one, tuple(ordered[i] for i, its in enumerate(causes) if its == index != i)))
        for index, one in enumerate(ordered)
        if causes[index] == index
    ]
    return sorted(told, key=lambda one: -one.score)


def _causes(ordered: list[Finding]) -> list[int]:
    """For each finding the first cause behind it, by position: what explains it, what explains that, and so on; itself
    where nothing does. Of two that explain each other, the first is the cause."""
    by = list(range(len(ordered)))
    for index, symptom in enumerate(ordered):
        for other, cause in enumerate(ordered):
            is_cause = other != index and explains(cause, symptom) and (other < index or not explains(symptom, cause))
            if is_cause and _first(by, other) != index:
                by[index] = other
                break
    return [_first(by, index) for index in range(len(by))]


def _first(by: list[int], index: int) -> int:
    while by[index] != index:
        index = by[index]
    return index


def _precedence(finding: Finding) -> int:
    return _PRECEDENCE.get(finding.kind, len(_PRECEDENCE))


def explains(cause: Finding, symptom: Finding) -> bool:
    """Whether a cause is of a kind that brings such a symptom, in the same region, and began not after it."""
    if symptom.kind not in EXPLAINS.get(cause.kind, frozenset()):
        return False
    if None not in (cause.region, symptom.region) and cause.region != symptom.region:
        return False
    return cause.since <= symptom.since + _BEFORE_MAX and _PARTICULAR.get(cause.kind, _any)(cause, symptom)


def _any(_cause: Finding, _symptom: Finding) -> bool:
    return True


def _of_its_tenant(cause: Finding, symptom: Finding) -> bool:
    return symptom.tenant_scope in (None, cause.tenant_scope)


def _shifted(cause: Finding, symptom: Finding) -> bool:
    """Whether a shift of the mix may bring it: of tenants, a burst of one that gains, a drop of one that loses."""
    gaining = {text.removeprefix("tenant=") for text in cause.suspects}
    if symptom.tenant_scope is None:
        return True
    return symptom.tenant_scope in (gaining if symptom.kind == "burst" else set(cause.tenants) - gaining)


def _of_one(cause: Finding, symptom: Finding) -> bool:
    """Whether late deliveries of a tenant are all that is wrong with a host or a version: it hurts nobody else."""
    if symptom.kind not in ("instance", "deploy"):
        return True
    return cause.tenant_scope is not None and {*symptom.tenants} <= {cause.tenant_scope}


def _release_before(cause: Finding, symptom: Finding) -> bool:
    """Whether a release may bring it: of a later release, if that is of the same service, and so brings on what the
    one before began."""
    return symptom.kind != "deploy" or (symptom.service == cause.service and symptom.since > cause.since)


def _by_the_same(cause: Finding, symptom: Finding) -> bool:
    """Whether a hot key may bring it: what is blamed on a tenant must be blamed on the key's."""
    if symptom.kind == "noisy_neighbour":
        return f"tenant={cause.tenant_scope}" in symptom.suspects
    return _of_its_tenant(cause, symptom)


_PARTICULAR: dict[str, Callable[[Finding, Finding], bool]] = {
    "burst": _of_its_tenant, "mix_shift": _shifted, "hot_key": _by_the_same, "delivery_lag": _of_one,
    "deploy": _release_before,
}  # fmt: skip
"""What else must hold for a cause of a kind to explain a symptom."""


def _merged(found: list[Finding]) -> list[Finding]:
    """The same kind in several regions at the same time, at places that agree else, is one finding everywhere."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in found:
        place = finding.place
        key = (
            finding.kind,
            place.service,
            place.operation,
            place.host,
            place.version,
            place.destination,
            finding.tenant_scope,
        )
        groups.setdefault(key, []).append(finding)
    merged = []
    for group in groups.values():
        near = max(one.since for one in group) - min(one.since for one in group) <= _BEFORE_MAX
        if len({one.region for one in group}) >= 3 and near and group[0].kind not in ("burst", "clock_skew", "hot_key"):
            merged.append(_everywhere(group))
        else:
            merged += group
    return merged


def _everywhere(group: list[Finding]) -> Finding:
    top = max(group, key=lambda one: one.score)
    regions = ", ".join(sorted(one.region or "" for one in group))
    tenants = tuple(dict.fromkeys(tenant for one in group for tenant in one.tenants))
    sentence = f"In {len(group)} regions ({regions}) at once; the worst: {top.sentence}"
    return replace(
        top, place=replace(top.place, region=None), tenants=tenants, sentence=sentence, score=top.score + 0.5,
        since=min(one.since for one in group),
    )  # fmt: skip


def _with_symptoms(node: _Node) -> Finding:
    if not node.symptoms:
        return node.finding
    phrases = tuple(dict.fromkeys(f"{one.kind} {one.place.words()}" for one in node.symptoms))
    score = max(node.finding.score, *(one.score for one in node.symptoms)) + 0.1 * min(len(phrases), 5)
    tenants = node.finding.tenants or tuple(dict.fromkeys(t for one in node.symptoms for t in one.tenants))
    exemplars = node.finding.exemplars or next((one.exemplars for one in node.symptoms if one.exemplars), ())
    return replace(node.finding, symptoms=phrases, score=round(score, 3), tenants=tenants, exemplars=exemplars)
