"""Commands on a lake and its collector: collect, sql, import, validate. Imports wait until a command runs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collector.config import Config
    from collector.importing import FileReport
    from collector.lake.location import Location

PROGRESS_AFTER_SECONDS = 1.0
INTERRUPT_SECONDS = 0.1

data_option = click.option("--data", metavar="DIR", help="Data folder: catalog, data files and spool (spanlake-data).")
config_option = click.option("--config", "config_file", metavar="FILE", help="Configuration file (TOML).")
grpc_option = click.option("--grpc", metavar="HOST:PORT", help="Address of OTLP/gRPC; port 0 takes a free one.")
http_option = click.option("--http", metavar="HOST:PORT", help="Address of OTLP/HTTP; port 0 takes a free one.")

certificate_option = click.option(
    "--certificate",
    envvar="OTEL_EXPORTER_OTLP_CERTIFICATE",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the authorities that sign the collector's certificate.",
)


@click.command()
@data_option
@grpc_option
@http_option
@config_option
def collect(data: str | None, grpc: str | None, http: str | None, config_file: str | None) -> None:
    """Receive spans over OTLP and store them.

    Prints one line of JSON with its addresses when it is ready. SIGTERM or Ctrl-C stops it: what was received
    is answered and stored first.
    """
    from collector.footprint import reduce_footprint

    reduce_footprint()
    from collector import collect as collecting
    from collector.settings import load
    from collector.telemetry import logs

    config = load(config_file, {"storage": {"data": data}, "collector": {"grpc": grpc, "http": http}})
    logs.configure(config.telemetry)
    sys.exit(collecting.run(config))


@click.command()
@click.argument("sql")
@data_option
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default="table",
    show_default=True,
    help="Form of the result. A table shows at most 1000 rows, the others show all.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@config_option
def sql(sql: str, data: str | None, format_: str, output: Path | None, config_file: str | None) -> None:
    """Query the lake with one SQL statement.

    SQL is the statement itself, or `-` to read it from standard input. It may only read, and only the lake.
    Works while a collector runs, and while none does.
    """
    if format_ == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("a Parquet file does not suit a terminal: add --output FILE")
    text = sys.stdin.read() if sql == "-" else sql
    with ctrl_c() as pressed, _progress_note("the query runs"):
        _answer(text, data, format_, output, config_file, pressed)


def _answer(
    text: str, data: str | None, format_: str, output: Path | None, config_file: str | None, pressed: threading.Event
) -> None:
    from collector.lake.location import locate
    from collector.lake.sandbox import open_sandbox
    from collector.results import WRITERS
    from collector.settings import load

    config = load(config_file, {"storage": {"data": data}})
    with open_sandbox(locate(config.storage), config.query) as sandbox, opened(output) as stream:

        def write() -> None:
            with sandbox.run(text) as result:
                WRITERS[format_](result, stream)

        run_interruptibly(write, sandbox.interrupt, pressed)


@contextmanager
def ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising KeyboardInterrupt, which an import or a destructor could swallow."""
    pressed = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def run_interruptibly(work: Callable[[], None], interrupt: Callable[[], None], pressed: threading.Event) -> None:
    """Do the work in a thread, since the database hears no signal while it computes; `interrupt` ends it."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        while not future.done():
            wait([future], INTERRUPT_SECONDS)
            if pressed.is_set():
                interrupt()
        if pressed.is_set():
            raise click.Abort
        future.result()


@contextmanager
def opened(output: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that appears under its name once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from collector.errors import OperatorError

    part = output.with_name(f".{output.name}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(output)
    except OSError as error:
        raise OperatorError(f"{str(output)!r} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _progress_note(what: str) -> Iterator[None]:
    """Say on a terminal that something takes longer than a second."""
    note = threading.Timer(PROGRESS_AFTER_SECONDS, lambda: click.echo(f"{what} ... (Ctrl-C stops it)", err=True))
    note.daemon = True
    if sys.stderr.isatty():
        note.start()
    try:
        yield
    finally:
        note.cancel()


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@click.option("--endpoint", metavar="URL", help="OTLP/gRPC address of a running collector to send to; https for TLS.")
@certificate_option
@click.option(
    "--headers",
    envvar="OTEL_EXPORTER_OTLP_HEADERS",
    show_envvar=True,
    metavar="NAME=VALUE,...",
    help="Headers to send, values URL-encoded. Keep a token in the variable: others can see flags.",
)
@click.option("--again", is_flag=True, help="Import also what was imported before.")
@config_option
def import_(
    files: tuple[Path, ...],
    data: str | None,
    endpoint: str | None,
    certificate: Path | None,
    headers: str | None,
    again: bool,
    config_file: str | None,
) -> None:
    """Import OTLP files.

    Takes protobuf and JSON as the OpenTelemetry Collector's file exporter writes them, also in gzip or zstd.

    Without --endpoint the spans go straight into the data folder, on which no collector may run then. The folder
    remembers what was imported: a second import of a file skips it, and one that was stopped goes on where it was.
    Through --endpoint the same request is stored once within collector.dedup_window_seconds. The exit code is 1 if
    any request could not be imported; the others are imported all the same.
    """
    from collector.settings import load

    if data is not None and endpoint is not None:
        raise click.UsageError("--data and --endpoint are two ways to the same: give one of them")
    if again and endpoint is not None:
        raise click.UsageError("--again is for a data folder: a collector takes again what comes after its window")
    config = load(config_file, {"storage": {"data": data}})
    if endpoint is None:
        reports = asyncio.run(_import(config, files, again=again))
    else:
        reports = asyncio.run(_send(config, files, endpoint, certificate, headers or ""))
    for report in reports:
        _print_report(report)
    sys.exit(1 if any(report.failed for report in reports) else 0)


async def _send(
    config: Config, files: tuple[Path, ...], endpoint: str, certificate: Path | None, headers: str
) -> list[FileReport]:
    from opentelemetry.util.re import parse_env_headers

    from collector.importing import EndpointSink, import_files

    remote = EndpointSink(endpoint, parse_env_headers(headers, liberal=True), certificate)
    try:
        with _progress_bar(files) as on_progress:
            return await import_files(files, remote, config.collector.request_bytes_max, on_progress)
    finally:
        await remote.close()


async def _import(config: Config, files: tuple[Path, ...], *, again: bool) -> list[FileReport]:
    from collector.collect import open_ingest
    from collector.import_marks import ImportMarks
    from collector.importing import OWN_REQUESTS_IN_FLIGHT_MAX, import_files
    from collector.lake.location import locate

    location = _free(config, locate(config.storage))
    with open_ingest(config, location) as (ingest, sealer), ImportMarks(location.import_marks, again=again) as marks:
        ingest.start()
        with _progress_bar(files) as on_progress:
            return await import_files(
                files,
                ingest,
                config.collector.request_bytes_max,
                on_progress,
                marks,
                OWN_REQUESTS_IN_FLIGHT_MAX,
                lambda: sealer.is_filling,
            )


def _free(config: Config, location: Location) -> Location:
    """The location, where no collector runs on it. Raises OperatorError that names its endpoint otherwise."""
    from collector.collect import announced_by
    from collector.errors import OperatorError
    from collector.lake.lock import holder

    pid = holder(location.collector_lock)
    if pid is not None:
        endpoints = announced_by(location)
        scheme = "https://" if config.tls.certificate else ""
        to = f"--endpoint {scheme}{endpoints.grpc if endpoints else 'HOST:PORT'}"
        raise OperatorError(
            f"a collector (pid {pid}) runs on storage.data = {str(location.root)!r}: expected a folder that none "
            f"works on; import through it with {to}"
        )
    return location


@contextmanager
def _progress_bar(files: Sequence[Path]) -> Iterator[Callable[[Path, int], None]]:
    """A bar of bytes read of all files, on a terminal only."""
    before = {path: sum(p.stat().st_size for p in files[:index]) for index, path in enumerate(files)}
    total = sum(path.stat().st_size for path in files)
    with click.progressbar(length=total, label="import", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        yield lambda path, position: bar.update(before[path] + position - bar.pos)


def _print_report(report: FileReport) -> None:
    click.echo(
        f"{report.path}: {report.spans} spans imported, {report.rejected_spans} rejected; "
        f"{report.requests} requests imported, {report.failed} failed"
        + (f", {report.known} imported before" if report.known else "")
    )
    for problem in report.problems:
        click.echo(f"  {problem}", err=True)


@click.command()
@config_option
@data_option
def validate(config_file: str | None, data: str | None) -> None:
    """Check the configuration without running anything.

    Prints the effective configuration as TOML, with the origin of each value that is not a default, or every
    problem that it has. TLS files must be there and fit together.
    """
    from collector.receive.tls import Certificates
    from collector.settings import resolve
    from collector.settings_text import effective_toml

    settings = resolve(config_file, {"storage": {"data": data}}, os.environ)
    if settings.config.tls.certificate:
        Certificates(settings.config.tls)
    click.echo(effective_toml(settings.config, settings.origins))
    click.echo("valid", err=True)


COMMANDS = [collect, sql, import_, validate]
