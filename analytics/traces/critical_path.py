"""Where the time of traces goes: exclusive time along the critical path, self time, and what a faster part could save.

The critical path is found as CRISP does (Zhang, Ramanathan, Raj, Parwal, Sherwood, Chabbi: "CRISP: Critical Path
Analysis of Large-Scale Microservice Architectures", USENIX ATC 2022), and Jaeger and Canopy (Kaldor et al., SOSP 2017)
alike: children are clipped to their parent; from a parent's end backwards, the child that finishes last is on the path,
then the one that finishes last before that one starts, and so on; what no such child covers is the parent's exclusive
time. A consumer, which its producer does not wait for, begins a path of its own, and so does a span whose parent is
missing. A child wholly outside its parent (a late task, a skewed clock) is on no path: its parent did not wait for it.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from analytics.traces.additive import WEIGHT, Shape
from analytics.traces.forest import NONE, UNKNOWN_REGION, Bools, Forest, Ints, over_ancestors, reached, sums_by

PLACE = ("region", "tenant", "service_name", "component", "operation", "kind")
CRITICAL_PATH = Shape(
    keys={
        "window_start": pl.Datetime("us"),
        **dict.fromkeys(("root_service_name", "root_operation", *PLACE), pl.String()),
    },
    counts=("spans", "path_spans", "errors"),
    totals=("exclusive_ns", "self_ns", "duration_sum_ns"),
)


def rows(forest: Forest) -> pl.DataFrame:
    """Sums by minute of the path's first span, that span's service and operation, and PLACE; see CRITICAL_PATH.

    `spans`: all spans there, `path_spans`: those on a critical path, `errors`: of these; `exclusive_ns`: time on the
    critical path, `self_ns`: time in no child, `duration_sum_ns`: total duration, of all spans there.
    """
    return CRITICAL_PATH.rows(events(forest, path(forest)).with_columns(pl.lit(1).alias(WEIGHT)))


def events(forest: Forest, measured: pl.DataFrame) -> pl.DataFrame:
    """One event of CRITICAL_PATH a span, without weight; `measured` is `path(forest)`."""
    root = forest.spans.select("start_time", "service_name", "operation")[forest.path_root]
    return forest.spans.select(
        root["start_time"].dt.truncate("1m").cast(pl.Datetime("us")).alias("window_start"),
        root["service_name"].cast(pl.String).alias("root_service_name"),
        root["operation"].cast(pl.String).alias("root_operation"),
        pl.col("region").cast(pl.String).fill_null(UNKNOWN_REGION),
        *(pl.col(name).cast(pl.String) for name in PLACE[1:]),
        pl.lit(1, pl.Int64).alias("spans"),
        measured["is_on_path"].cast(pl.Int64).alias("path_spans"),
        ((pl.col("status") == "error") & measured["is_on_path"]).cast(pl.Int64).alias("errors"),
        measured["exclusive_ns"],
        measured["self_ns"],
        pl.col("duration_ns").alias("duration_sum_ns"),
    )


def path(forest: Forest) -> pl.DataFrame:
    """For each span of `forest.spans`: `is_on_path`, `exclusive_ns` (0 off the path), `self_ns`.

    The exclusive times below a path's first span sum to its duration.
    """
    parent = forest.waited_parent
    start = over_ancestors(parent, forest.start_ns, np.maximum)
    end = over_ancestors(parent, forest.end_ns, np.minimum)
    chosen = _last_finishing(parent, start, end)
    is_on_path = over_ancestors(parent, (chosen | (parent == NONE)).astype(np.int64), np.minimum).astype(bool)
    on_child = np.flatnonzero(is_on_path & (parent != NONE))
    covered = sums_by(parent[on_child], (end - start)[on_child], len(parent))
    return pl.DataFrame(
        {
            "is_on_path": is_on_path,
            "exclusive_ns": np.where(is_on_path, end - start - covered, 0),
            "self_ns": _self_ns(forest),
        }
    )


def what_if(path_rows: pl.DataFrame, by: tuple[str, ...], faster: float) -> pl.DataFrame:
    """By how much the traces get shorter, at most, if all of a place's work took the share `faster` (0 to 1) less.

    `path_rows` are rows of CRITICAL_PATH. Columns: *by, `exclusive_ns`, `saved_ns_max`, and `saved_share_max` of the
    total duration of the paths, in falling order. An upper bound, since another path may become the critical one.
    Raises ValueError unless 0 <= faster <= 1.
    """
    if not 0 <= faster <= 1:
        raise ValueError(f"faster = {faster}: expected a share from 0 to 1, such as 0.5 for half the time")
    total = float(path_rows["exclusive_ns"].cast(pl.Int128).sum())
    found = path_rows.group_by(by).agg(pl.col("exclusive_ns").cast(pl.Int128).sum().cast(pl.Float64))
    saved = pl.col("exclusive_ns") * faster
    return found.with_columns(saved_ns_max=saved, saved_share_max=saved / total if total else pl.lit(0.0)).sort(
        pl.col("saved_ns_max"), *by, descending=[True, *[False] * len(by)]
    )


def _last_finishing(parent: Ints, start: Ints, end: Ints) -> Bools:
    """Which spans are on the path through their parent: its last-finishing child, and those that chain back from it.

    Of children that finish alike the longest counts, and of those that are cut to the same time the last to start.
    """
    child = np.flatnonzero((parent != NONE) & (end > start))
    times, ranks = np.unique(np.concatenate([start[child], end[child]]), return_inverse=True)
    from_rank, to_rank = ranks[: len(child)], ranks[len(child) :]
    order = np.lexsort((-from_rank, to_rank, parent[child]))
    child, from_rank, to_rank = child[order], from_rank[order], to_rank[order]
    of = parent[child] * len(times)
    # Parents are digits above ranks of time: one search finds the last sibling that ends before each child starts.
    before = np.searchsorted(of + to_rank, of + from_rank, side="right") - 1
    is_sibling = (before >= 0) & (of[before] == of)
    is_last = np.diff(of, append=NONE) != 0
    chosen = np.zeros(len(parent), bool)
    chosen[child[reached(is_last, np.where(is_sibling, before, NONE))]] = True
    return chosen


def _self_ns(forest: Forest) -> Ints:
    """Duration of each span less the union of its children's times within it."""
    parent = forest.waited_parent
    duration = forest.end_ns - forest.start_ns
    child = np.flatnonzero(parent != NONE)
    of = parent[child]
    start = np.maximum(forest.start_ns[child], forest.start_ns[of])
    end = np.minimum(forest.end_ns[child], forest.end_ns[of])
    inside = end > start
    of, start, end = of[inside], start[inside], end[inside]
    order = np.lexsort((start, of))
    of, start, end = of[order], start[order], end[order]
    times, ranks = np.unique(np.concatenate([start, end]), return_inverse=True)
    keys = of * len(times) + ranks[len(start) :]
    covered_until = times[np.maximum.accumulate(keys) % max(len(times), 1)]
    is_first = np.diff(of, prepend=NONE) != 0
    uncovered = np.where(is_first, start, np.maximum(start, np.roll(covered_until, 1)))
    return duration - sums_by(of, np.maximum(end - uncovered, 0), len(parent))
