"""`spanlake collect` that refuses every request twice, retryably: before it is stored, and after.

refusing_collector.py DATA     prints the collector's ready line, and at its end {"refused": N, "answers_lost": N}
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from collector import collect
from collector.config import CollectorConfig, Config, StorageConfig, TelemetryConfig
from collector.errors import OverloadedError, RetryableError
from collector.ingest import Ingest
from collector.pipeline import Accepted, TraceRequest
from collector.spool import digest_of

RETRY_SECONDS = 0.1


def main(data: str) -> None:
    seen: Counter[bytes] = Counter()
    counted: Counter[str] = Counter(refused=0, answers_lost=0)
    accept = Ingest.accept

    async def refuse_twice(ingest: Ingest, request: TraceRequest) -> Accepted:
        digest = digest_of(request)
        attempt = seen[digest]
        seen[digest] += 1
        if attempt == 0:
            counted["refused"] += 1
            raise OverloadedError("injected: not stored", RETRY_SECONDS)
        accepted = await accept(ingest, request)
        if attempt == 1:
            counted["answers_lost"] += 1
            raise RetryableError("injected: stored, and the answer lost", RETRY_SECONDS)
        return accepted

    Ingest.accept = refuse_twice  # type: ignore[method-assign]  # the method is replaced
    config = Config(
        storage=StorageConfig(data=data),
        collector=CollectorConfig(grpc="127.0.0.1:0", http="127.0.0.1:0"),
        telemetry=TelemetryConfig(metrics="", health=""),
    )
    collect.run(config)
    print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
