"""A cache application on redis-py, with no tracing of its own: run it under `opentelemetry-instrument`."""

from __future__ import annotations

import sys

import redis

USERS = 24


def main(port: int) -> None:
    """Fill, read and clear a cache; one command goes to a key of the wrong type and fails."""
    client = redis.Redis(host="127.0.0.1", port=port)
    for user in range(USERS):
        if client.get(f"profile:{user % 8}") is None:
            client.set(f"profile:{user % 8}", "x" * (100 + 40 * user), ex=60)
    client.mget([f"profile:{user}" for user in range(12)])
    with client.pipeline(transaction=True) as pipeline:
        pipeline.incr("visits")
        pipeline.expire("visits", 60)
        pipeline.execute()
    try:
        client.lpush("visits", "not a list")
    except redis.ResponseError as error:
        print(f"as intended: {error}", file=sys.stderr)
    client.delete("profile:0", "profile:1")
    client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
