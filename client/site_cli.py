"""`clinimeta site ...`: what a hospital's IT, its clinicians and its data-protection officer type."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clinimeta.client import ledger_cli, oversight_cli
from clinimeta.client.home_option import HERE, HomeOption, Json, home_of
from clinimeta.client.oversight_cli import plans_in
from clinimeta.common.errors import UserError

app = typer.Typer(
    help="Take part as a hospital. Example: clinimeta site init site --coordinator hub.example.org:9443.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


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

    _require_address(coordinator)
    home = make_home(folder, address=coordinator, data=data, port=port, health_port=health_port)
    typer.echo(f"made {home.path}: settings in site.toml, keys beside it")
    if not (home.path / data).exists():
        typer.echo(f"note: there is no table yet at {(home.path / data).resolve()}", err=True)
    typer.echo(f"next: clinimeta site enrol --home {home.path} --token-file FILE")


@app.command()
def enrol(
    home: HomeOption = HERE,
    token: Annotated[
        str, typer.Option(help="What the operator gave you; on a shared machine use --token-file.")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
) -> None:
    """Send this hospital's public keys to the coordinator. Private keys stay here.

    Example:
        clinimeta site enrol --home site --token-file token.txt
    """
    from clinimeta.client.enrol import enrol as enrol_at
    from clinimeta.client.keys import identity
    from clinimeta.common.secagg.identity import fingerprint

    found = home_of(home)
    enrolment, state = enrol_at(found, _token_of(token, token_file))
    own = fingerprint(identity(found, enrolment.site).public)
    typer.echo(f"enrolled at {enrolment.coordinator} as {enrolment.site}: {state}")
    typer.echo(f"fingerprint of this hospital's key: {own} (compare it with the operator by telephone)")
    typer.echo(f"next: clinimeta site check --home {found.path}")


@app.command()
def rotate(
    home: HomeOption = HERE,
    token: Annotated[
        str, typer.Option(help="From `clinimeta coordinator rotate`; on a shared machine use --token-file.")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file that holds it.")] = None,
) -> None:
    """Replace this hospital's keys. The old ones stay until the new are known. Stop the daemon first.

    Example:
        clinimeta site rotate --home site --token-file token.txt
    """
    from clinimeta.client.keys import identity
    from clinimeta.client.rotation import rotate as rotate_keys
    from clinimeta.common.secagg.identity import fingerprint

    found = home_of(home)
    enrolment, state = rotate_keys(found, _token_of(token, token_file))
    own = fingerprint(identity(found, enrolment.site).public)
    typer.echo(f"{enrolment.site} has new keys at {enrolment.coordinator}: {state}")
    typer.echo(f"fingerprint of this hospital's key: {own} (compare it with the operator by telephone)")
    typer.echo(f"old keys, and the ledger that they signed: {found.former}")
    if found.settings().consortium.key:
        typer.echo("the consortium's roster holds the old key: let it be signed anew, with this one")
    typer.echo(f"next: clinimeta site up --home {found.path}")


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

    Example:
        clinimeta site up --home site --background
    """
    from clinimeta.common.running import in_background

    found = home_of(home)
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
    """Stop the daemon; what it is answering is answered first, if that is quick.

    Example:
        clinimeta site down --home site
    """
    from clinimeta.common.running import stop

    typer.echo("stopped" if stop(home_of(home).lock, patience_s=40.0) else "it was not running")


@app.command()
def status(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say whether the daemon runs, and how the coordinator sees this hospital.

    Example:
        clinimeta site status --home site
    """
    from clinimeta.client.enrol import Enrolment, standing
    from clinimeta.common.running import running

    found = home_of(home)
    Enrolment.of(found)  # or it says how to enrol
    pid = running(found.lock)
    values: dict[str, object] = {"pid": pid}
    try:
        at = standing(found)
    except UserError as error:
        values |= {"state": "unknown", "why": f"{error.what}: {error.found}", "remedy": error.remedy}
        state = f"unknown: {error.what} ({error.where}; {error.found}); {error.remedy}"
    else:
        values |= {"state": at.state, "clock_ahead_s": round(at.ahead_s, 1)}
        state = at.state
    if as_json:
        typer.echo(json.dumps(values))
        return
    typer.echo(f"daemon: {f'process {pid}' if pid else 'does not run'}; at the coordinator: {state}")


@app.command()
def check(
    home: HomeOption = HERE,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="Read the table, too, and hold it against this study (TOML)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check settings, keys, table, disk, clock, proxy and the way to the coordinator; sends no data.

    Example:
        clinimeta site check --study study.toml
    """
    from clinimeta.client.check import examine
    from clinimeta.common.findings import require_no_fault, shown

    findings = examine(home_of(home), plans_in(study)[0].table if study is not None else None)
    typer.echo(shown(findings, as_json))
    require_no_fault(findings)


app.command("dry-run")(oversight_cli.dry_run)
for command in (oversight_cli.approve, oversight_cli.budget, oversight_cli.report, oversight_cli.adapt):
    app.command()(command)
app.add_typer(ledger_cli.app, name="ledger")


@app.command()
def console(
    home: HomeOption = HERE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 9546,
) -> None:
    """Serve the hospital's console, on this machine only, until Ctrl-C. The first start prints a link.

    Example:
        clinimeta site console --home site
    """
    from clinimeta.client.console.app import open_console, serve
    from clinimeta.common.logs import log_to_stderr

    found = open_console(home_of(home))
    link = found.accounts.first_link()
    if link is not None:
        typer.echo("nobody can sign in yet; make the first account here, within the hour:")
    typer.echo(f"http://127.0.0.1:{port}/{f'link/{link}' if link else ''}")
    log_to_stderr()
    serve(found, port)


@app.command()
def schema() -> None:
    """Print the JSON schema of site.toml, for editors and for checks before a roll-out.

    Example:
        clinimeta site schema > site.schema.json
    """
    from clinimeta.client.settings_schema import schema as of_settings

    typer.echo(json.dumps(of_settings(), indent=1))


def _require_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    if not host or "/" in text or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(
            "this is not the coordinator's address",
            where="--coordinator",
            found=repr(text),
            expected="HOST:PORT, without https://",
            remedy="for example --coordinator hub.example.org:9443",
        )


def _token_of(token: str, file: Path | None) -> str:
    if bool(token) == (file is not None):
        raise UserError("one token is needed", remedy="give either --token or --token-file")
    if file is None:
        return token
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "the token cannot be read",
            where=str(file),
            found=type(error).__name__,
            expected="a text file with the line that the operator gave you",
            remedy="check the path",
        ) from None
