"""Health of operations: a window against the one before it, from the rollups alone.

Which spans count: `Scope.kinds` empty takes all kinds, so an operation that is seen by its client and by its
server counts twice. `Scope(kinds=(INGRESS,))` counts each operation once, where it is served:

- spans of kind `server`, `consumer` and `producer`;
- where a tenant has none of these for a component, its `client` spans of that component (a system that is only
  seen by its clients, such as a cache behind an instrumented client library);
- where a tenant has none of all these, its `internal` and `unspecified` spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from analytics.window import Window
from collector.lake.lake import Reader

INGRESS = "ingress"
DIMENSIONS = ("region", "tenant", "service_name", "component", "operation", "kind")


@dataclass(frozen=True)
class Scope:
    """Which rollup rows take part: values of each dimension, empty takes all. `kinds=(INGRESS,)`: see the module."""

    regions: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    operations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Freshness:
    """How new the rollups are.

    `latest_span`: the end of the newest minute that holds a rolled up span, None without any (aware UTC).
    `spans`: spans in the rollups. `rollup_lag_seconds`: age of the oldest span commit that is not rolled up yet,
    0 where all are, None where there is nothing to roll up.
    """

    latest_span: datetime | None
    spans: int
    rollup_lag_seconds: float | None


def health_rows(
    reader: Reader,
    window: Window,
    scope: Scope,
    by: Sequence[str] = ("region",),
    sparkline_points: int = 30,
) -> pl.DataFrame:
    """One row for each value of `by` (one or more of DIMENSIONS) that has spans in `window` or `window.previous()`.

    Columns: *by, count, rate_per_second, error_rate, p50_ns, p95_ns, p99_ns, hit_ratio (null without lookups),
    bytes, unknown_weight_share, baseline_count, baseline_rate_per_second, baseline_error_rate, baseline_p50_ns,
    baseline_p95_ns, baseline_p99_ns, baseline_hit_ratio, change, change_in ('rate', 'error_rate', 'p95' or
    'hit_ratio'; null where nothing moved), change_text, sparkline (List[Float64], spans per second of each step),
    sparkline_p95_ns (List[Float64]). Ordered by change, largest first; what went silent has rate 0.
    Raises ValueError for an unknown dimension.
    """
    raise NotImplementedError


def health_series(
    reader: Reader, window: Window, scope: Scope, by: str | None = None, points: int = 60
) -> pl.DataFrame:
    """At most `points` steps of `window`, for each value of `by` or for all spans together.

    Columns: time (Datetime, start of the step), <by> (where given), count, rate_per_second, error_rate, p50_ns,
    p95_ns, p99_ns, hit_ratio. Steps without spans are there with count 0 and null ratios and quantiles.
    Raises ValueError for an unknown dimension.
    """
    raise NotImplementedError


def choices(reader: Reader, window: Window) -> dict[str, list[str]]:
    """The values of each of DIMENSIONS in `window` and the one before it, most spans first."""
    raise NotImplementedError


def freshness(reader: Reader) -> Freshness:
    """How new the rollups are, and how many spans they hold."""
    raise NotImplementedError
