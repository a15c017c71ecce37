"""What a page says when it has nothing to show: no lake, no spans yet, or an error."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

import streamlit as st

from collector.config import Config
from collector.errors import SpanlakeError
from collector.receive.address import reached
from dashboard import units

P = ParamSpec("P")
LOG = logging.getLogger(__name__)
MESSAGE_CHARACTERS_MAX = 500


def guarded(render: Callable[P, None]) -> Callable[P, bool]:
    """`render`, with every error shown as a short message; the traceback goes to the log alone.

    What is returned says whether all was drawn.
    """

    @functools.wraps(render)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            render(*args, **kwargs)
        except Exception as error:
            LOG.exception("a page could not be drawn")
            st.error(message(error))
            return False
        return True

    return drawn


def message(error: Exception) -> str:
    """An error in Markdown for a person: what was written for people as it is, any other by its first line."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, SpanlakeError):
        return units.escape_markdown(text[:MESSAGE_CHARACTERS_MAX])
    first = units.escape_markdown(text.splitlines()[0][:MESSAGE_CHARACTERS_MAX])
    return f"**The figures could not be read.** {first}\n\nThe log of the dashboard has the details."


def waiting(headline: str, settings: Config) -> None:
    """Nothing has arrived: how to send spans here."""
    st.subheader(headline, anchor=False)
    st.markdown("Point an OpenTelemetry exporter here; this page shows the first spans by itself.")
    is_tls = bool(settings.tls.certificate)
    found = [
        (title, f"export OTEL_EXPORTER_OTLP_ENDPOINT={url}\nexport OTEL_EXPORTER_OTLP_PROTOCOL={protocol}")
        for title, address, protocol in (
            ("OTLP over HTTP", settings.collector.http, "http/protobuf"),
            ("OTLP over gRPC", settings.collector.grpc, "grpc"),
        )
        if (url := endpoint(address, is_tls=is_tls)) is not None
    ]
    unknown = [
        ("The collector printed its HOST:PORT when it started", "export OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:PORT")
    ]
    for place, (title, lines) in zip(st.columns(2), found or unknown, strict=False):
        with place:
            st.caption(title)
            st.code(lines, language="bash")
    if settings.auth.enabled:
        st.caption("Every request needs a token; `spanlake tokens add TENANT` makes one")
        st.code('export OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20TOKEN"', language="bash")


def endpoint(address: str, *, is_tls: bool = False) -> str | None:
    """HOST:PORT as the URL that an exporter takes; None where the port is chosen at start (0)."""
    if address.endswith(":0"):
        return None
    return f"{'https' if is_tls else 'http'}://{reached(address)}"
