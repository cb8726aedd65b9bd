"""`clinimeta console`: serve the operator's console, and make links for accounts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import click
import typer

from clinimeta.common.errors import UserError
from clinimeta.common.web.roles import Role
from clinimeta.server.cli_parts import HERE, HomeOption, home_of

PORT = 9446


def app_over(studies: Callable[[], Mapping[str, str]]) -> typer.Typer:
    """The commands; `studies` gives the built-in studies, by name, which are on a higher floor."""
    app = typer.Typer(
        help="The operator's console in a browser. Example: clinimeta console --home hub.",
        rich_markup_mode="markdown",
    )
    app.command()(link)

    @app.callback(invoke_without_command=True)
    def console(
        context: click.Context,
        home: HomeOption = HERE,
        host: Annotated[
            str, typer.Option(help="Address to listen on; without TLS this machine only.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = PORT,
        name: Annotated[
            list[str] | None, typer.Option("--name", help="Host name that browsers use; repeat for more.")
        ] = None,
        certificate: Annotated[Path | None, typer.Option(help="For TLS: certificate chain (PEM).")] = None,
        key: Annotated[Path | None, typer.Option(help="For TLS: its key (PEM, 0600).")] = None,
    ) -> None:
        """Serve the operator's console, until SIGTERM or Ctrl-C. The first start prints a one-time link.

        Example:
            clinimeta console --home hub
        """
        if context.invoked_subcommand is None:
            _serve(home, studies(), host, port, name or [], certificate, key)

    return app


def _serve(
    home: Path,
    studies: Mapping[str, str],
    host: str,
    port: int,
    names: list[str],
    certificate: Path | None,
    key: Path | None,
) -> None:
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
