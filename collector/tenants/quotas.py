"""Quotas: a bucket of spans and one of bytes for each tenant, which may go into debt.

A token bucket (J. Turner, "New directions in communications", 1986) fills at the rate of the quota up to the burst. A
request is taken while neither bucket is in debt, whatever its size: so a request larger than the burst passes too, and
the next one waits the longer. Bytes are charged when the request is taken, spans when they were counted: after it was
decoded. Over time no tenant gets more than its rates.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from collector.config import QuotasConfig, TenantQuota
from collector.tenants.errors import QuotaExceededError

BUCKETS_MAX = 10_000
RETRY_AFTER_SECONDS_MIN = 0.1
RETRY_AFTER_SECONDS_MAX = 300.0


@dataclass(frozen=True, slots=True)
class Quota:
    """Spans and bytes per second, 0 where there is no bound, and the seconds of them that can be saved up."""

    spans_per_second: float
    bytes_per_second: float
    burst_seconds: float

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to count."""
        return self.spans_per_second > 0 or self.bytes_per_second > 0


class Bucket:
    """What is left of one rate. `rate` is units per second, 0 for no bound; the clock counts seconds."""

    __slots__ = ("_burst", "_clock", "_level", "_rate", "_since")

    def __init__(self, rate: float, burst_seconds: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = rate * burst_seconds
        self._clock = clock
        self._level = self._burst
        self._since = clock()

    def charge(self, amount: float) -> None:
        """Take out `amount`, or put it back where it is negative. The level may become negative: a debt."""
        if self._rate:
            self._fill()
            self._level = min(self._burst, self._level - amount)

    def debt_seconds(self) -> float:
        """How long until the bucket is out of debt; 0 where it is not in debt."""
        if not self._rate:
            return 0.0
        self._fill()
        return max(0.0, -self._level / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._since) * self._rate)
        self._since = now


class Quotas:
    """The buckets of all tenants, the BUCKETS_MAX that sent last. To be used in one thread."""

    def __init__(self, config: QuotasConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._default = Quota(config.spans_per_second, config.bytes_per_second, config.burst_seconds)
        self._buckets: OrderedDict[tuple[str, Quota], tuple[Bucket, Bucket]] = OrderedDict()

    def of(self, tenant: str, limits: TenantQuota | None = None) -> Quota:
        """The quota of a tenant: each key from `limits`, else [quotas.tenants.NAME], else [quotas]."""
        layers = [limits, self._config.tenants.get(tenant)]
        if not any(layers):
            return self._default

        def first(key: str) -> float:
            given = [value for layer in layers if layer and (value := getattr(layer, key)) is not None]
            return float(given[0] if given else getattr(self._config, key))

        return Quota(first("spans_per_second"), first("bytes_per_second"), first("burst_seconds"))

    def check(self, account: str, tenant: str, quota: Quota) -> None:
        """Raise QuotaExceededError while one of the account's buckets is in debt."""
        if not quota.is_bounded:
            return
        spans, size = self._find(account, quota)
        spans_debt, bytes_debt = spans.debt_seconds(), size.debt_seconds()
        debt = max(spans_debt, bytes_debt)
        if debt > 0:
            what, rate = ("spans", quota.spans_per_second)
            if bytes_debt > spans_debt:
                what, rate = ("bytes", quota.bytes_per_second)
            wait = min(max(debt, RETRY_AFTER_SECONDS_MIN), RETRY_AFTER_SECONDS_MAX)
            raise QuotaExceededError(
                f"tenant {tenant!r} is over its quota of {rate:g} {what} per second: send this request again in "
                f"{wait:.1f} s, or ask for a larger quota ([quotas], or the limits of the token)",
                wait,
            )

    def charge(self, account: str, quota: Quota, *, spans: int = 0, size_bytes: int = 0) -> None:
        """Count spans and bytes; negative ones give back."""
        if quota.is_bounded:
            of_spans, of_bytes = self._find(account, quota)
            of_spans.charge(spans)
            of_bytes.charge(size_bytes)

    def _find(self, account: str, quota: Quota) -> tuple[Bucket, Bucket]:
        key = (account, quota)
        found = self._buckets.get(key)
        if found is None:
            found = self._buckets[key] = (
                Bucket(quota.spans_per_second, quota.burst_seconds, self._clock),
                Bucket(quota.bytes_per_second, quota.burst_seconds, self._clock),
            )
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return found
