"""How many connections a server keeps, and how long it waits for them."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

DESCRIPTORS = 65_536


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """Of one server.

    A request must be complete `receive_seconds_max` after its first byte, the first one of a connection after the start
    of that; a connection beyond `connections_max` is closed.
    """

    connections_max: int
    receive_seconds_max: float = 30.0


def default_bounds() -> ConnectionBounds:
    """A quarter of the file descriptors for each of the two servers: the rest is for telemetry and the lake."""
    return ConnectionBounds(max(16, _descriptors() // 4))


def raise_descriptor_limit() -> None:
    """Allow this process DESCRIPTORS open files, or as many as the system lets it: each connection is one.

    What the system gives by default, 1024 as a rule, is meant for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if wanted > _descriptors():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
