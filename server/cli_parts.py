"""What the operator's commands share: the `--home` option, who types, and how rows are printed."""

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clinimeta.server.config import Home
    from clinimeta.server.database import Database

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar="CLINIMETA_COORDINATOR", help="The coordinator's folder (default: this one)."
    ),
]
HERE = Path()
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def home_of(path: Path) -> "Home":
    """The coordinator's folder.

    Raises:
        UserError: it is none, or its settings cannot be used.
    """
    from clinimeta.server.config import Home

    home = Home(path.resolve())
    home.settings()
    return home


def opened(path: Path) -> "tuple[Home, Database]":
    """The coordinator's folder and its database.

    Raises:
        UserError: either cannot be used.
    """
    from clinimeta.server.database import Database

    home = home_of(path)
    return home, Database.open(home.database)


def who() -> str:
    """Who types, for the record of events."""
    try:
        return getpass.getuser()
    except OSError:
        return "somebody without a name on this machine"


def table(rows: list[dict[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows, one a line under their names, or as JSON; `empty` where there are none."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    elif not rows:
        typer.echo(empty)
    else:
        columns = [key for key in rows[0] if any(row[key] not in ("", None) for row in rows)]
        widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in columns}
        typer.echo("  ".join(f"{key:<{widths[key]}}" for key in columns).rstrip())
        for row in rows:
            typer.echo("  ".join(f"{row[key]!s:<{widths[key]}}" for key in columns).rstrip())
