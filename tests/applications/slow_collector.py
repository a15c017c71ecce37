"""`spanlake collect` whose lake takes its time for every transaction.

slow_collector.py DATA SECONDS_OF_A_COMMIT MEMORY_BYTES_MAX SPOOL_BYTES_MAX     prints the collector's ready line
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from collector import collect
from collector.config import CollectorConfig, Config, StorageConfig, TelemetryConfig
from collector.lake.lake import Lake, Transaction


def main(data: str, commit_seconds: float, memory_bytes_max: int, spool_bytes_max: int) -> None:
    write = Lake.write

    @contextmanager
    def slow(lake: Lake) -> Iterator[Transaction]:
        with write(lake) as transaction:
            yield transaction
            time.sleep(commit_seconds)

    Lake.write = slow  # type: ignore[method-assign,assignment]  # the method is replaced
    config = Config(
        storage=StorageConfig(data=data),
        collector=CollectorConfig(
            grpc="127.0.0.1:0",
            http="127.0.0.1:0",
            memory_bytes_max=memory_bytes_max,
            spool_bytes_max=spool_bytes_max,
            seal_spans_max=2000,
            stop_timeout_seconds=5,
        ),
        telemetry=TelemetryConfig(metrics="127.0.0.1:0", health="127.0.0.1:0"),
    )
    collect.run(config)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
