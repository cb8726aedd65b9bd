"""The `--home` option of the hospital's commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clinimeta.client.config import Home

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="CLINIMETA_SITE", help="The hospital's folder (default: this one)."),
]
HERE = Path()
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def home_of(path: Path) -> "Home":
    """The hospital's folder, if it is one.

    Raises:
        UserError: it is none, or its settings cannot be used.
    """
    from clinimeta.client.config import Home

    home = Home(path.resolve())
    home.settings()
    return home
