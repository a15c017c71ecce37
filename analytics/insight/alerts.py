"""Findings to a webhook: as generic JSON, or as Alertmanager's API v2 takes alerts.

Findings of the same kind and region go as one message (a group). Generic JSON is sent when something is opened or
resolved; Alertmanager is told each minute, since it takes an alert that is not repeated for resolved. A silence keeps
findings that match it to themselves until its end. What cannot be sent is tried again with the next minute, and at
most KEPT_MAX messages are kept.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any
from urllib.parse import urlparse

from analytics.insight.finding import SEVERITIES, Finding
from collector.config import AlertsConfig
from collector.errors import OperatorError

log = logging.getLogger(__name__)

KEPT_MAX = 100
TRIES = 3
TIMEOUT_SECONDS = 5.0
_PATH = "/api/v2/alerts"
_FIRING = timedelta(minutes=5)
_SILENCE_KEYS = ("kind", "region", "service", "operation", "host", "version", "destination", "tenant")


class Alerts:
    """Sends findings of one stream. Not for several threads."""

    def __init__(self, config: AlertsConfig) -> None:
        """Raises OperatorError for a URL that is none, or a silence that cannot be read."""
        if config.url and urlparse(config.url).scheme not in ("http", "https"):
            raise OperatorError(f"alerts.url = {config.url!r}: expected http:// or https://, or '' for no alerts")
        self._config = config
        self._silences = [_silence(text) for text in config.silences]
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=KEPT_MAX)

    def tell(self, found: list[Finding], minute: datetime) -> None:
        """Send what is due at `minute` (aware), and what could not be sent before. Never raises for the receiver."""
        if not self._config.url:
            return
        due = [one for one in found if self._is_due(one, minute)]
        self._waiting.extend((self._url(), body) for body in self._bodies(due, minute))
        while self._waiting:
            url, body = self._waiting[0]
            if not _sent(url, body):
                return
            self._waiting.popleft()

    @property
    def waiting(self) -> int:
        """Messages that could not be sent so far."""
        return len(self._waiting)

    def _is_due(self, finding: Finding, minute: datetime) -> bool:
        severe = SEVERITIES.index(finding.severity) >= SEVERITIES.index(self._config.severity)
        is_news = finding.state != "ongoing" or self._config.format == "alertmanager"
        return severe and is_news and not any(_matches(silence, finding, minute) for silence in self._silences)

    def _url(self) -> str:
        if self._config.format == "json":
            return self._config.url
        base = self._config.url.rstrip("/")
        return base if base.endswith(_PATH) else base + _PATH

    def _bodies(self, due: list[Finding], minute: datetime) -> Iterator[bytes]:
        ordered = sorted(due, key=lambda one: (one.kind, one.region or ""))
        for (kind, region), group in groupby(ordered, key=lambda one: (one.kind, one.region or "")):
            if self._config.format == "alertmanager":
                yield json.dumps([_alert(one, minute) for one in group]).encode()
            else:
                rows = [_plain(one, minute) for one in group]
                yield json.dumps({"kind": kind, "region": region or None, "findings": rows}).encode()


def _alert(finding: Finding, minute: datetime) -> dict[str, Any]:
    place = {name: value for name, value in vars(finding.place).items() if value is not None}
    tenant = {"tenant": finding.tenant_scope} if finding.tenant_scope else {}
    ends = minute if finding.state == "resolved" else minute + _FIRING
    return {
        "labels": {
            "alertname": finding.kind,
            "severity": finding.severity,
            "identity": finding.identity,
            **place,
            **tenant,
        },
        "annotations": {"summary": finding.sentence, "sql": finding.sql, "exemplars": " ".join(finding.exemplars)},
        "startsAt": finding.since.isoformat(),
        "endsAt": ends.isoformat(),
    }


def _plain(finding: Finding, minute: datetime) -> dict[str, Any]:
    row = finding.as_row(minute)
    return {name: f"{value.isoformat()}Z" if isinstance(value, datetime) else value for name, value in row.items()}


def _silence(text: str) -> dict[str, str]:
    """`kind=burst,tenant=acme,until=2026-03-01T12:00Z` as a table. Raises OperatorError."""
    parts = dict(part.strip().partition("=")[::2] for part in text.split(","))
    unknown = [name for name in parts if name not in (*_SILENCE_KEYS, "until")]
    try:
        is_aware = "until" not in parts or datetime.fromisoformat(parts["until"]).tzinfo is not None
    except ValueError:
        is_aware = False
    if unknown or not all(parts.values()) or not is_aware:
        raise OperatorError(
            f"alerts.silences has {text!r}: expected NAME=VALUE, with commas between, of {', '.join(_SILENCE_KEYS)} "
            "and until (ISO 8601 with an offset), such as kind=burst,tenant=acme,until=2026-03-01T12:00Z"
        )
    return parts


def _matches(silence: dict[str, str], finding: Finding, minute: datetime) -> bool:
    if "until" in silence and minute >= datetime.fromisoformat(silence["until"]):
        return False
    values = {"kind": finding.kind, "tenant": finding.tenant_scope, **vars(finding.place)}
    return all(values[name] == value for name, value in silence.items() if name != "until")


def _sent(url: str, body: bytes) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - the scheme was checked
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310 - the scheme was checked
                return True
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code != 429:
                log.warning("the receiver of alerts refused one with %d: it is dropped", error.code)
                return True
            problem: Exception = error
        except (OSError, http.client.HTTPException) as error:
            problem = error
        if not left:
            log.warning("alerts could not be sent, and will be tried again in a minute: %s", problem)
    return False
