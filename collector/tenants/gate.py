"""The gate in front of the collector: who sends, and whether there is room in its quota.

The tenant of a span is, in this order,
1. with `auth.enabled`: the tenant of the request's token. X-Scope-OrgID may only repeat it. Attributes are kept
   as attributes and name nobody, so that no client can write into another tenant.
2. the header X-Scope-OrgID (gRPC metadata of the same name);
3. the first attribute of `mapping.tenant` that holds the name of a tenant, on the span or on its resource;
4. `default`.

1, 2 and 4 are decided here, for a request as a whole; 3 where spans are decoded. A request for which neither token
nor header names a tenant is accounted to `default`, whatever its attributes say: anybody could write them.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from collector.config import AuthConfig, Config, QuotasConfig, TenantQuota
from collector.decode.wire import count_spans
from collector.errors import InvalidRequestError, OperatorError, RetryableError
from collector.pipeline import Accepted
from collector.receive.address import host_and_port
from collector.tenants.counters import UNAUTHENTICATED, TenantCounters
from collector.tenants.errors import PermissionDeniedError, UnauthenticatedError
from collector.tenants.names import DEFAULT_TENANT, tenant_named
from collector.tenants.quotas import Quota, Quotas
from collector.tenants.tokens import Token, TokenFile, Tokens

log = logging.getLogger(__name__)

AUTHORIZATION_HEADER = "authorization"
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends a request. `tenant` is None where only attributes can name it; `account` is who pays."""

    tenant: str | None
    name: str
    account: str
    quota: Quota


class _WatchedTokens:
    """The tokens of a file that may change; looks for changes when asked, at most every LOOK_SECONDS."""

    def __init__(self, file: TokenFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._version = self._look()
        self._tokens = Tokens(file.read())
        self._looked_at = clock()
        if not self._tokens:
            log.warning("auth.enabled = true, and there is no token: every request is refused until "
                        "`spanlake tokens add TENANT` makes one")  # fmt: skip

    def current(self) -> Tokens:
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            version = self._look()
            if version != self._version:
                self._version = version
                self._reload()
        return self._tokens

    def _reload(self) -> None:
        try:
            self._tokens = Tokens(self._file.read())
            log.info("the tokens have changed: there are %d", len(self._tokens))
        except OperatorError as error:
            log.warning("the tokens have changed and cannot be read; the former ones stay: %s", error)

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._file.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Gate:
    """Identifies senders, keeps their quotas, counts. To be used in one thread, that of the event loop."""

    def __init__(
        self,
        auth: AuthConfig,
        quotas: QuotasConfig,
        folder: Path,
        counters: TenantCounters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`folder` is the data folder. Raises OperatorError where its tokens are needed and cannot be read."""
        self.counters = counters
        self._tokens = _WatchedTokens(TokenFile(folder), clock) if auth.enabled else None
        self._quotas = Quotas(quotas, clock)

    def identify(self, org_ids: Iterable[str | bytes], authorizations: Iterable[str | bytes]) -> Sender:
        """Who sends a request with these values of X-Scope-OrgID and Authorization.

        Raises UnauthenticatedError, PermissionDeniedError, InvalidRequestError.
        """
        if self._tokens is None:
            tenant = tenant_named(org_ids)
            name = tenant or DEFAULT_TENANT
            return Sender(tenant, name, name, self._quotas.of(name))
        try:
            token = _authenticated(self._tokens.current(), authorizations)
            _check_named(tenant_named(org_ids), token)
        except Exception:
            self.counters.refused(UNAUTHENTICATED, 0, None)
            raise
        account = token.tenant if token.limits == TenantQuota() else f"{token.tenant} {token.id}"
        return Sender(token.tenant, token.tenant, account, self._quotas.of(token.tenant, token.limits))

    def check(self, sender: Sender) -> None:
        """Raise QuotaExceededError while the sender is over its quota."""
        self._quotas.check(sender.account, sender.name, sender.quota)

    def charge(self, sender: Sender, size_bytes: int) -> None:
        """Count the bytes of a request that is taken; negative ones give back what was not."""
        self._quotas.charge(sender.account, sender.quota, size_bytes=size_bytes)

    def refused(self, sender: Sender, message: bytes | None, error: Exception) -> None:
        """Count a request that was told `error`; `message` is it, maybe compressed, None where it was not read."""
        spans = None if message is None or isinstance(error, InvalidRequestError) else count_spans(message)
        if isinstance(error, RetryableError):
            error.refused_spans = spans
        self.counters.refused(sender.name, len(message or b""), spans)

    def settle(self, sender: Sender, size_bytes: int, accepted: Accepted) -> None:
        """Count the spans of a request that is durable."""
        self._quotas.charge(sender.account, sender.quota, spans=accepted.spans)
        self.counters.admitted(sender.name, size_bytes, accepted.spans, accepted.rejected_spans)


def open_gate() -> Gate:
    """One that lets everybody pass, with whatever amount."""
    return Gate(AuthConfig(), QuotasConfig(), Path(), TenantCounters())


def _check_named(named: str | None, token: Token) -> None:
    if named not in (None, token.tenant):
        raise PermissionDeniedError(
            f"the token is of tenant {token.tenant!r}, X-Scope-OrgID names {named!r}: send the header with the "
            "token's tenant, or without"
        )


def _authenticated(tokens: Tokens, authorizations: Iterable[str | bytes]) -> Token:
    values = set(authorizations)
    if not values:
        raise UnauthenticatedError(
            "the request has no token: send the header `Authorization: Bearer TOKEN` (`spanlake tokens add` makes one)"
        )
    value = values.pop()
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    scheme, _, credentials = text.strip().partition(" ")
    token = tokens.find(credentials.strip()) if scheme.lower() == "bearer" and not values else None
    if token is None:
        raise UnauthenticatedError(
            "the token is not valid: expected one header `Authorization: Bearer TOKEN` with a token that "
            "`spanlake tokens add` made and that was not revoked"
        )
    return token


def exposure_warning(config: Config) -> str | None:
    """What to warn of where anybody who reaches the servers can write; None where all is well."""
    open_keys = [
        f"collector.{key} = {address!r}"
        for key, address in (("grpc", config.collector.grpc), ("http", config.collector.http))
        if not _is_loopback(host_and_port(f"collector.{key}", address)[0])
    ]
    if config.auth.enabled or config.tls.client_ca or not open_keys:
        return None
    return (
        f"{' and '.join(open_keys)} can be reached from other machines without authentication: whoever reaches it can "
        "write spans, into any tenant. Set auth.enabled = true and give out tokens (`spanlake tokens add TENANT`), or "
        "listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
