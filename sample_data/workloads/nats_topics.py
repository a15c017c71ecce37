"""A publisher and subscribers on NATS, traced by hand after the messaging conventions.

No instrumentation of nats-py exists: the trace context travels in message headers, and each consumer span links
to the span that created the message; half of the subscribers' spans are its children as well.
"""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

SUBJECT = "orders"
_tracer = trace.get_tracer("sample_data.workloads.nats_topics", "1")


async def publish(port: int, messages: int) -> None:
    """Send so many messages, each in a `send` span."""
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    for number in range(messages):
        body = b"x" * (64 + 16 * (number % 30))
        with _tracer.start_as_current_span(
            f"publish {SUBJECT}", kind=SpanKind.PRODUCER, attributes=_attributes(number, body, "publish", "send")
        ):
            headers = {"message-number": str(number)}
            propagate.inject(headers)
            await client.publish(SUBJECT, body, headers=headers)
    await client.drain()


async def subscribe(port: int, messages: int, group: str) -> None:
    """Process so many messages, each in a `process` span; every tenth fails. Says `ready` when subscribed."""
    client = await nats.connect(f"nats://127.0.0.1:{port}")
    subscription = await client.subscribe(SUBJECT)
    await client.flush()
    print("ready", flush=True)
    for _ in range(messages):
        await _process(await subscription.next_msg(timeout=10), group)
    await client.drain()


async def _process(message: Msg, group: str) -> None:
    headers = message.headers or {}
    number = int(headers["message-number"])
    producer = propagate.extract(headers, Context())
    attributes = _attributes(number, message.data, "process", "process")
    with _tracer.start_as_current_span(
        f"process {SUBJECT}",
        context=producer if number % 2 else Context(),
        kind=SpanKind.CONSUMER,
        links=[Link(trace.get_current_span(producer).get_span_context())],
        attributes={**attributes, "messaging.consumer.group.name": group},
    ) as span:
        await asyncio.sleep(0.002)
        if number % 10 == 9:
            span.set_attribute("error.type", "HandlerError")
            span.set_status(Status(StatusCode.ERROR, "the handler failed"))


def _attributes(number: int, body: bytes, name: str, kind: str) -> dict[str, str | int]:
    return {
        "messaging.system": "nats",
        "messaging.destination.name": SUBJECT,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.message.id": str(number),
        "messaging.message.body.size": len(body),
        "server.address": "127.0.0.1",
        "tenant.id": "birch-media" if number % 3 else "amber-bank",
    }


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        asyncio.run(publish(int(sys.argv[2]), int(sys.argv[3])))
    else:
        asyncio.run(subscribe(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
