"""Commands on what is stored: maintain, export. Imports wait until a command runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from collector.cli import config_option, ctrl_c, data_option, opened, run_interruptibly

if TYPE_CHECKING:
    from collector.config import Config
    from collector.exporting import Selection
    from collector.lake.upkeep import Upkeep

_MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"]
_FORMS = [form + end for form in _MOMENTS for end in ("", "Z", "%z")]


@click.command()
@data_option
@config_option
def maintain(data: str | None, config_file: str | None) -> None:
    """Merge small files, sample old spans, apply the retention and clean up, now.

    A running collector does the same by itself, beside which this is safe; a folder without one may need it. Prints
    what was done as JSON. Removed files leave the disk once no reader can be on them, about 70 minutes later: by the
    collector, or by this command run again.
    """
    from collector.settings import load

    done = _maintain(load(config_file, {"storage": {"data": data}}))
    click.echo(json.dumps(asdict(done), indent=2))


def _maintain(config: Config) -> Upkeep:
    from collector.lake import upkeep
    from collector.lake.location import locate

    location = locate(config.storage)
    location.require()
    hidden = not sys.stderr.isatty()
    with ctrl_c() as stopping, click.progressbar(length=1, label="maintain", file=sys.stderr, hidden=hidden) as bar:

        def on_progress(files: int, files_left: int) -> None:
            bar.length = bar.pos + files + files_left
            bar.update(files)

        return upkeep.run(location, config.retention, config.sampling, stopping, on_progress)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@data_option
@click.option("--tenant", help="Only spans of this tenant.")
@click.option("--since", type=click.DateTime(_FORMS), metavar="TIME", help="Only spans that start then or later (UTC).")
@click.option("--until", type=click.DateTime(_FORMS), metavar="TIME", help="Only spans that start before (UTC).")
@click.option("--where", metavar="SQL", help="Only spans for which this SQL condition on table `spans` holds.")
@config_option
def export(
    file: Path,
    data: str | None,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    where: str | None,
    config_file: str | None,
) -> None:
    """Write spans to a file.

    FILE ends in .pb (OTLP protobuf) or .jsonl (OTLP JSON), as the OpenTelemetry Collector's file exporter writes them,
    with .gz or .zst behind it for compression; or in .parquet (table `spans` as it is). `spanlake import` takes the
    first two back, into the same columns. Attributes come out as texts.
    """
    from collector.exporting import Selection
    from collector.settings import load

    selection = Selection(tenant, _utc(since), _utc(until), where)
    spans = _export(load(config_file, {"storage": {"data": data}}), selection, file)
    click.echo(f"{file}: {spans} spans exported")


def _utc(moment: datetime | None) -> datetime | None:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment and moment.tzinfo else moment


def _export(config: Config, selection: Selection, file: Path) -> int:
    from collector import exporting
    from collector.lake.location import locate
    from collector.lake.sandbox import open_sandbox

    to = exporting.target(file)
    bounds = config.query.model_copy(update={"timeout_seconds": exporting.SECONDS_MAX})
    is_shown = sys.stderr.isatty()
    spans = 0
    with ctrl_c() as pressed, open_sandbox(locate(config.storage), bounds) as sandbox, opened(file) as output:
        length = exporting.count(sandbox, selection) if is_shown else 0
        with click.progressbar(length=length, label="export", file=sys.stderr, hidden=not is_shown) as bar:

            def work() -> None:
                nonlocal spans
                spans = exporting.export(sandbox, selection, config.mapping, to, output, bar.update)

            run_interruptibly(work, sandbox.interrupt, pressed)
    return spans


COMMANDS = [maintain, export]
