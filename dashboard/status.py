"""`spanlake status`: what the lake holds, how far the jobs are, and who works on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from analytics import jobs
from analytics.rollup import fold, sets
from collector.collect import announced_by
from collector.config import Config
from collector.lake import retention, sampling
from collector.lake.lake import Lake, Reader
from collector.lake.location import locate
from collector.lake.lock import holder
from collector.lake.status import lake_removals, lake_status, spool_bytes, versions
from collector.telemetry.asked import ask_health


def read(config: Config) -> dict[str, Any]:
    """The status of a lake, at one snapshot. Raises OperatorError where there is no lake."""
    location = locate(config.storage)
    with Lake(location, read_only=True) as lake, lake.read() as reader:
        return describe(lake, reader, config)


def _retention(lake: Lake, reader: Reader, config: Config) -> dict[str, Any]:
    """What is kept how long, files that wait for a job before they go, and what went."""
    removed = [asdict(row) for row in lake_removals(reader)]
    for row in removed:
        for key in ("last_removed_at", "newest"):
            row[key] = row[key].isoformat() + "Z"
    return config.retention.model_dump() | {
        "held_files": retention.held(lake, reader, config.retention),
        "removed": removed,
    }


def _sampling(lake: Lake, reader: Reader, config: Config) -> dict[str, Any]:
    """What is sampled, files that wait for a job before, and what was kept of how much."""
    return config.sampling.model_dump() | {
        "held_files": sampling.held(lake, reader, config.sampling),
        "sampled": asdict(sampling.sampled(reader)),
    }


def describe(lake: Lake, reader: Reader, config: Config) -> dict[str, Any]:
    """The status as the JSON form has it; times are ISO 8601 in UTC."""
    location = lake.location
    stored = lake_status(reader)
    collector_pid, jobs_pid = holder(location.collector_lock), holder(location.jobs_lock)
    announced = announced_by(location) if collector_pid is not None else None
    return {
        "data": str(location.root),
        "spans": stored.spans,
        "latest_span": stored.latest_span.isoformat() + "Z" if stored.latest_span else None,
        "snapshot": stored.snapshot_id,
        "collector": {
            "running": collector_pid is not None,
            "pid": collector_pid,
            "grpc": announced.grpc if announced else None,
            "http": announced.http if announced else None,
            "health": ask_health(announced.health) if announced else None,
        },
        "jobs": {
            "running": jobs_pid is not None,
            "pid": jobs_pid,
            "lag": [asdict(lag) for lag in _lags(reader, config)],
        },
        "folded": _folded(reader),
        "retention": _retention(lake, reader, config),
        "sampling": _sampling(lake, reader, config),
        "spool_bytes": spool_bytes(location),
        "tables": [asdict(table) for table in stored.tables],
        "versions": versions() | {"schema": stored.schema_version},
    }


def _lags(reader: Reader, config: Config) -> list[jobs.JobLag]:
    """The lag of the rollups, of each set of dimensions that is not as far, of tables of traces, and of findings."""
    base, *others = jobs.lag(reader, sets.configured(config.analyze))
    traces = [jobs.trace_lag(reader)] if config.analyze.trace_parts else []
    insight = [jobs.insight_lag(reader)] if config.insight.enabled else []
    return [base, *(lag for lag in others if lag.position != base.position), *traces, *insight]


def _folded(reader: Reader) -> list[dict[str, Any]]:
    """For each set of dimensions beyond its bounds: spans folded into `(overflow)`, and at most so many series."""
    names = [name for name, _ in sets.stored(reader)]
    return [{"set": name, "spans": spans, "series_max": series} for name, spans, series in fold.folded(reader, names)]


def as_text(found: dict[str, Any]) -> str:
    """The status for people."""
    collector, running = found["collector"], found["jobs"]
    lines = {
        "data": found["data"],
        "spans": f"{found['spans']:,}, the latest started {found['latest_span'] or 'never'}",
        "collector": f"{_running(collector)}{_addresses(collector)}",
        "health": _health(collector["health"]),
        "jobs": _running(running),
        "spool": _size(found["spool_bytes"]),
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    text = [f"{name:<10} {value}" for name, value in lines.items() if value]
    text += [
        f"  {lag['job']:<22} {lag['spans_behind']:,} spans, {lag['seconds_behind']:.1f} s behind"
        + (", has not run yet" if lag["position"] is None else "")
        for lag in running["lag"]
    ]
    text += [
        f"  {'rollups, ' + folded['set']:<22} {folded['spans']:,} spans of at most {folded['series_max']:,} series "
        "are folded into (overflow): beyond bounds of [analyze]"
        for folded in found["folded"]
    ]
    text += _retention_text(found["retention"])
    text += _sampling_text(found["sampling"])
    text.append(f"{'table':<24} {'files':>8} {'size':>12}")
    text += [f"  {table['name']:<22} {table['files']:>8,} {_size(table['bytes']):>12}" for table in found["tables"]]
    return "\n".join(text)


def _retention_text(kept: dict[str, Any]) -> list[str]:
    units = {
        "spans_days": "spans {:g} days",
        "sampled_spans_days": "sampled spans {:g} days",
        "rollup_minutes_days": "rollups by minute {:g} days",
        "rollup_hours_days": "rollups by hour {:g} days",
        "traces_days": "summaries of traces {:g} days",
        "findings_days": "findings {:g} days",
        "sightings_days": "sightings {:g} days",
    }
    bounds = [text.format(kept[key]) for key, text in units.items() if kept[key]]
    if kept["total_bytes"]:
        bounds.append(f"at most {_size(kept['total_bytes'])} in all")
    text = [f"{'retention':<10} {', '.join(bounds) or 'all is kept'}"]
    if kept["held_files"]:
        text.append(f"  {kept['held_files']:,} files have had their time and wait for a job to read them")
    text += [
        f"  removed {row['rows']:,} rows, {_size(row['bytes'])} of {row['table']} ({row['reason']}), "
        f"the last on {row['last_removed_at'][:19]}Z"
        for row in kept["removed"]
    ]
    return text


def _sampling_text(found: dict[str, Any]) -> list[str]:
    done = found["sampled"]
    if not found["after_days"] and not done["steps"]:
        return []
    text = [f"{'sampling':<10} " + (f"after {found['after_days']:g} days" if found["after_days"] else "off")]
    if found["held_files"]:
        text.append(f"  {found['held_files']:,} files are old enough and wait for a job to read them")
    if done["steps"]:
        kept = done["error_traces"] + done["slow_traces"] + done["rare_traces"] + done["share_traces"]
        text.append(
            f"  kept {done['kept_spans']:,} of {done['spans']:,} spans ({done['kept_spans'] / done['spans']:.1%}), "
            f"{_size(done['kept_bytes'])} of {_size(done['bytes'])}; they stand for {done['kept_weight']:,.0f} "
            f"of {done['weight']:,.0f}"
        )
        text.append(
            f"  kept {kept:,} of {done['traces']:,} traces: {done['error_traces']:,} with errors, "
            f"{done['slow_traces']:,} slow, {done['rare_traces']:,} of rare operations, {done['share_traces']:,} as a "
            "share"
        )
    return text


def _running(role: dict[str, Any]) -> str:
    return f"running, pid {role['pid']}" if role["running"] else "not running"


_HEALTH = {"ok": "ready", "degraded": "ready, but degraded", "unavailable": "not ready"}


def _health(health: dict[str, Any] | None) -> str:
    """'' where no collector runs."""
    if health is None:
        return ""
    problems = "; ".join(f"{problem['part']}: {problem['message']}" for problem in health["problems"])
    status: str = health["status"]
    return _HEALTH.get(status, status) + (f" ({problems})" if problems else "")


def _addresses(collector: dict[str, Any]) -> str:
    return f", OTLP/gRPC {collector['grpc']}, OTLP/HTTP {collector['http']}" if collector["grpc"] else ""


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
