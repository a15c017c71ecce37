"""Receives messages of a NATS subject, a consumer span each, linked to its producer. Prints what it counted.

nats_subscriber.py NATS_PORT SUBJECT     prints {"subscribed": true} once it is, and its counts at the end
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from opentelemetry import propagate, trace
from opentelemetry.trace import Link, SpanKind


async def main(port: int, subject: str) -> None:
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    subscription = await connection.subscribe(subject)
    await connection.flush()
    print(json.dumps({"subscribed": True}), flush=True)
    tracer = trace.get_tracer("nats_subscriber")
    deliveries = body_bytes = 0
    async for message in subscription.messages:
        headers = message.headers or {}
        if "end" in headers:
            break
        creation = trace.get_current_span(propagate.extract(headers)).get_span_context()
        attributes = {
            "messaging.system": "nats",
            "messaging.destination.name": subject,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.message.body.size": len(message.data),
        }
        with tracer.start_as_current_span(
            f"process {subject}", kind=SpanKind.CONSUMER, links=[Link(creation)], attributes=attributes
        ):
            deliveries += 1
            body_bytes += len(message.data)
    await connection.close()
    print(json.dumps({"deliveries": deliveries, "bytes": body_bytes}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
