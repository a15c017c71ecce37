"""HOST:PORT as it stands in the configuration."""

from __future__ import annotations

import re

from collector.errors import OperatorError

_HOST_PORT = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+):(\d{1,5})", re.ASCII)


def host_and_port(key: str, address: str) -> tuple[str, int]:
    """The two parts, an IPv6 host without its brackets. `key` names the setting in the OperatorError raised."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match[2]) > 65535:
        raise OperatorError(
            f"{key} = {address!r}: expected HOST:PORT, as 127.0.0.1:4317 or [::1]:4317 (port 0 takes a free one)"
        )
    return match[1].strip("[]"), int(match[2])


def with_port(address: str, port: int) -> str:
    """HOST:PORT with another port."""
    return f"{address.rpartition(':')[0]}:{port}"


def reached(address: str) -> str:
    """HOST:PORT at which this machine reaches a server that listens on `address`, which may be a wildcard."""
    host, _, port = address.rpartition(":")
    loopback = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104 - compared with, not bound
    return f"{loopback.get(host, host)}:{port}"


def cannot_listen(key: str, address: str, cause: Exception) -> OperatorError:
    """What to tell an operator whose address cannot be listened on."""
    return OperatorError(
        f"{key} = {address!r}: cannot listen there ({cause}). Is another process using the port? "
        "Stop it, or set another HOST:PORT (port 0 takes a free one)"
    )
