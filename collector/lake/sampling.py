"""Sampling at rest: of old spans whole traces are kept, the others go.

What is kept of a bite of files is written to a file of table `sampled_spans`; then one transaction registers that and
drops the bite's files, as retention does. Table `spans` is never rewritten, so no job sees a span again or misses
one: rollups stay those of all spans. A process that is killed leaves a file that no snapshot refers to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from collector.config import SamplingConfig
from collector.lake import maintain, retention
from collector.lake.decisions import HOUR_NS, Decided, decide
from collector.lake.lake import Lake, Reader, Transaction
from collector.lake.retention import DAY_NS, SAMPLED, SPANS, DataFile

SPANS_PER_BITE_MAX = 500_000
STEPS_KEPT_DAYS = 90


@dataclass(frozen=True)
class Sampled:
    """What was sampled, in sums: spans, their weights, traces and bytes before, and what was kept of them."""

    steps: int = 0
    files: int = 0
    spans: int = 0
    kept_spans: int = 0
    weight: float = 0.0
    kept_weight: float = 0.0
    traces: int = 0
    error_traces: int = 0
    slow_traces: int = 0
    rare_traces: int = 0
    share_traces: int = 0
    bytes: int = 0
    kept_bytes: int = 0


_SUMS_SQL = f"""
SELECT count(*), {", ".join(f"sum({name})" for name in list(Sampled.__dataclass_fields__)[1:])}
FROM samplings WHERE step > ?
"""


@dataclass(frozen=True)
class _Bite:
    """Files that are sampled in one transaction, after that of number `step`."""

    step: int
    files: list[DataFile]


def due(lake: Lake, config: SamplingConfig, now: float | None = None) -> list[DataFile]:
    """The files of spans that are to be sampled now (a Unix time in seconds), the oldest first. Raises duckdb.Error."""
    if not config.after_days:
        return []
    with lake.read() as reader:
        return _due(lake, reader, config, now)


def held(lake: Lake, reader: Reader, config: SamplingConfig) -> int:
    """How many files would be sampled now, if a job had read them."""
    if not config.after_days:
        return 0
    old = _old(retention.live_files(reader, lake.location.files), config, time.time_ns())
    return len(old) - len(_due(lake, reader, config, None))


def apply(
    lake: Lake,
    config: SamplingConfig,
    now: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Sampled:
    """Sample what is due, bite by bite, and merge what was kept; `on_progress(files, files_left)` after each bite.

    `now` is a Unix time in seconds. Safe beside all other writers and readers. Raises duckdb.Error and OSError.
    """
    if not config.after_days:
        return Sampled()
    with lake.read() as reader:
        first = _last_step(reader)
    while not stopped() and (bite := _next_bite(lake, config, now)):
        if _sample(lake, bite, config, now):
            on_progress(len(bite.files), len(due(lake, config, now)))
    while not stopped() and maintain.merge_once(lake, SAMPLED):
        continue
    with lake.read() as reader:
        return sampled(reader, first)


def sampled(reader: Reader, after_step: int = 0) -> Sampled:
    """The sums of what was sampled, in the last STEPS_KEPT_DAYS days."""
    if not reader.has("samplings"):
        return Sampled()  # written by a release that did not sample
    steps, *sums = reader.row(_SUMS_SQL, [after_step])
    if not steps:
        return Sampled()
    kinds: list[type] = [type(field.default) for field in fields(Sampled)[1:]]
    return Sampled(steps, *(kind(value) for kind, value in zip(kinds, sums, strict=True)))


def _due(lake: Lake, reader: Reader, config: SamplingConfig, now: float | None) -> list[DataFile]:
    now_ns = time.time_ns() if now is None else int(now * 10**9)
    read_upto = retention.read_upto(reader)
    files = _old(retention.live_files(reader, lake.location.files), config, now_ns)
    return [file for file in files if retention.is_read(file, read_upto)]


def _old(files: Sequence[DataFile], config: SamplingConfig, now_ns: int) -> list[DataFile]:
    """Those of spans that are old enough, with all that may come late to their traces. The oldest first."""
    limit_ns = now_ns - int(config.after_days * DAY_NS) - int(config.late_hours * HOUR_NS)
    old = [file for file in files if file.table == SPANS and file.newest_ns is not None and file.newest_ns < limit_ns]
    return sorted(old, key=lambda file: file.newest_ns or 0)


def _next_bite(lake: Lake, config: SamplingConfig, now: float | None) -> _Bite | None:
    with lake.read() as reader:
        files, step = _due(lake, reader, config, now), _last_step(reader)
    chosen: list[DataFile] = []
    for file in files[: retention.FILES_PER_COMMIT]:
        if chosen and sum(f.rows for f in chosen) + file.rows > SPANS_PER_BITE_MAX:
            break
        chosen.append(file)
    return _Bite(step, chosen) if chosen else None


def _last_step(reader: Reader) -> int:
    return int(reader.row("SELECT COALESCE(max(step), 0) FROM samplings")[0])


def _sample(lake: Lake, bite: _Bite, config: SamplingConfig, now: float | None) -> bool:
    """Sample a bite; False where its files were merged, removed or sampled meanwhile."""
    with lake.read() as reader:
        decided = decide(reader, bite.files, config, lake.location.files / "main" / SAMPLED)
    with lake.write() as transaction:
        due_now = {file.path for file in _due(lake, transaction, config, now)}
        if _last_step(transaction) != bite.step or not due_now.issuperset(file.path for file in bite.files):
            if decided.kept_file:
                decided.kept_file.unlink()
            return False
        _commit(transaction, bite, decided)
    return True


def _commit(transaction: Transaction, bite: _Bite, decided: Decided) -> None:
    if decided.kept_file:
        transaction.add_files(SAMPLED, [decided.kept_file])
    retention.delete_files(transaction, SPANS, bite.files)
    _forget(transaction, decided.oldest_ns)
    for table, rows in (("sampling_traces", decided.carried), ("sampling_operations", decided.operations)):
        if rows.num_rows:
            transaction.insert(table, rows)
    transaction.insert("samplings", _row(bite, decided))


def _forget(transaction: Transaction, oldest_ns: int) -> None:
    """Forget what no file that is still to be sampled can need: files go in the order in which they came."""
    transaction.execute("DELETE FROM sampling_traces WHERE until < make_timestamp_ns(?)", [oldest_ns])
    transaction.execute(
        "DELETE FROM sampling_operations WHERE day < make_timestamp_ns(?)::DATE - INTERVAL 1 DAY", [oldest_ns]
    )
    transaction.execute(f"DELETE FROM samplings WHERE sampled_at < ago('{STEPS_KEPT_DAYS} days')")


def _row(bite: _Bite, decided: Decided) -> pa.Table:
    newest_ns = max(file.newest_ns or 0 for file in bite.files)
    sums = {name: getattr(decided, name) for name in Sampled.__dataclass_fields__ if hasattr(decided, name)}
    found: dict[str, Any] = sums | {
        "step": bite.step + 1,
        "sampled_at": datetime.now(UTC).replace(tzinfo=None),
        "files": len(bite.files),
        "bytes": sum(file.size_bytes for file in bite.files),
        "kept_bytes": decided.kept_file.stat().st_size if decided.kept_file else 0,
        "newest": datetime.fromtimestamp(newest_ns / 1e9, UTC).replace(tzinfo=None),
    }
    return pa.Table.from_pylist([found])
