"""The commands of insight: insights, explain, compare, critical-path. Imports wait until a command runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from analytics.window import Window
    from collector.config import Config
    from collector.lake.lake import Lake

_data = click.option("--data", metavar="DIR", help="Data folder: catalog, data files and spool.")
_config = click.option("--config", "config_file", metavar="FILE", help="Configuration file (TOML).")
_window = click.option(
    "--window", default="1h", show_default=True, help="How long back: 15m, 1h, 24h, or START/END in ISO 8601."
)
_until = click.option("--until", metavar="TIME", help="End of the window in ISO 8601 (UTC); default: the newest data.")
_format = click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="Form of the answer.",
)


def _as_sql(_context: click.Context, _parameter: click.Parameter, condition: str) -> str:
    from analytics.insight.conditions import as_sql

    return as_sql(condition)


@dataclass(frozen=True)
class _Asked:
    """An open lake and the window that is asked of."""

    lake: Lake
    config: Config
    window: Window


@click.command()
@_window
@_until
@click.option("--region", help="Only what is of this region, or not confined to one.")
@click.option("--tenant", help="Only what hurts this tenant, is about it or suspects it.")
@click.option("--anew", is_flag=True, help="Judge all of the window now, whatever was found when it passed.")
@_format
@_data
@_config
def insights(
    window: str, until: str | None, region: str | None, tenant: str | None, anew: bool, format_: str,
    data: str | None, config_file: str | None,
) -> None:  # fmt: skip
    """Say what is wrong, or was: findings, the most important first.

    Tells what `spanlake analyze` found as the window passed, and judges what it did not: each minute against the hours
    before it. Without history to compare with it says so.
    """
    from analytics.insight.forms import written
    from analytics.insight.looking_back import NoHistoryError, look_back

    with _asked(data, config_file, window, until, of_rollups=True, cache_files=False, judged=not anew) as asked:
        try:
            answer = look_back(asked.lake, asked.window, asked.config.insight, region, tenant, anew=anew)
        except NoHistoryError as error:
            if format_ == "json":
                click.echo("[]")
            click.echo(str(error), err=True)
            return
    if answer.anew and not anew:
        minutes = sum(part.minutes for part in answer.anew)
        click.echo(
            f"{minutes:,} of {asked.window.minutes:,} minutes were judged just now: not yet by `spanlake analyze`, or "
            "by other settings or with fewer spans",
            err=True,
        )
    if answer.late:
        click.echo(f"{answer.late:,} spans came after their minutes were judged; --anew takes them in", err=True)
    click.echo(written(answer.found, asked.window.end, format_))


@contextmanager
def _asked(
    data: str | None, config_file: str | None, window: str, until: str | None, *, of_rollups: bool = False,
    cache_files: bool = True, judged: bool = False,
) -> Iterator[_Asked]:  # fmt: skip
    """`of_rollups`: the answer is of rollups, else of spans. `judged`: up to the newest minute that is judged, where
    that is not long before the newest of all.

    Raises UsageError for a window or time that is none, ClickException where there is nothing to answer of,
    OperatorError where there is no lake.
    """
    from analytics.window import Window
    from collector.lake.lake import Lake
    from collector.lake.location import locate
    from collector.settings import load

    config = load(config_file, {"storage": {"data": data}})
    asked_until = None if until is None else _time(until)
    with Lake(locate(config.storage), read_only=True, cache_files=cache_files) as lake:
        newest = _newest(lake, of_rollups=of_rollups)
        end = asked_until or _newest_end(*newest)
        if judged and until is None:
            end = _judged_end(lake, end)
        try:
            parsed = Window.parse(window, end)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        yield _Asked(lake, config, parsed)


def _time(until: str) -> datetime:
    from datetime import UTC

    try:
        time = datetime.fromisoformat(until)
    except ValueError as error:
        raise click.UsageError(f"--until {until!r}: expected an ISO 8601 time such as 2026-03-01T12:00Z") from error
    return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)).replace(second=0, microsecond=0)


def _newest(lake: Lake, *, of_rollups: bool) -> tuple[datetime, datetime]:
    """The end of the newest minute that has data, and of the newest one that is in the tables as a whole."""
    from datetime import UTC

    from analytics.insight.job import complete
    from analytics.insight.loading import newest, newest_span
    from analytics.jobs import seen_until

    now = datetime.now(UTC)
    with lake.read() as reader:
        rolled_up = newest(reader)
        last = rolled_up if of_rollups else rolled_up or newest_span(reader)
        whole = complete(now, seen_until(reader, now) if rolled_up else now)
    if last is None:
        raise click.ClickException(
            "there are no rollups in the lake yet; expected spans, and `spanlake analyze` running, or run once with "
            "--once, to roll them up"
            if of_rollups
            else "there are no spans in the lake yet; send or import some"
        )
    return last, whole


def _newest_end(last: datetime, whole: datetime) -> datetime:
    """The end of the newest minute that is whole, or of the newest data where that is older than a few minutes."""
    from datetime import UTC, timedelta

    if datetime.now(UTC) - last <= timedelta(minutes=5):
        return whole
    click.echo(f"the newest data is of {last:%Y-%m-%d %H:%M} UTC: looking at the time up to then", err=True)
    return last


def _judged_end(lake: Lake, end: datetime) -> datetime:
    """The end of the newest minute that is judged, if it is little before `end`: to judge one takes as long as many."""
    from datetime import timedelta

    from analytics.insight import marks

    with lake.read() as reader:
        position = reader.position(marks.JOB)
    lag = timedelta(0) if position is None else end - marks.time(position)
    return end - lag if timedelta(0) < lag <= timedelta(minutes=3) else end


@click.command()
@click.option(
    "--where", callback=_as_sql, required=True,
    help="SQL condition on columns of spans, such as \"duration_ns > 50e6\"; short: status=error.",
)  # fmt: skip
@_window
@_until
@_format
@_data
@_config
def explain(
    where: str, window: str, until: str | None, format_: str, data: str | None, config_file: str | None
) -> None:
    """Say what a selection of spans has that the others of the window have not.

    Compares, over all spans, how often each value of each attribute occurs among the selected and the others.
    """
    from analytics.insight.explaining import explain as explained
    from analytics.insight.forms import shown
    from collector.lake.sandbox import open_sandbox

    with (
        _asked(data, config_file, window, until) as asked,
        open_sandbox(asked.lake.location, asked.config.query) as sandbox,
    ):
        found = explained(sandbox, asked.window, where)
    click.echo(shown(found, format_))


@click.command()
@click.option(
    "--a", "first", callback=_as_sql, required=True,
    help="One selection: region=us-east-1, or an SQL condition on columns of spans.",
)  # fmt: skip
@click.option("--b", "second", callback=_as_sql, required=True, help="The other one.")
@_window
@_until
@_format
@_data
@_config
def compare(
    first: str, second: str, window: str, until: str | None, format_: str, data: str | None, config_file: str | None
) -> None:
    """Compare two selections of spans, operation by operation: errors, latency, and what of it is the mix.

    Strata are tenant and operation, so that who is there does not pass for how fast they are.
    """
    from analytics.insight.comparing import compare as compared
    from analytics.insight.forms import shown
    from collector.lake.sandbox import open_sandbox

    with (
        _asked(data, config_file, window, until) as asked,
        open_sandbox(asked.lake.location, asked.config.query) as sandbox,
    ):
        result = compared(sandbox, asked.window, first, second)
    if format_ == "json":
        click.echo(json.dumps(result.as_json(), default=str, indent=2))
    else:
        click.echo(f"{result.sentence}\n\n{shown(result.operations, format_)}")


@click.command("critical-path")
@click.option(
    "--where", callback=_as_sql, default="true", show_default=True,
    help="SQL condition on columns of spans; short: tenant=acme.",
)  # fmt: skip
@_window
@_until
@_format
@_data
@_config
def critical_path(
    where: str, window: str, until: str | None, format_: str, data: str | None, config_file: str | None
) -> None:
    """Say where the time of traces goes: exclusive time on the critical path, by service and operation.

    Of traces that have a span for which the condition holds.
    """
    from analytics.insight.forms import shown
    from analytics.insight.time_spent import time_spent
    from collector.lake.sandbox import open_sandbox

    with (
        _asked(data, config_file, window, until) as asked,
        open_sandbox(asked.lake.location, asked.config.query) as sandbox,
    ):
        found = time_spent(sandbox, asked.window, where)
    click.echo(shown(found, format_))


@click.command()
@click.option(
    "--by", default="region,tenant,service_name,operation", show_default=True, metavar="COLUMNS",
    help="Columns of rollup_1m that make a series, comma-separated.",
)  # fmt: skip
@click.option("--region", help="Only this region.")
@click.option("--tenant", help="Only this tenant's spans.")
@click.option("--all", "every", is_flag=True, help="What is usual too, not only what is not.")
@_window
@_until
@_format
@_data
@_config
def baselines(
    by: str, region: str | None, tenant: str | None, every: bool, window: str, until: str | None, format_: str,
    data: str | None, config_file: str | None,
) -> None:  # fmt: skip
    """Compare every series with the window before, and the same time yesterday, last week and on other days.

    Rate, errors, p95 and hit ratio; the most deviating first. Series with too few days or spans to compare with are
    counted as insufficient history.
    """
    from analytics.change import INSUFFICIENT
    from analytics.insight.forms import shown
    from analytics.insight.seasons import compared

    limits = {name: [value] for name, value in (("region", region), ("tenant", tenant)) if value is not None}
    with _asked(data, config_file, window, until, of_rollups=True) as asked, asked.lake.read() as reader:
        try:
            found = compared(
                reader, asked.window, by.split(","), values=limits, volume_min=asked.config.insight.volume_min
            )
        except ValueError as error:
            raise click.UsageError(f"--by {by}: {error}") from error
    told = found if every else found.filter(~found["verdict"].is_in(["usual", INSUFFICIENT]))
    click.echo(shown(told, format_))
    counts = found["verdict"].value_counts(sort=True).rows()
    click.echo(f"{', '.join(f'{count} {verdict}' for verdict, count in counts) or 'no series'}", err=True)


COMMANDS: list[click.Command] = [insights, explain, compare, critical_path, baselines]
