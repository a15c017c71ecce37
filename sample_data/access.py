"""How an endpoint is reached: headers and TLS files, from the variables of the OpenTelemetry specification.

SDK exporters read these variables themselves; this is for the senders without an SDK. Source: OpenTelemetry
Protocol Exporter specification, "Configuration Options".
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from opentelemetry.util.re import parse_env_headers


@dataclass(frozen=True)
class Access:
    """Headers, names in lower case, and paths of PEM files: authorities, client's certificate and key; '' for none."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Access:
        """OTEL_EXPORTER_OTLP_TRACES_<NAME>, else OTEL_EXPORTER_OTLP_<NAME>."""

        def found(name: str) -> str:
            return environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environment.get(
                f"OTEL_EXPORTER_OTLP_{name}", ""
            )

        return cls(
            parse_env_headers(found("HEADERS"), liberal=True),
            found("CERTIFICATE"),
            found("CLIENT_CERTIFICATE"),
            found("CLIENT_KEY"),
        )

    def grpc_credentials(self) -> grpc.ChannelCredentials:
        """For a TLS channel. Raises OSError for a file that cannot be read."""
        files = (self.certificate, self.client_key, self.client_certificate)
        return grpc.ssl_channel_credentials(*(Path(path).read_bytes() if path else None for path in files))

    def ssl_context(self) -> ssl.SSLContext:
        """For an HTTPS connection. Raises OSError (ssl.SSLError is one) for a file that cannot be used."""
        context = ssl.create_default_context(cafile=self.certificate or None)
        # As gRPC does: what is trusted need not sign itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.client_certificate:
            context.load_cert_chain(self.client_certificate, self.client_key or None)
        return context


def access() -> Access:
    """That of this process."""
    return Access.from_environment(os.environ)
