"""The pages, in the order of the menu. A further page is one more line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dashboard.health import page as health


@dataclass(frozen=True)
class Entry:
    """A page: what draws it, its title and its path below the root ('' for the first page)."""

    render: Callable[[], None]
    title: str
    path: str


PAGES: tuple[Entry, ...] = (Entry(health.render, "System health", ""),)
