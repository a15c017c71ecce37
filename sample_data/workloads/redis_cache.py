"""A cache application on redis-py, with no tracing of its own: run it under `opentelemetry-instrument`."""

from __future__ import annotations

import sys
from contextlib import suppress

import redis

USERS = 24


def main(port: int, rounds: int) -> None:
    """Fill, read and clear a cache, so many times."""
    client = redis.Redis(host="127.0.0.1", port=port)
    for _ in range(rounds):
        use(client)
    client.close()


def use(client: redis.Redis) -> None:
    """One round; one command goes to a key of the wrong type and fails."""
    for user in range(USERS):
        if client.get(f"profile:{user % 8}") is None:
            client.set(f"profile:{user % 8}", "x" * (100 + 40 * user), ex=60)
    client.mget([f"profile:{user}" for user in range(12)])
    with client.pipeline(transaction=True) as pipeline:
        pipeline.incr("visits")
        pipeline.expire("visits", 60)
        pipeline.execute()
    with suppress(redis.ResponseError):
        client.lpush("visits", "not a list")
    client.delete("profile:0", "profile:1")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
