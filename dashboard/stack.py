"""What `spanlake up` runs: collector, jobs and dashboard as processes, and their order at start and stop."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass

import click

from collector.config import Config
from collector.lake.engine import attach_sql
from collector.lake.location import Location, locate
from collector.settings import load
from dashboard import launch
from dashboard.simulation import Simulation, temporary_token
from dashboard.supervise import Supervisor

READY_SECONDS = 60.0
_ENDED_SECONDS = 10.0


@dataclass(frozen=True)
class Stack:
    """The processes of one data folder. `flags` are those of the command line that the collector takes too."""

    config: Config
    location: Location
    flags: tuple[str, ...]

    @classmethod
    def load(
        cls, data: str | None, grpc: str | None, http: str | None, port: int | None, config_file: str | None
    ) -> Stack:
        """From a command line. Raises OperatorError."""
        overrides: dict[str, dict[str, object]] = {
            "storage": {"data": data},
            "collector": {"grpc": grpc, "http": http},
            "dashboard": {"port": port},
        }
        config = load(config_file, overrides)
        given = {"--grpc": grpc, "--http": http, "--config": config_file}
        flags = tuple(part for flag, value in given.items() if value is not None for part in (flag, value))
        return cls(config, locate(config.storage), flags)

    def run(self, simulation: Simulation | None = None) -> int:
        """Run until a signal; returns the exit code. Raises OperatorError where a process ends by itself."""
        is_new = not self.location.exists()
        # Made before the collector starts, which takes over later ones only after a while.
        needs_token = simulation is not None and self.config.auth.enabled
        token_made = temporary_token(self.location) if needs_token else nullcontext()
        with token_made as token, Supervisor().running() as supervisor:
            supervisor.start(
                "collector", [*_spanlake("collect"), "--data", str(self.location.root), *self.flags], announces=True
            )
            try:
                line = supervisor.first_line("collector", READY_SECONDS)
                if line is not None:
                    ready = json.loads(line)
                    url = self._start_rest(supervisor, ready)
                    if simulation is not None:
                        command = simulation.command(self.config, ready["grpc"], with_history=is_new)
                        supervisor.start(
                            "simulator", command, simulation.environment(self.config, token, os.environ)
                        )
                    if not supervisor.stopping:
                        click.echo(self._welcome(url, ready))
                        supervisor.wait()
            finally:
                self._stop(supervisor)
            return self._end(supervisor)

    def run_dashboard(self) -> int:
        """Serve the pages until a signal; returns the exit code. Raises OperatorError where they end before."""
        with Supervisor().running() as supervisor:
            url = self._start_dashboard(supervisor, self.config)
            click.echo(f"dashboard {url} (Ctrl-C stops it)")
            supervisor.wait()
            supervisor.stop("dashboard", _ENDED_SECONDS)
            return self._end(supervisor)

    def _start_rest(self, supervisor: Supervisor, ready: dict[str, str]) -> str:
        """Jobs and dashboard; the URL of the latter."""
        supervisor.start("jobs", [*_spanlake("analyze"), *self._lake_flags()])
        return self._start_dashboard(supervisor, self._listening(ready))

    def _start_dashboard(self, supervisor: Supervisor, config: Config) -> str:
        port = launch.claim_port(config.dashboard.host, config.dashboard.port)
        environment = launch.environment(config, os.environ)
        process = supervisor.start("dashboard", launch.command(config, port), environment)
        url = launch.url(config, port)
        launch.wait_ready(url, READY_SECONDS, process)
        return url

    def _listening(self, ready: dict[str, str]) -> Config:
        """The configuration with the addresses that the collector has really taken."""
        collector = self.config.collector.model_copy(update={"grpc": ready["grpc"], "http": ready["http"]})
        return self.config.model_copy(update={"collector": collector})

    def _lake_flags(self) -> list[str]:
        config_file = self.flags[self.flags.index("--config") :][:2] if "--config" in self.flags else ()
        return ["--data", str(self.location.root), *config_file]

    def _stop(self, supervisor: Supervisor) -> None:
        """Sources first, then the collector, which stores what it has; then the jobs, which roll that up."""
        if supervisor.stopping:
            click.echo("stopping: what was received is stored and rolled up (a second Ctrl-C kills)")
        seconds = self.config.collector.stop_timeout_seconds + _ENDED_SECONDS
        for name in ("simulator", "dashboard", "collector", "jobs"):
            if supervisor.has(name):
                supervisor.stop(name, seconds)
        if supervisor.stopping and not supervisor.killed:
            supervisor.start("last run of the jobs", [*_spanlake("analyze"), "--once", *self._lake_flags()])
            supervisor.await_end("last run of the jobs", seconds)

    def _end(self, supervisor: Supervisor) -> int:
        for name in supervisor.killed:
            click.echo(f"the {name} did not stop in time and was killed; what was acknowledged is safe", err=True)
        return 1 if supervisor.killed else 0

    def _welcome(self, url: str, ready: dict[str, str]) -> str:
        data = shlex.quote(str(self.location.root))
        scheme = "https" if self.config.tls.certificate else "http"
        token = f"  token       spanlake tokens add TENANT --data {data}" if self.config.auth.enabled else None
        query = "SELECT region, tenant, count(*) FROM spans WHERE start_time > ago('15 minutes') GROUP BY ALL"
        return "\n".join(
            [
                "spanlake is up (Ctrl-C stops it)",
                f"  dashboard   {url}",
                f"  OTLP/gRPC   {scheme}://{ready['grpc']}",
                f"  OTLP/HTTP   {scheme}://{ready['http']}",
                *([token] if token else []),
                f"  data        {self.location.root}",
                f'  query       spanlake sql --data {data} "{query}"',
                f"  in DuckDB   {attach_sql(self.location, read_only=True)}",
            ]
        )


def _spanlake(command: str) -> list[str]:
    return [sys.executable, "-P", "-m", "dashboard.cli", command]
