"""Alerts about findings, sent to a real receiver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from analytics.insight.alerts import Alerts
from analytics.insight.finding import Confidence, Effect, Finding, Kind, Place, Severity, State
from collector.config import AlertsConfig

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class _Receiver(BaseHTTPRequestHandler):
    received: list[tuple[str, Any]]
    answers: list[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.received.append((self.path, body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[_Receiver]]]:
    handler = type("Handler", (_Receiver,), {"received": [], "answers": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def finding(kind: Kind, region: str, state: State = "opened", severity: Severity = "critical", **more: Any) -> Finding:
    return Finding(
        kind, Place(region), severity, 1.0, NOON, NOON, Effect("p95_ns", 2.0, 1.0, 2.0),
        Confidence("t", 0.0, 0.0, 10), f"{kind} in {region}.", state=state, **more,
    )  # fmt: skip


def test_alerts_are_grouped_and_tell_news_alone(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    alerts = Alerts(AlertsConfig(url=f"{url}/hook"))
    alerts.tell(
        [
            finding("errors", "r1", tenant_scope="a"), finding("errors", "r1", tenant_scope="b"),
            finding("errors", "r2", "ongoing"), finding("latency", "r1", "resolved"),
            finding("mix_shift", "r1", severity="info"),
        ],
        NOON,
    )  # fmt: skip
    assert [(path, body["kind"], body["region"], len(body["findings"])) for path, body in handler.received] == [
        ("/hook", "errors", "r1", 2),
        ("/hook", "latency", "r1", 1),
    ]


def test_alertmanager_is_told_each_minute_and_of_the_end(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    alerts = Alerts(AlertsConfig(url=url, format="alertmanager"))
    for minute, state in enumerate(("opened", "ongoing", "resolved")):
        alerts.tell([finding("errors", "r1", state)], NOON + timedelta(minutes=minute))
    sent = [body[0] for path, body in handler.received if path == "/api/v2/alerts"]
    assert [one["labels"]["alertname"] for one in sent] == ["errors"] * 3
    assert len({one["labels"]["identity"] for one in sent}) == 1
    ends = [datetime.fromisoformat(one["endsAt"]) for one in sent]
    assert ends[0] > NOON + timedelta(minutes=2)
    assert ends[2] == NOON + timedelta(minutes=2)


def test_a_silence_keeps_what_it_matches_until_its_end(receiver: tuple[str, type[_Receiver]]) -> None:
    url, handler = receiver
    alerts = Alerts(AlertsConfig(url=url, silences=("kind=errors,region=r1,until=2026-03-01T12:05Z",)))
    for minute in (0, 5):
        alerts.tell([finding("errors", "r1"), finding("errors", "r2")], NOON + timedelta(minutes=minute))
    assert [body["region"] for _, body in handler.received] == ["r2", "r1", "r2"]


def test_what_could_not_be_sent_is_sent_later_and_what_is_refused_is_dropped(
    receiver: tuple[str, type[_Receiver]],
) -> None:
    url, handler = receiver
    alerts = Alerts(AlertsConfig(url=url))
    handler.answers += [503, 503, 503]
    alerts.tell([finding("errors", "r1")], NOON)
    assert (handler.received, alerts.waiting) == ([], 1)
    handler.answers += [429, 200, 400]
    alerts.tell([finding("errors", "r2")], NOON)
    assert [body["region"] for _, body in handler.received] == ["r1"]
    assert alerts.waiting == 0
