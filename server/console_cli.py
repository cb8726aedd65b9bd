"""`clinimeta console`: serve the operator's console, and make links for accounts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from clinimeta.common.errors import UserError
from clinimeta.common.web.roles import Role
from clinimeta.server.cli_parts import HERE, HomeOption, home_of

PORT = 9446


def serve_console(
    home: Path,
    studies: Mapping[str, str],
    host: str,
    port: int,
    names: list[str],
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Serve it, after a first link has been printed where nobody could sign in.

    Raises:
        UserError: the folder cannot be used, or it would be reachable without TLS.
    """
    from clinimeta.common.logs import log_to_stderr
    from clinimeta.common.web.headers import require_safe_bind
    from clinimeta.server.console.app import open_console, serve

    if (certificate is None) != (key is None):
        raise UserError("TLS needs both", expected="--certificate and --key")
    require_safe_bind(host, certificate is not None)
    console = open_console(home_of(home), studies)
    address = f"{'https' if certificate else 'http'}://{names[0] if names else host}:{port}"
    link = console.accounts.first_link()
    if link is not None:
        typer.echo(
            f"nobody can sign in yet; make the first account here, within the hour:\n{address}/link/{link}"
        )
    else:
        typer.echo(f"{address}/")
    log_to_stderr()
    serve(console, host, port, frozenset(names), certificate, key)


def link(
    role: Annotated[Role, typer.Option(help="What the account will be.")],
    site: Annotated[str, typer.Option(help="The hospital that a viewer sees.")] = "",
    name: Annotated[str, typer.Option(help="An account whose password is to be set anew.")] = "",
    home: HomeOption = HERE,
) -> None:
    """Make a one-time link with which somebody makes an account, or sets another password.

    Example:
        clinimeta console link --role researcher --home hub
    """
    from clinimeta.server import enrolment
    from clinimeta.server.cli_parts import who
    from clinimeta.server.console.app import open_console

    console = open_console(home_of(home), {})
    secret = console.accounts.link(role, site, name)
    with console.database.change() as connection:
        enrolment.record(connection, who(), "made a link", name or f"{role.value} {site}".strip())
    typer.echo(f"/link/{secret}")
    typer.echo("open it in the console, within a day; it serves once", err=True)
