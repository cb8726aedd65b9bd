"""`clinimeta site ...`: what a hospital's IT, its clinicians and its data-protection officer type."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.common.errors import UserError

if TYPE_CHECKING:
    from clinimeta.client.config import Home

app = typer.Typer(
    help="Take part as a hospital. Example: clinimeta site init site --coordinator hub.example.org:9443.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="CLINIMETA_SITE", help="The hospital's folder (default: this one)."),
]
HERE = Path()
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    coordinator: Annotated[str, typer.Option(help="HOST:PORT, as the coordinator's operator says.")],
    data: Annotated[str, typer.Option(help="Table of patients (CSV), relative to the folder or absolute.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for this machine only.")] = 9543,
    health_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for monitoring.")] = 9545,
) -> None:
    """Make a hospital's folder: settings, and keys that never leave it.

    Example:
        clinimeta site init site --coordinator hub.example.org:9443 --data patients.csv
    """
    from clinimeta.client.folder import make_home

    home = make_home(folder, address=coordinator, data=data, port=port, health_port=health_port)
    typer.echo(f"made {home.path}: settings in site.toml, keys beside it")
    typer.echo(f"next: clinimeta site enrol --home {home.path} --token-file FILE")


@app.command()
def enrol(
    home: HomeOption = HERE,
    token: Annotated[
        str, typer.Option(help="What the operator gave you; on a shared machine use --token-file.")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
) -> None:
    """Send this hospital's public keys to the coordinator. Private keys stay here."""
    from clinimeta.client.enrol import enrol as enrol_at
    from clinimeta.client.keys import identity
    from clinimeta.common.secagg.identity import fingerprint

    if bool(token) == bool(token_file):
        raise UserError("one token is needed", remedy="give either --token or --token-file")
    text = token if token_file is None else token_file.read_text(encoding="utf-8").strip()
    found = _home(home)
    enrolment, state = enrol_at(found, text)
    own = fingerprint(identity(found, enrolment.site).public)
    typer.echo(f"enrolled at {enrolment.coordinator} as {enrolment.site}: {state}")
    typer.echo(f"fingerprint of this hospital's key: {own} (compare it with the operator by telephone)")
    typer.echo(f"next: clinimeta site check --home {found.path}")


@app.command()
def up(
    home: HomeOption = HERE,
    background: Annotated[
        bool, typer.Option("--background", help="Go on in the background; its log is a file in the folder.")
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for it to be ready.")] = 60.0,
) -> None:
    """Run the hospital's daemon: it answers the coordinator as far as this hospital's policy allows.

    Stays in the foreground until SIGTERM or Ctrl-C; --background returns when it is ready.
    """
    from clinimeta.common.running import in_background

    found = _home(home)
    if background:
        health = f"http://127.0.0.1:{found.settings().local.health_port}/readyz"
        command = ["site", "up", "--home", str(found.path)]
        pid = in_background(command, found.lock, found.path / "site.log", health, wait)
        typer.echo(f"ready: process {pid}, log in {found.path / 'site.log'}")
        return
    from clinimeta.client.daemon import run
    from clinimeta.common.logs import log_to_stderr

    log_to_stderr()
    run(found)


@app.command()
def down(home: HomeOption = HERE) -> None:
    """Stop the daemon; what it is answering is answered first, if that is quick."""
    from clinimeta.common.running import stop

    typer.echo("stopped" if stop(_home(home).lock, patience_s=40.0) else "it was not running")


@app.command()
def status(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say whether the daemon runs, and how the coordinator sees this hospital."""
    from clinimeta.client.enrol import status as asked
    from clinimeta.common.running import running

    found = _home(home)
    pid = running(found.lock)
    state, ahead = asked(found)
    if as_json:
        typer.echo(json.dumps({"pid": pid, "state": state, "clock_ahead_s": round(ahead, 1)}))
        return
    typer.echo(f"daemon: {f'process {pid}' if pid else 'does not run'}; at the coordinator: {state}")


@app.command()
def check(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Check settings, keys, table, disk, clock, proxy and the way to the coordinator; sends no data."""
    from clinimeta.client.check import examine
    from clinimeta.common.findings import require_no_fault, shown

    findings = examine(_home(home))
    typer.echo(shown(findings, as_json))
    require_no_fault(findings)


def _home(path: Path) -> "Home":
    from clinimeta.client.config import Home

    home = Home(path.resolve())
    home.settings()
    return home
