"""A cache client: redis-py, instrumented from outside by `opentelemetry-instrument`. Prints what it counted.

redis_client.py REDIS_PORT OPERATIONS SEED
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter

import redis
from opentelemetry import trace


def main(port: int, operations: int, seed: int) -> None:
    rng = random.Random(seed)
    client = redis.Redis(port=port)
    tracer = trace.get_tracer("redis_client")
    counted: Counter[str] = Counter()
    for _ in range(operations):
        key = f"{seed}:{int(rng.paretovariate(1.0)) % 40}"
        choice = rng.random()
        if choice < 0.6:
            with tracer.start_as_current_span("lookup", attributes={"cache.name": "sessions"}) as span:
                hit = client.get(key) is not None
                span.set_attribute("cache.hit", hit)
            counted["GET"] += 1
            counted["hits" if hit else "misses"] += 1
        elif choice < 0.9:
            client.set(key, "v" * rng.randrange(200))
            counted["SET"] += 1
        else:
            client.set(key, "no list")
            counted["SET"] += 1
            try:
                client.lpush(key, "x")
            except redis.ResponseError:
                counted["LPUSH"] += 1
                counted["errors"] += 1
            client.delete(key)
            counted["DEL"] += 1
        time.sleep(0.002)
    print(json.dumps(counted))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
