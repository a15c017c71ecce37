"""TLS and mTLS of both servers with real exporters; certificates that change; files that cannot be used."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import trustme
import uvloop
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from collector.config import CollectorConfig, TlsConfig
from collector.errors import OperatorError
from collector.pipeline import Accepted, TraceRequest
from collector.receive.servers import Endpoints, Servers
from collector.receive.tls import Certificates
from collector.settings import resolve
from dashboard.cli import main as spanlake

PROTOCOLS = ["grpc", "http"]
REFUSED_SECONDS = 0.5
"""After which an exporter that is not let in gives up."""
CA, OTHER_CA = trustme.CA(), trustme.CA()


@dataclass
class Recorder:
    """A sink that accepts everything."""

    requests: list[TraceRequest] = field(default_factory=list)

    async def accept(self, request: TraceRequest) -> Accepted:
        self.requests.append(request)
        return Accepted()


@dataclass
class Files:
    """The PEM files of one server, and of a client that trusts `trusts`."""

    folder: Path

    def write_server(self, ca: trustme.CA) -> TlsConfig:
        leaf = ca.issue_cert("127.0.0.1")
        self.replace("server.pem", b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.replace("server.key", leaf.private_key_pem.bytes())
        return TlsConfig(certificate=self.path("server.pem"), key=self.path("server.key"))

    def write_client(self, ca: trustme.CA) -> None:
        leaf = ca.issue_cert("client@spanlake")
        self.replace("client.pem", b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.replace("client.key", leaf.private_key_pem.bytes())

    def replace(self, name: str, content: bytes) -> str:
        part = self.folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(self.folder / name)
        return self.path(name)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def client_files(self) -> tuple[bytes, bytes]:
        return (self.folder / "client.key").read_bytes(), (self.folder / "client.pem").read_bytes()


@pytest.fixture(autouse=True)
def _no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that would win over the certificates that an HTTP exporter is given."""
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def serving(config: TlsConfig) -> Iterator[tuple[Endpoints, Recorder]]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    recorder = Recorder()

    async def make() -> Servers:
        addresses = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"}
        return Servers(CollectorConfig.model_validate(addresses), recorder, Certificates(config))

    def run(work: object) -> object:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)  # type: ignore[arg-type]  # any coroutine

    servers = run(make())
    try:
        yield run(servers.start()), recorder  # type: ignore[attr-defined, misc]  # `run` gives what was made
    finally:
        run(servers.stop(1))  # type: ignore[attr-defined]  # as above
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def exporter(
    protocol: str, at: Endpoints, files: Files, ca: trustme.CA, with_client: bool = False, timeout: float = 10
) -> SpanExporter:
    root = files.replace("trusted.pem", ca.cert_pem.bytes())
    if protocol == "http":
        client = {"client_certificate_file": files.path("client.pem"), "client_key_file": files.path("client.key")}
        return HttpExporter(
            f"https://{at.http}/v1/traces",
            certificate_file=root,
            timeout=timeout,
            **(client if with_client else {}),
        )
    key, chain = files.client_files() if with_client else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), key, chain)
    options = (("grpc.use_local_subchannel_pool", 1),)
    return GrpcExporter(f"https://{at.grpc}", credentials=credentials, timeout=timeout, channel_options=options)


