"""The command `spanlake tokens`: make, list and revoke the tokens of a data folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from collector.cli import config_option, data_option

if TYPE_CHECKING:
    from collector.tenants.tokens import Token, TokenFile


@click.group()
def tokens() -> None:
    """Make, list and revoke the tokens that auth.enabled asks for.

    A running collector takes changes over within a second.
    """


@tokens.command()
@click.argument("tenant")
@click.option("--spans-per-second", type=click.FloatRange(min=0), metavar="N", help="Quota of spans; 0: no bound.")
@click.option("--bytes-per-second", type=click.FloatRange(min=0), metavar="N", help="Quota of bytes; 0: no bound.")
@click.option(
    "--burst-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds of unused quota that can be saved up.",
)
@data_option
@config_option
def add(
    tenant: str,
    spans_per_second: float | None,
    bytes_per_second: float | None,
    burst_seconds: float | None,
    data: str | None,
    config_file: str | None,
) -> None:
    """Make a token for TENANT and print it. It is shown this once: only a digest of it is kept.

    With a quota of its own a token does not share that of its tenant.
    """
    from pydantic import ValidationError

    from collector.config import TenantQuota

    try:
        limits = TenantQuota(
            spans_per_second=spans_per_second, bytes_per_second=bytes_per_second, burst_seconds=burst_seconds
        )
    except ValidationError as error:
        raise click.UsageError("the limits of a token are finite numbers") from error
    text, token = _file(config_file, data).add(tenant, limits)
    click.echo(text)
    click.echo(f"id {token.id} of tenant {token.tenant}; send it as `Authorization: Bearer TOKEN`", err=True)


@tokens.command("list")
@data_option
@config_option
def list_(data: str | None, config_file: str | None) -> None:
    """Print id, tenant, time of creation and limits of each token, never the token."""
    for token in _file(config_file, data).read():
        click.echo(_line(token))


@tokens.command()
@click.argument("token_id", metavar="ID")
@data_option
@config_option
def revoke(token_id: str, data: str | None, config_file: str | None) -> None:
    """Revoke the token of this ID, as `spanlake tokens list` shows it."""
    token = _file(config_file, data).revoke(token_id)
    click.echo(f"revoked {token.id} of tenant {token.tenant}")


def _file(config_file: str | None, data: str | None) -> TokenFile:
    from collector.lake.location import locate
    from collector.settings import load
    from collector.tenants.tokens import TokenFile

    location = locate(load(config_file, {"storage": {"data": data}}).storage)
    return TokenFile(Path(location.root))


def _line(token: Token) -> str:
    limits = " ".join(f"{key}={value:g}" for key, value in token.limits.model_dump(exclude_none=True).items())
    created = token.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{token.id}  {token.tenant}  {created}  {limits or '-'}"


COMMANDS = [tokens]
