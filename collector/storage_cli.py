"""Commands on what is stored: maintain, export. Imports wait until a command runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from collector.cli import config_option, ctrl_c, data_option

if TYPE_CHECKING:
    from collector.config import Config
    from collector.lake.upkeep import Upkeep


@click.command()
@data_option
@config_option
def maintain(data: str | None, config_file: str | None) -> None:
    """Merge small files, apply the retention and clean up, now.

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

        return upkeep.run(location, config.retention, stopping, on_progress)


COMMANDS = [maintain]