def send(exporter: SpanExporter) -> bool:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("one")
    span.end()
    try:
        return exporter.export([span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]  # an ended SDK span is readable
    finally:
        exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exporters_speak_tls_with_who_they_trust_only(files: Files, protocol: str) -> None:
    with serving(files.write_server(CA)) as (at, recorder):
        assert send(exporter(protocol, at, files, CA))
        assert [request.transport for request in recorder.requests] == [protocol]
        assert not send(exporter(protocol, at, files, OTHER_CA, timeout=REFUSED_SECONDS))
        assert len(recorder.requests) == 1


def test_plain_text_is_not_answered(files: Files) -> None:
    with serving(files.write_server(CA)) as (at, recorder):
        connection = http.client.HTTPConnection(at.http, timeout=5)
        connection.request("POST", "/v1/traces", b"", {"Content-Type": "application/x-protobuf"})
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            connection.getresponse()
        connection.close()
        assert not send(GrpcExporter(f"http://{at.grpc}", insecure=True, timeout=REFUSED_SECONDS))
        assert recorder.requests == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mtls_lets_in_clients_of_the_authority_only(files: Files, protocol: str) -> None:
    config = files.write_server(CA).model_copy(update={"client_ca": files.replace("ca.pem", CA.cert_pem.bytes())})
    with serving(config) as (at, recorder):
        files.write_client(CA)
        assert not send(exporter(protocol, at, files, CA, timeout=REFUSED_SECONDS))
        assert send(exporter(protocol, at, files, CA, with_client=True))
        files.write_client(OTHER_CA)
        assert not send(exporter(protocol, at, files, CA, with_client=True, timeout=REFUSED_SECONDS))
        assert len(recorder.requests) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_new_certificates_and_authorities_are_taken_without_restart(files: Files, protocol: str) -> None:
    config = files.write_server(CA).model_copy(update={"client_ca": files.replace("ca.pem", CA.cert_pem.bytes())})
    with serving(config) as (at, _):
        files.write_client(CA)
        assert send(exporter(protocol, at, files, CA, with_client=True))
        files.write_server(OTHER_CA)
        assert not send(exporter(protocol, at, files, CA, with_client=True, timeout=REFUSED_SECONDS))
        assert send(exporter(protocol, at, files, OTHER_CA, with_client=True))
        files.replace("ca.pem", OTHER_CA.cert_pem.bytes())
        assert not send(exporter(protocol, at, files, OTHER_CA, with_client=True, timeout=REFUSED_SECONDS))
        files.write_client(OTHER_CA)
        assert send(exporter(protocol, at, files, OTHER_CA, with_client=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", ["half replaced", "removed", "garbage"])
def test_the_former_certificate_stays_until_the_new_one_works(files: Files, protocol: str, fault: str) -> None:
    with serving(files.write_server(CA)) as (at, _):
        fresh = OTHER_CA.issue_cert("127.0.0.1")
        if fault == "removed":
            os.unlink(files.path("server.pem"))
        else:
            files.replace("server.pem", fresh.cert_chain_pems[0].bytes() if fault == "half replaced" else b"garbage")
        assert send(exporter(protocol, at, files, CA))
        files.replace("server.pem", fresh.cert_chain_pems[0].bytes())
        files.replace("server.key", fresh.private_key_pem.bytes())
        assert send(exporter(protocol, at, files, OTHER_CA))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_versions_before_1_2_are_refused(files: Files, protocol: str) -> None:
    def version(at: Endpoints, newest: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=CA.cert_pem.bytes().decode())
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
        context.set_alpn_protocols(["h2"] if protocol == "grpc" else ["http/1.1"])
        address = (at.grpc if protocol == "grpc" else at.http).split(":")
        with (
            socket.create_connection((address[0], int(address[1])), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            return connection.version()

    with serving(files.write_server(CA)) as (at, _):
        assert version(at, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert version(at, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            version(at, ssl.TLSVersion.TLSv1_1)


def encrypted_key(files: Files, config: TlsConfig) -> TlsConfig:
    key = load_pem_private_key(Path(config.key).read_bytes(), None)
    files.replace(
        "server.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    )
    return config


FAULTS: dict[str, tuple[Callable[[Files, TlsConfig], TlsConfig], str]] = {
    "missing": (lambda f, c: c.model_copy(update={"key": f.path("none")}), r"tls\.key = '.*none' cannot be read: No"),
    "no certificate": (lambda f, c: c.model_copy(update={"certificate": c.key}), r"tls\.certificate = .*found none"),
    "no authority": (lambda f, c: c.model_copy(update={"client_ca": c.key}), r"tls\.client_ca = .*found none"),
    "encrypted": (encrypted_key, r"tls\.key = .*unencrypted"),
    "of another": (
        lambda f, c: c.model_copy(
            update={"key": f.replace("other.key", CA.issue_cert("127.0.0.1").private_key_pem.bytes())}
        ),
        r"tls\.certificate = .*tls\.key = .*(?i:mismatch)",
    ),
    "broken": (
        lambda f, c: c.model_copy(
            update={"certificate": f.replace("broken.pem", b"-----BEGIN CERTIFICATE-----\nMII\n")}
        ),
        r"tls\.certificate = .*broken\.pem",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_cannot_be_used_are_named(files: Files, fault: str) -> None:
    break_it, message = FAULTS[fault]
    config = break_it(files, files.write_server(CA))
    with pytest.raises(OperatorError) as raised:
        Certificates(config)
    assert re.search(message, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SPANLAKE_TLS_CERTIFICATE": "a.pem"}, r'tls\.certificate = "a\.pem" .*: expected tls\.key with it'),
        ({"SPANLAKE_TLS_KEY": "a.key"}, r'tls\.key = "a\.key" .*: expected tls\.certificate with it'),
        ({"SPANLAKE_TLS_CLIENT_CA": "ca.pem"}, r"tls\.client_ca = .*: expected tls\.certificate and tls\.key with it"),
        ({"SPANLAKE_TELEMETRY_TRACES_ENDPOINT": "localhost:4317"}, r"telemetry\.traces_endpoint = .*: expected a URL"),
        ({"SPANLAKE_TELEMETRY_TRACES_ENDPOINT": "http://[::1"}, r"telemetry\.traces_endpoint = .*: expected a URL"),
        ({"SPANLAKE_TELEMETRY_METRICS": "8888"}, r"telemetry\.metrics = '8888': expected HOST:PORT"),
        (
            {"SPANLAKE_TELEMETRY_HEALTH": "127.0.0.1:4317"},
            r"collector\.grpc.*telemetry\.health.*two different addresses",
        ),
        ({"SPANLAKE_TELEMETRY_LOG_FORMAT": "xml"}, r"telemetry\.log_format = .*auto, json or text"),
        ({"SPANLAKE_COLLECTOR_CORS_ORIGINS": "app.example"}, r"collector\.cors_origins = .*https://app\.example:8443"),
    ],
)
def test_settings_that_do_not_fit_are_told(environment: dict[str, str], message: str) -> None:
    with pytest.raises(OperatorError) as raised:
        resolve(None, {}, environment)
    assert re.search(message, str(raised.value)), str(raised.value)


def test_validate_reads_the_files(files: Files) -> None:
    config = files.write_server(CA)
    flags = {"SPANLAKE_TLS_CERTIFICATE": config.certificate, "SPANLAKE_TLS_KEY": config.key}
    assert CliRunner(env=flags).invoke(spanlake, ["validate"]).exit_code == 0
    refused = CliRunner(env=flags | {"SPANLAKE_TLS_KEY": files.path("none")}).invoke(spanlake, ["validate"])
    assert refused.exit_code == 1
    assert "tls.key = " in refused.output
