"""TLS of both servers from one set of PEM files, read anew when they change.

The files are looked at before each handshake. A new set is used only once it is known to work: until then, and
while a rotation has replaced one file of two, the former one stays. Connections that are open go on as they are.
"""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collector.config import TlsConfig
from collector.errors import OperatorError
from collector.receive.log import log

if TYPE_CHECKING:
    import grpc

Version = tuple[tuple[int, int, int, int] | None, ...]
_READS_MAX = 5


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Certificates that work together, and the version of the files that they were read from."""

    version: Version
    certificate: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Certificates:
    """Server certificate, key and, for mTLS, client authorities. Safe to use from several threads."""

    def __init__(self, config: TlsConfig) -> None:
        """Read the files. Raises OperatorError that names key, file and reason."""
        self._config = config
        self._lock = threading.Lock()
        self._loaded = _load(config)
        self._unusable: Version | None = None

    def ssl_context(self) -> ssl.SSLContext:
        """For a server on asyncio: each handshake gets the newest certificates."""
        context = self._loaded.context

        def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._newest().context

        context.sni_callback = choose
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: each handshake gets the newest certificates. gRPC's own minimum is TLS 1.2."""
        import grpc  # noqa: PLC0415 - `spanlake validate` needs the files, not the server

        def configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
            return grpc.ssl_server_certificate_configuration([(loaded.key, loaded.certificate)], loaded.client_ca)

        given = self._loaded

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            newest = self._newest()
            if newest is given:
                return None
            given = newest
            return configuration(newest)

        return grpc.dynamic_ssl_server_credentials(configuration(given), changed, bool(self._config.client_ca))

    def _newest(self) -> _Loaded:
        with self._lock:
            version = _version(self._config)
            if version not in (self._loaded.version, self._unusable):
                try:
                    self._loaded = _load(self._config)
                    log.info("The TLS files have changed; new connections get them: %s", self._config.certificate)
                except OperatorError as error:
                    self._unusable = version
                    log.error("The TLS files have changed and cannot be used; the former ones stay: %s", error)
            return self._loaded


def _load(config: TlsConfig) -> _Loaded:
    for _ in range(_READS_MAX):
        version = _version(config)
        certificate = _read("certificate", config.certificate, b"-----BEGIN CERTIFICATE-----", "a certificate")
        key = _read("key", config.key, b"PRIVATE KEY-----", "an unencrypted private key")
        client_ca = None
        if config.client_ca:
            client_ca = _read("client_ca", config.client_ca, b"-----BEGIN CERTIFICATE-----", "certificates")
        context = _context(config, client_ca)
        if version == _version(config):
            return _Loaded(version, certificate, key, client_ca, context)
    raise OperatorError(f"tls.certificate = {config.certificate!r}: the files change all the time; try again")


def _read(setting: str, path: str, marker: bytes, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise OperatorError(
            f"tls.{setting} = {path!r} cannot be read: {error.strerror}; expected a PEM file with {what}"
        ) from error
    if marker not in content or b"ENCRYPTED" in content:
        raise OperatorError(f"tls.{setting} = {path!r}: expected a PEM file with {what}; found none in it")
    return content


def _context(config: TlsConfig, client_ca: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.certificate, config.key, password="")
    except (ssl.SSLError, OSError) as error:
        raise OperatorError(
            f"tls.certificate = {config.certificate!r}, tls.key = {config.key!r}: {error}; expected a certificate "
            "and the private key that belongs to it, both PEM"
        ) from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii", "replace"))
        except ssl.SSLError as error:
            raise OperatorError(
                f"tls.client_ca = {config.client_ca!r}: {error}; expected the certificates of authorities, PEM"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _version(config: TlsConfig) -> Version:
    """Changes whenever one of the files does; None for one that cannot be looked at."""
    found: list[tuple[int, int, int, int] | None] = []
    for path in (config.certificate, config.key, config.client_ca):
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)
