"""A finding: what is wrong, where, who is hurt, since when, how much, how sure, and what shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, get_args

import polars as pl

Kind = Literal[
    "noisy_neighbour", "region_slow", "region_errors", "latency", "errors", "traffic_drop", "traffic_surge",
    "hit_ratio", "hot_key", "deploy", "instance", "delivery_lag", "lost_deliveries", "burst", "exhaustion",
    "retry_storm", "clock_skew", "mix_shift", "slo_burn", "blast_radius", "forecast", "headroom",
]  # fmt: skip
State = Literal["opened", "ongoing", "resolved"]
Severity = Literal["info", "warning", "critical"]
KINDS: tuple[str, ...] = get_args(Kind)
INFORMATION: frozenset[str] = frozenset({"headroom"})
"""Kinds that say how things stand, not that something is wrong: no alarms."""
SEVERITIES: tuple[str, ...] = get_args(Severity)

_SHARE = {
    "hurt": pl.Int64(),
    "active": pl.Int64(),
    **dict.fromkeys(("share", "share_low", "share_high"), pl.Float64()),
}
WHO_SCHEMA = pl.Struct(
    {
        "tenants": pl.Struct(_SHARE),
        "spans": pl.Struct(_SHARE),
        "effective_tenants": pl.Float64(),
        "operations": pl.List(pl.Struct({"tenant": pl.String(), **_SHARE})),
    }
)
"""The type of column `who`: a `Reach`."""
FINDINGS_SCHEMA = pl.Schema(
    {
        "minute": pl.Datetime("us"),
        **dict.fromkeys(("identity", "kind", "state", "severity"), pl.String()),
        "score": pl.Float64(),
        **dict.fromkeys(("region", "service", "operation", "host", "version", "destination"), pl.String()),
        "tenant": pl.String(),
        "tenants": pl.List(pl.String()),
        "tenant_count": pl.Int64(),
        "suspects": pl.List(pl.String()),
        "since": pl.Datetime("us"),
        "until": pl.Datetime("us"),
        "measure": pl.String(),
        **dict.fromkeys(("value", "baseline", "ratio", "ratio_low", "ratio_high"), pl.Float64()),
        "test": pl.String(),
        "p": pl.Float64(),
        "p_corrected": pl.Float64(),
        "n": pl.Int64(),
        "unknown_weight_share": pl.Float64(),
        "exemplars": pl.List(pl.String()),
        "symptoms": pl.List(pl.String()),
        "baselines": pl.List(pl.String()),
        "who": WHO_SCHEMA,
        "sql": pl.String(),
        "sentence": pl.String(),
    }
)
"""Columns of table `findings`. `minute`: the end of the data that the row was computed from."""


@dataclass(frozen=True)
class Effect:
    """How much: `value` against `baseline` of `measure` (units in its name), and their ratio with its 95 % interval."""

    measure: str
    value: float
    baseline: float
    ratio: float
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True)
class Confidence:
    """Why it is believed: the test, its p and the one corrected over all that were tested (None for what is no test),
    and n spans behind it. `unknown_weight_share`: the share of spans whose sampling probability is unknown, None where
    it was not counted."""

    test: str
    p: float | None
    p_corrected: float | None
    n: int
    unknown_weight_share: float | None = None


@dataclass(frozen=True)
class Share:
    """How many of the active are hurt, and the share with its 95 % interval (Wilson)."""

    hurt: int
    active: int
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True)
class Reach:
    """Who is hurt: tenants of those active at the place; spans there that are of these tenants, of all; and of each
    such tenant, how many of its operations there (the most hurt tenants first). `effective_tenants`: over how many the
    excess spreads (inverse Simpson index)."""

    tenants: Share
    spans: Share
    effective_tenants: float
    operations: tuple[tuple[str, Share], ...] = ()

    def as_row(self) -> dict[str, Any]:
        """A value of WHO_SCHEMA."""
        return {
            "tenants": vars(self.tenants),
            "spans": vars(self.spans),
            "effective_tenants": self.effective_tenants,
            "operations": [{"tenant": tenant, **vars(share)} for tenant, share in self.operations],
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Reach:
        """Of a value of WHO_SCHEMA."""
        operations = ((one["tenant"], _of(Share, one)) for one in row["operations"])
        tenants, spans = _of(Share, row["tenants"]), _of(Share, row["spans"])
        return cls(tenants, spans, row["effective_tenants"], tuple(operations))


@dataclass(frozen=True)
class Place:
    """Where: each None where the finding is not confined to one."""

    region: str | None = None
    service: str | None = None
    operation: str | None = None
    host: str | None = None
    version: str | None = None
    destination: str | None = None

    def words(self) -> str:
        """`operation get of cache in us-east-1 on host h1`."""
        parts = [f"operation {self.operation}"] if self.operation else []
        parts += [f"{'of ' if parts else ''}{self.service}"] if self.service else []
        parts += [f"version {self.version}"] if self.version else []
        parts += [f"on host {self.host}"] if self.host else []
        parts += [f"for {self.destination}"] if self.destination else []
        parts += [f"in {self.region}"] if self.region else []
        return " ".join(parts) or "everywhere"


@dataclass(frozen=True)
class Finding:
    """One finding; times are aware UTC on whole minutes, `until` is the end of the last minute that shows it.

    `tenants`: those that are hurt, most first. `suspects`: what changed first, as `tenant=acme` or `version=1.4.0`;
    only changes of state (a version, traffic, an instance) stand there, never latency. `symptoms`: what else it
    explains, one phrase each. `score`: its rank; larger is more important.
    """

    kind: Kind
    place: Place
    severity: Severity
    score: float
    since: datetime
    until: datetime
    effect: Effect
    confidence: Confidence
    sentence: str
    tenants: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    symptoms: tuple[str, ...] = ()
    exemplars: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    """How it stands against each baseline it was compared with, a phrase each; what is not known is said so."""
    who: Reach | None = None
    sql: str = ""
    state: State = "opened"
    tenant_scope: str | None = field(default=None)
    """The one tenant that the finding is about, where it is about one: a part of its identity."""

    @property
    def region(self) -> str | None:
        """The region, None where it is not one."""
        return self.place.region

    @property
    def service(self) -> str | None:
        """`service.name`, None where it is not one."""
        return self.place.service

    @property
    def operation(self) -> str | None:
        """The operation, None where it is not one."""
        return self.place.operation

    @property
    def host(self) -> str | None:
        """`host.name`, None where it is not one."""
        return self.place.host

    @property
    def version(self) -> str | None:
        """`service.version`, None where it is not one."""
        return self.place.version

    @property
    def destination(self) -> str | None:
        """Cache or topic, None where it is not one."""
        return self.place.destination

    @property
    def identity(self) -> str:
        """16 hex digits, the same from minute to minute: of the kind, the place and the tenant it is about."""
        place = self.place
        parts = (self.kind, place.region, place.service, place.operation, place.host, place.version)
        text = "\x1f".join(part or "" for part in (*parts, place.destination, self.tenant_scope))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def as_row(self, minute: datetime) -> dict[str, Any]:
        """A row of FINDINGS_SCHEMA."""
        effect, confidence = vars(self.effect), dict(vars(self.confidence))
        confidence["unknown_weight_share"] = self.confidence.unknown_weight_share or 0.0
        return {
            "minute": _naive(minute),
            "identity": self.identity,
            "kind": self.kind,
            "state": self.state,
            "severity": self.severity,
            "score": self.score,
            **vars(self.place),
            "tenant": self.tenant_scope,
            "tenants": list(self.tenants[:TENANTS_KEPT_MAX]),
            "tenant_count": len(self.tenants),
            "suspects": list(self.suspects),
            "since": _naive(self.since),
            "until": _naive(self.until),
            **effect,
            **confidence,
            "exemplars": list(self.exemplars),
            "symptoms": list(self.symptoms),
            "baselines": list(self.baselines),
            "who": None if self.who is None else self.who.as_row(),
            "sql": self.sql,
            "sentence": self.sentence,
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Finding:
        """Of a row of FINDINGS_SCHEMA; `tenants` are those that the row names."""
        lists: dict[str, Any] = {name: tuple(row[name] or ()) for name in _LISTS}
        return cls(
            **{name: row[name] for name in _AS_THEY_ARE},
            **lists,
            place=_of(Place, row),
            since=row["since"].replace(tzinfo=UTC),
            until=row["until"].replace(tzinfo=UTC),
            effect=_of(Effect, row),
            confidence=_of(Confidence, row),
            who=None if row["who"] is None else Reach.of_row(row["who"]),
            tenant_scope=row["tenant"],
        )


_AS_THEY_ARE = ("kind", "state", "severity", "score", "sql", "sentence")
_LISTS = ("tenants", "suspects", "exemplars", "symptoms", "baselines")
_Part = TypeVar("_Part", Share, Place, Effect, Confidence)


def _of(part: type[_Part], row: Mapping[str, Any]) -> _Part:
    return part(**{one.name: row[one.name] for one in fields(part)})


TENANTS_KEPT_MAX = 1000
"""Tenants that a row of `findings` names; `tenant_count` tells how many there are."""


def frame(found: list[Finding], minute: datetime) -> pl.DataFrame:
    """Findings as a frame of FINDINGS_SCHEMA, in their order."""
    rows = [finding.as_row(minute) for finding in found]
    return pl.DataFrame(rows, schema=FINDINGS_SCHEMA).select(FINDINGS_SCHEMA.names())


def _naive(time: datetime) -> datetime:
    return time.replace(tzinfo=None)
