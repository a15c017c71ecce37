"""All upkeep of a lake at once: merges, sampling, retention and cleaning, as `spanlake maintain` does them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import duckdb

from collector.config import RetentionConfig, SamplingConfig
from collector.errors import OperatorError
from collector.lake import maintain, retention, sampling
from collector.lake.location import Location
from collector.lake.merging import MEMORY_BYTES_MAX, open_for_upkeep
from collector.lake.sampling import Sampled
from collector.lake.tables import COLLECTOR_DEFINITIONS


@dataclass(frozen=True)
class Removed:
    """What retention took from a table: whole files of so many rows and bytes, for their age or the lake's size."""

    table: str
    reason: str
    files: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Upkeep:
    """What was done. `held_files`: had their time, but wait for a job to read them; `files`: live ones of spans."""

    merges: int
    merged_files: int
    sampled: Sampled
    removed: tuple[Removed, ...]
    held_files: int
    orphans: int
    files: int
    bytes: int


def run(
    location: Location,
    kept: RetentionConfig,
    sampling_config: SamplingConfig,
    stopping: threading.Event,
    on_progress: Callable[[int, int], None],
) -> Upkeep:
    """Do all upkeep that is due, or as far as `stopping` lets it; `on_progress(files, files_left)` after each step.

    Safe beside a collector, jobs, readers and itself. Raises OperatorError where the lake does not open,
    or a step fails.
    """
    with open_for_upkeep(location, MEMORY_BYTES_MAX[-1]) as lake:
        try:
            lake.ensure(COLLECTOR_DEFINITIONS)
            maintain.configure(lake)
            merged = []
            while not stopping.is_set() and (files := maintain.merge_once(lake, retention.SPANS)):
                merged.append(files)
                on_progress(files, maintain.due(lake, retention.SPANS).files)
            sampled = sampling.apply(lake, sampling_config, stopped=stopping.is_set, on_progress=on_progress)
            removals = retention.apply(lake, kept, stopped=stopping.is_set)
            on_progress(len(removals), 0)
            orphans = maintain.clean(lake)
            with lake.read() as reader:
                left = [f for f in retention.live_files(reader, location.files) if f.table == retention.SPANS]
                held = retention.held(lake, reader, kept) + sampling.held(lake, reader, sampling_config)
        except (duckdb.Error, OSError) as error:
            raise OperatorError(
                f"the upkeep of storage.data = {str(location.root)!r} failed: {error}; what was done before stays: "
                "mend the cause, then run it again"
            ) from error
    size = sum(file.size_bytes for file in left)
    return Upkeep(len(merged), sum(merged), sampled, _summed(removals), held, orphans, len(left), size)


def _summed(removals: list[retention.Removal]) -> tuple[Removed, ...]:
    found = []
    for (table, reason), group in groupby(sorted(removals, key=retention.key), key=retention.key):
        files = [removal.file for removal in group]
        size = sum(file.size_bytes for file in files)
        found.append(Removed(table, reason, len(files), sum(file.rows for file in files), size))
    return tuple(found)
