"""Whether a finding tells of an incident: the rule, as pure functions.

A finding is told at the right place if nothing contradicts: of region, host, version and destination (for causes that
are releases also the service), what both the finding and the truth name is the same.
It is the incident's **cause** if its kind is one of the incident's causes, it is told at the right place, after the
start and at most GRACE after the end, and names at least one part of what makes the place of this kind (RULES).
It is a **symptom** if its kind is one of the causes or symptoms, it is told at the right place, after the start and at
most AFTERMATH after the end, and of the tenants that both name at least one is the same.
Everything else is a **false** alarm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from sample_data.incidents.truth import Truth

Verdict = Literal["cause", "symptom", "false"]

GRACE = timedelta(minutes=3)
AFTERMATH = timedelta(minutes=8)
_PLACE = ("region", "host", "version", "destination")
_SLOWER = frozenset({"latency", "slo_burn", "blast_radius", "forecast"})
_FAILING = frozenset({"errors", "region_errors", "slo_burn", "blast_radius", "forecast"})
_MORE = frozenset({"burst", "traffic_surge"})


@dataclass(frozen=True, slots=True)
class Rule:
    """Kinds of findings that are the cause, or a symptom, of a kind of incident; `place`: what names its place."""

    causes: frozenset[str]
    symptoms: frozenset[str]
    place: tuple[str, ...]


def _rule(causes: str, symptoms: frozenset[str], place: str) -> Rule:
    return Rule(frozenset(causes.split()), symptoms, tuple(place.split()))


RULES: Mapping[str, Rule] = {
    "noisy_neighbour": _rule("noisy_neighbour", _SLOWER | _MORE | {"hot_key", "errors"}, "host region"),
    "hot_key": _rule("hot_key", _SLOWER | _MORE | {"noisy_neighbour", "hit_ratio"}, "destination"),
    "tenant_burst": _rule("burst traffic_surge", _SLOWER | {"noisy_neighbour", "region_slow"}, "tenants"),
    "retry_storm": _rule("retry_storm", _SLOWER | _FAILING | _MORE | {"region_slow", "traffic_drop"}, "region"),
    "mix_shift": _rule("mix_shift", _MORE | {"traffic_drop"}, "region tenants"),
    "region_slow": _rule("region_slow", _SLOWER | {"delivery_lag"}, "region"),
    "clock_skew": _rule("clock_skew", frozenset(), "host region"),
    "hit_collapse": _rule("hit_ratio", _SLOWER | _MORE, "destination"),
    "subscriber_lag": _rule("delivery_lag", _SLOWER, "destination"),
    "lost_deliveries": _rule("lost_deliveries", frozenset({"traffic_drop"}), "destination"),
    "deploy_errors": _rule("deploy", _FAILING, "version"),
    "deploy_latency": _rule("deploy", _SLOWER, "version"),
    "leak": _rule("exhaustion instance forecast", _SLOWER | _FAILING, "host"),
    "deploy": _rule("", frozenset(), ""),
    "restart": _rule("", frozenset(), ""),
}


class Told(Protocol):
    """What the judge reads of a finding; each part of the place None where it is not confined to one."""

    @property
    def kind(self) -> str: ...
    @property
    def region(self) -> str | None: ...
    @property
    def service(self) -> str | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def version(self) -> str | None: ...
    @property
    def destination(self) -> str | None: ...
    @property
    def tenants(self) -> tuple[str, ...]: ...
    @property
    def suspects(self) -> tuple[str, ...]: ...


def verdict(told: Told, at: datetime, truth: Truth | None) -> Verdict:
    """What a finding told at `at` (aware) is to the incident; without one everything is a false alarm."""
    if truth is None:
        return "false"
    rule = RULES[truth.kind]
    since_start = at.timestamp() - truth.start_second
    since_end = at.timestamp() - truth.end_second
    if since_start <= 0:
        return "false"
    is_cause, is_symptom = told.kind in rule.causes, told.kind in rule.symptoms
    fields = _PLACE + (("service",) if is_cause and "version" in rule.place else ())
    if not (is_cause or is_symptom) or _contradict(told, truth, fields):
        return "false"
    if is_cause and since_end <= GRACE.total_seconds() and any(_same(told, truth, name) for name in rule.place):
        return "cause"
    return "symptom" if since_end <= AFTERMATH.total_seconds() and _share_tenants(told, truth) else "false"


def names_place(told: Told, truth: Truth) -> bool:
    """Whether the finding names the first of what makes up the place of its kind, rightly."""
    return any(_same(told, truth, name) for name in RULES[truth.kind].place[:1])


def names_tenant(told: Told, truth: Truth) -> bool:
    """Whether the finding names the culprit, where there is one, or else only tenants that are hurt (and any)."""
    if truth.culprit is not None:
        return f"tenant={truth.culprit}" in told.suspects or told.tenants == (truth.culprit,)
    if not truth.tenants:
        return True
    return bool(told.tenants) and set(told.tenants) <= set(truth.tenants)


def _contradict(told: Told, truth: Truth, names: tuple[str, ...]) -> bool:
    pairs = ((getattr(told, name), getattr(truth, name)) for name in names)
    return any(mine is not None and its is not None and mine != its for mine, its in pairs)


def _same(told: Told, truth: Truth, name: str) -> bool:
    if name == "tenants":
        return _named_tenants(told) & _involved(truth) != set()
    return getattr(told, name) is not None and getattr(told, name) == getattr(truth, name)


def _share_tenants(told: Told, truth: Truth) -> bool:
    named, involved = _named_tenants(told), _involved(truth)
    return not named or not involved or bool(named & involved)


def _named_tenants(told: Told) -> set[str]:
    suspected = {text.removeprefix("tenant=") for text in told.suspects if text.startswith("tenant=")}
    return suspected | set(told.tenants)


def _involved(truth: Truth) -> set[str]:
    return {*truth.tenants, *([truth.culprit] if truth.culprit else [])}
