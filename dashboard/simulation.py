"""The simulator as a child process of `spanlake demo`: command line, environment, and a token of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from collector.config import Config, TenantQuota
from collector.lake.location import Location
from collector.receive.address import reached
from collector.tenants.tokens import TokenFile

DEMO_HISTORY = "35m"
DEMO_TENANT = "demo"
_VARIABLES = "OTEL_EXPORTER_OTLP_"
_CLIENT = (f"{_VARIABLES}CLIENT_CERTIFICATE", f"{_VARIABLES}CLIENT_KEY")


@dataclass(frozen=True)
class Simulation:
    """Simulated traffic: operations a second (None: the simulator's default) and seed.

    `certificate` is a PEM file of the authorities that sign the collector's certificate; None trusts that itself.
    """

    rate: float | None
    seed: int
    certificate: Path | None = None

    def command(self, config: Config, grpc: str, *, with_history: bool) -> list[str]:
        """The child's command line; `grpc` is where the collector listens, as HOST:PORT."""
        scheme = "https" if config.tls.certificate else "http"
        rate = () if self.rate is None else ("--rate", str(self.rate))
        history = ("--history", DEMO_HISTORY) if with_history else ()
        endpoint = ("--endpoint", f"{scheme}://{reached(grpc)}", "--seed", str(self.seed))
        return [sys.executable, "-P", "-m", "sample_data", *endpoint, *rate, *history]

    def environment(self, config: Config, token: str | None, inherited: Mapping[str, str]) -> dict[str, str]:
        """The child's environment. Of the exporters' variables only a client certificate is inherited."""
        found = {
            name: value for name, value in inherited.items() if not name.startswith(_VARIABLES) or name in _CLIENT
        }
        if config.tls.certificate:
            found[f"{_VARIABLES}CERTIFICATE"] = str(self.certificate or config.tls.certificate)
        if token is not None:  # not on the command line, which everybody can read
            found[f"{_VARIABLES}HEADERS"] = f"authorization={quote(f'Bearer {token}')}"
        return found


@contextmanager
def temporary_token(location: Location) -> Iterator[str]:
    """A token of DEMO_TENANT for as long as the block runs. Raises OperatorError."""
    file = TokenFile(location.root)
    text, token = file.add(DEMO_TENANT, TenantQuota())
    try:
        yield text
    finally:
        file.revoke(token.id)
