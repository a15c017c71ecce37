"""The command `spanlake`: all commands, each imported only when it runs, and those that start processes."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from collector.cli import certificate_option, config_option, data_option, grpc_option, http_option
from collector.errors import SpanlakeError

_COMMANDS = {
    "up": "dashboard.cli",
    "demo": "dashboard.cli",
    "collect": "collector.cli",
    "analyze": "analytics.cli",
    "dashboard": "dashboard.cli",
    "insights": "analytics.insight.cli",
    "explain": "analytics.insight.cli",
    "compare": "analytics.insight.cli",
    "critical-path": "analytics.insight.cli",
    "baselines": "analytics.insight.cli",
    "sql": "collector.cli",
    "import": "collector.cli",
    "export": "collector.storage_cli",
    "maintain": "collector.storage_cli",
    "status": "dashboard.cli",
    "validate": "collector.cli",
    "tokens": "collector.tenants.cli",
}


class _Spanlake(click.Group):
    """Finds commands by name in the modules that define them; tells errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        here = _COMMANDS[cmd_name] == "dashboard.cli"  # under the name __main__ where it is run by `-m`
        commands: list[click.Command] = COMMANDS if here else import_module(_COMMANDS[cmd_name]).COMMANDS
        return next(command for command in commands if command.name == cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SpanlakeError as error:
            raise click.ClickException(str(error)) from error
        except RuntimeError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # how DuckDB tells of Ctrl-C
                raise click.Abort from error
            raise


@click.group(cls=_Spanlake, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="spanlake")
def main() -> None:
    """Traces of multi-tenant, multi-region services: OTLP in, tables, rollups and health out.

    Every key of the configuration can stand in a TOML file (--config, or SPANLAKE_CONFIG), in a variable
    SPANLAKE_<SECTION>_<KEY>, and for some in a flag; a flag wins over a variable, a variable over the file.

    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """


port_option = click.option("--port", type=int, help="Port of the dashboard; 0 takes a free one.")


@click.command()
@data_option
@grpc_option
@http_option
@port_option
@config_option
def up(data: str | None, grpc: str | None, http: str | None, port: int | None, config_file: str | None) -> None:
    """Run everything: collector, jobs and dashboard.

    Ctrl-C or SIGTERM stops it in good order: what was received is stored and rolled up first.
    """
    from dashboard.stack import Stack

    sys.exit(Stack.load(data, grpc, http, port, config_file).run())


@click.command()
@data_option
@grpc_option
@http_option
@port_option
@config_option
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Mean operations a second, of 3 to 4 spans each."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same traffic.")
@certificate_option
def demo(
    data: str | None,
    grpc: str | None,
    http: str | None,
    port: int | None,
    config_file: str | None,
    rate: float | None,
    seed: int,
    certificate: Path | None,
) -> None:
    """Run everything, with simulated traffic.

    Simulates caches and topics of 48 tenants in 4 regions. A new data folder begins with 35 minutes of history,
    so that there is something to compare with.

    With auth.enabled it makes itself a token of the tenant `demo`, whose all spans are then, and revokes it at the
    end. With TLS, the collector's certificate must name the address that it listens on.
    """
    from dashboard.simulation import Simulation
    from dashboard.stack import Stack

    sys.exit(Stack.load(data, grpc, http, port, config_file).run(Simulation(rate, seed, certificate)))


@click.command("dashboard")
@data_option
@port_option
@config_option
def pages(data: str | None, port: int | None, config_file: str | None) -> None:
    """Serve the pages alone, on a lake that other processes write."""
    from dashboard.stack import Stack

    sys.exit(Stack.load(data, None, None, port, config_file).run_dashboard())


@click.command()
@data_option
@click.option(
    "--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="Form of the answer.",
)  # fmt: skip
@config_option
def status(data: str | None, format_: str, config_file: str | None) -> None:
    """Show what is stored and what runs.

    Also whether the collector is ready, how far the jobs are behind, and files and bytes of each table. Works while
    everything runs, and while nothing does.
    """
    from collector.settings import load
    from dashboard.status import as_text, read

    found = read(load(config_file, {"storage": {"data": data}}))
    click.echo(json.dumps(found, indent=2) if format_ == "json" else as_text(found))


COMMANDS: list[click.Command] = [up, demo, pages, status]

if __name__ == "__main__":
    main()
