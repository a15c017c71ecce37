"""Publishes messages to a NATS subject, a producer span each, its context in the headers. Prints what it counted.

nats_publisher.py NATS_PORT SUBJECT MESSAGES
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind


async def main(port: int, subject: str, messages: int) -> None:
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    tracer = trace.get_tracer("nats_publisher")
    for i in range(messages):
        body = b"m" * (i % 300)
        attributes = {
            "messaging.system": "nats",
            "messaging.destination.name": subject,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.message.body.size": len(body),
        }
        with tracer.start_as_current_span(f"publish {subject}", kind=SpanKind.PRODUCER, attributes=attributes):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            await connection.publish(subject, body, headers=headers)
        await asyncio.sleep(0.004)
    await connection.publish(subject, b"", headers={"end": "yes"})
    await connection.drain()
    print(json.dumps({"published": messages}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
