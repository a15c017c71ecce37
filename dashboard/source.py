"""The lake and the configuration of this process, for every page and every open browser."""

from __future__ import annotations

import os

import streamlit as st

from collector.config import Config
from collector.lake.lake import Lake
from collector.lake.location import locate
from collector.settings import load


def config() -> Config:
    """The configuration as the environment gives it. Raises OperatorError."""
    return load(os.environ.get("SPANLAKE_CONFIG"), {})


def lake(settings: Config) -> Lake | None:
    """The lake, opened read-only once for the process; None where no collector has made one yet.

    Each `read` takes at most query.timeout_seconds: then it raises QueryTimeoutError, which pages show.
    Raises OperatorError where it does not open.
    """
    location = locate(settings.storage)
    try:
        identity = location.catalog.stat().st_ino
    except FileNotFoundError:
        return None
    return _open(settings, str(location.root), identity)


@st.cache_resource(show_spinner=False, max_entries=1, on_release=Lake.close)
def _open(_settings: Config, root: str, identity: int) -> Lake:
    """`identity` tells a lake from another one that was made later in the same folder `root`."""
    query = _settings.query
    return Lake(
        locate(_settings.storage),
        read_only=True,
        memory_bytes_max=query.memory_bytes_max,
        read_seconds_max=query.timeout_seconds,
    )
