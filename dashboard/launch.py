"""Streamlit in a child process: its command line, its environment, and waiting until it answers."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from collector.config import Config
from collector.errors import OperatorError
from dashboard import theme

APP = Path(__file__).with_name("app.py")
HEALTH_PATH = "/_stcore/health"
_OPTIONS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.runOnSave": "false",
    "server.enableXsrfProtection": "true",
    "server.enableCORS": "true",
    "server.maxUploadSize": "1",
    "browser.gatherUsageStats": "false",
    "client.showErrorDetails": "none",
    "client.showErrorLinks": "false",
    "client.toolbarMode": "viewer",
    "runner.magicEnabled": "false",
    "logger.level": "warning",
    "logger.hideWelcomeMessage": "true",
}


@dataclass(frozen=True)
class Dashboard:
    """A started child process and where it serves, such as `http://127.0.0.1:8501`."""

    process: subprocess.Popen[bytes]
    url: str


def command(config: Config, port: int) -> list[str]:
    """The child's command line; `port` is a real one. Nothing is downloaded and nothing is reported to anybody."""
    host = config.dashboard.host
    options = _OPTIONS | theme.options() | {"server.address": host, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in options.items()]
    if _is_loopback(host):
        # A page of another site must not reach a loopback server by a name that it lets point here.
        flags += [f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", "::1", host)]
    # -P: a file of the current folder must not stand in for a module.
    return [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *flags]


def environment(config: Config, inherited: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: `inherited`, with what of `config` concerns the pages as SPANLAKE_<SECTION>_<KEY>."""
    found = dict(inherited) | {
        "SPANLAKE_STORAGE_DATA": _absolute(config.storage.data),
        "SPANLAKE_COLLECTOR_GRPC": config.collector.grpc,
        "SPANLAKE_COLLECTOR_HTTP": config.collector.http,
    }
    if config.tls.certificate:  # so that the pages can say how to send
        found |= {"SPANLAKE_TLS_CERTIFICATE": config.tls.certificate, "SPANLAKE_TLS_KEY": config.tls.key}
    found["SPANLAKE_AUTH_ENABLED"] = str(config.auth.enabled).lower()
    for name, section in (("QUERY", config.query), ("DASHBOARD", config.dashboard)):
        found |= {f"SPANLAKE_{name}_{key.upper()}": str(value) for key, value in section.model_dump().items()}
    return found


def start(config: Config) -> Dashboard:
    """Start the child; it listens a few seconds later (see `wait_ready`). The caller stops the process.

    Raises OperatorError where host and port cannot be listened on.
    """
    port = claim_port(config.dashboard.host, config.dashboard.port)
    process = subprocess.Popen(command(config, port), env=environment(config, os.environ), stdin=subprocess.DEVNULL)
    return Dashboard(process, url(config, port))


def url(config: Config, port: int) -> str:
    """Where a browser finds the pages."""
    return f"http://{_in_url(config.dashboard.host)}:{port}"


def wait_ready(url: str, timeout_seconds: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return once the pages are served at `url`. Raises OperatorError where `process` ends or the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not answers(url):
        code = None if process is None else process.poll()
        if code is not None:
            raise OperatorError(
                f"the dashboard ended with exit code {code} before it listened at {url}; its own messages are above"
            )
        if time.monotonic() > deadline:
            raise OperatorError(f"the dashboard did not answer at {url} within {timeout_seconds:g} s")
        time.sleep(0.05)


def claim_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises OperatorError where it is taken or `host` is not of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise OperatorError(
            f"dashboard.host = {host!r}, dashboard.port = {port} cannot be listened on: {error.strerror}; expected an "
            "address of this machine and a port that nothing else uses; give another --port (0: any free one)"
        ) from error


def answers(url: str) -> bool:
    """Whether a dashboard serves at `url` now."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", HEALTH_PATH)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _in_url(host: str) -> str:
    # A wildcard address is listened on, not visited.
    visited = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared with, not bound
    return f"[{visited}]" if ":" in visited else visited


def _absolute(data: str) -> str:
    return data if "://" in data else str(Path(data).absolute())
