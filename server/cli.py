"""`clinimeta coordinator ...`, and `stop`, `resume`, `list`, `show`, `export`: what the operator types.

Commands change the database; the daemon brings Flower in line with it. So each works whether or not the
coordinator runs, and none of them needs a network.
"""

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.common.errors import UserError
from clinimeta.server import audit_cli
from clinimeta.server.cli_parts import HERE, HomeOption, Json, home_of, opened, table, who

if TYPE_CHECKING:
    from clinimeta.server.config import Home

app = typer.Typer(
    help="Run the coordinator of a federation. Example: clinimeta coordinator init hub.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command()(audit_cli.events)
app.command()(audit_cli.invitations)
_HOST = re.compile(r"(\*\.)?[\w-]+(\.[\w-]+)*", re.ASCII)
ReadyIn = Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for it to be ready.")]
Background = Annotated[
    bool, typer.Option("--background", help="Go on in the background; its log is a file in the folder.")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name-in-certificate",
            help="Host name or address that hospitals use; repeat for more. Asked for if left out.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The federation's name, as hospitals will read it.")] = "",
    host: Annotated[str, typer.Option(help="Address to listen on for hospitals.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that hospitals reach.")] = 9443,
    control_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for this machine only.")] = 9444,
    health_port: Annotated[int, typer.Option(min=1, max=65535, help="Port for monitoring.")] = 9445,
) -> None:
    """Make a coordinator's folder: settings, its own certificate authority, secrets, an empty database.

    Example:
        clinimeta coordinator init hub --name-in-certificate hub.example.org
    """
    from clinimeta.server.daemon import make_home

    asked = names or typer.prompt("Host names or addresses that hospitals will use (comma between)").split(
        ","
    )
    named = [text.strip() for text in asked if text.strip()]
    _require_hosts(named)
    home = make_home(
        folder,
        name or named[0] if named else name,
        named,
        host=host,
        port=port,
        control_port=control_port,
        health_port=health_port,
    )
    typer.echo(f"made {home.path}: settings in coordinator.toml, certificate for {', '.join(named)}")
    typer.echo(f"next: clinimeta coordinator up --home {home.path}")


@app.command()
def up(home: HomeOption = HERE, background: Background = False, wait: ReadyIn = 30.0) -> None:
    """Run the coordinator: Flower's SuperLink and our round loops, each started again should it end.

    Stays in the foreground until SIGTERM or Ctrl-C; --background returns when it is ready.

    Example:
        clinimeta coordinator up --home hub --background
    """
    from clinimeta.common.running import in_background

    found = home_of(home)
    if background:
        health = f"http://127.0.0.1:{found.settings().health.port}/readyz"
        command = ["coordinator", "up", "--home", str(found.path)]
        pid = in_background(command, found.lock, found.path / "coordinator.log", health, wait)
        typer.echo(f"ready: process {pid}, log in {found.path / 'coordinator.log'}")
        return
    from clinimeta.common.logs import log_to_stderr
    from clinimeta.server.daemon import run

    log_to_stderr()
    run(found)


@app.command()
def down(home: HomeOption = HERE) -> None:
    """Stop the coordinator. Experiments go on from their checkpoints when it is up again.

    Example:
        clinimeta coordinator down --home hub
    """
    from clinimeta.common.running import stop as stop_daemon

    ended = stop_daemon(home_of(home).lock, patience_s=40.0)
    typer.echo("stopped" if ended else "it was not running")


@app.command()
def status(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Say whether the coordinator runs, who is enrolled and what is being done.

    Example:
        clinimeta coordinator status --home hub
    """
    from clinimeta.server.status import status_of

    found = status_of(home_of(home))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    for line in found.lines():
        typer.echo(line)


@app.command()
def doctor(home: HomeOption = HERE, as_json: Json = False) -> None:
    """Check the folder, keys, certificate, ports and disk; each finding with what to do about it.

    Example:
        clinimeta coordinator doctor --home hub
    """
    from clinimeta.common.findings import require_no_fault, shown
    from clinimeta.server.doctor import examine

    findings = examine(home_of(home))
    typer.echo(shown(findings, as_json))
    require_no_fault(findings)


@app.command()
def invite(
    site: Annotated[str, typer.Argument(help="The hospital's name, as all will read it.")],
    home: HomeOption = HERE,
    hours: Annotated[float, typer.Option(min=0.02, max=720, help="How long the token lives.")] = 48.0,
    auto: Annotated[bool, typer.Option("--auto", help="Whoever uses the token is approved by that.")] = False,
    as_json: Json = False,
) -> None:
    """Make a one-time token for a hospital. Give it to them by a way that nobody else reads.

    Example:
        clinimeta coordinator invite "Hospital A"
    """
    from clinimeta.server import enrolment

    found, database = opened(home)
    token = enrolment.invite(database, site, timedelta(hours=hours), who(), automatic=auto)
    _token(found, token, site, hours, as_json)


@app.command()
def rotate(
    site: Annotated[str, typer.Argument(help="An enrolled hospital.")],
    home: HomeOption = HERE,
    hours: Annotated[float, typer.Option(min=0.02, max=720, help="How long the token lives.")] = 48.0,
    auto: Annotated[bool, typer.Option("--auto", help="Its use is its approval.")] = False,
    as_json: Json = False,
) -> None:
    """Make a token with which a hospital replaces its keys; the old keys hold until it is used.

    Example:
        clinimeta coordinator rotate "Hospital A"
    """
    from clinimeta.server import enrolment

    found, database = opened(home)
    token = enrolment.invite(database, site, timedelta(hours=hours), who(), automatic=auto, purpose="rotate")
    _token(found, token, site, hours, as_json)


@app.command()
def approve(
    site: Annotated[str, typer.Argument(help="A hospital that waits.")], home: HomeOption = HERE
) -> None:
    """Let a hospital that has enrolled take part.

    Example:
        clinimeta coordinator approve "Hospital A"
    """
    from clinimeta.server import enrolment

    _, database = opened(home)
    enrolment.approve(database, site, who())
    typer.echo(f"{site} is approved; it connects within seconds")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="An enrolled hospital.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept in the record of events.")],
    home: HomeOption = HERE,
) -> None:
    """Let a hospital take part no longer: its keys are refused from now on.

    Example:
        clinimeta coordinator revoke "Hospital A" --reason "left the consortium"
    """
    from clinimeta.server import enrolment

    _, database = opened(home)
    enrolment.revoke(database, site, who(), reason)
    typer.echo(f"{site} is revoked")


@app.command("list")
def list_sites(home: HomeOption = HERE, as_json: Json = False) -> None:
    """List the hospitals: waiting for approval, approved, revoked; with their keys' fingerprints.

    Example:
        clinimeta coordinator list --home hub
    """
    from clinimeta.common.secagg.identity import fingerprint
    from clinimeta.server import enrolment

    _, database = opened(home)
    rows = [
        {
            "site": site.name,
            "state": site.state,
            "fingerprint": fingerprint(site.keys.identity),
            "key": site.keys.identity.hex(),
            "software": site.software,
            "enrolled": site.enrolled_at,
        }
        for site in enrolment.known(database)
    ]
    if not as_json:
        rows = [{name: value for name, value in row.items() if name != "key"} for row in rows]
    table(rows, as_json, "no hospital is enrolled yet: clinimeta coordinator invite NAME")


@app.command()
def certificate(
    home: HomeOption = HERE,
    names: Annotated[
        list[str] | None,
        typer.Option("--name-in-certificate", help="Host name or address; repeat for more (else as before)."),
    ] = None,
) -> None:
    """Make a new server certificate, by the same authority: hospitals need do nothing. Restart afterwards.

    Example:
        clinimeta coordinator certificate --home hub
    """
    from datetime import UTC, datetime

    from clinimeta.common.files import write_atomically
    from clinimeta.common.private_files import read_secret
    from clinimeta.server import pki

    found = home_of(home)
    named = names or pki.names_of(found.certificate.read_bytes())
    _require_hosts(named)
    ca, authority = found.ca_certificate.read_bytes(), read_secret(found.ca_key)
    made, key = pki.new_server(ca, authority, named, datetime.now(UTC))
    write_atomically(found.key, key, 0o600)
    write_atomically(found.certificate, made)
    typer.echo(
        f"a certificate for {', '.join(named)}, until {pki.ends(made):%Y-%m-%d}; restart the coordinator"
    )


@app.command()
def roster(
    file: Annotated[Path, typer.Argument(help="roster.json, as `clinimeta consortium sign` wrote it.")],
    home: HomeOption = HERE,
) -> None:
    """Hand out a roster that the consortium has signed offline: secure aggregation needs one.

    Example:
        clinimeta coordinator roster keys/roster.json --home hub
    """
    from clinimeta.common.errors import RecordError
    from clinimeta.common.files import write_atomically
    from clinimeta.common.roster_file import SignedRoster

    found = home_of(home)
    try:
        data = file.read_bytes()
        signed = SignedRoster.from_bytes(data).unverified()
    except (OSError, RecordError) as error:
        raise UserError(
            "this is no signed roster",
            where=str(file),
            found=type(error).__name__,
            expected="what `clinimeta consortium sign` wrote",
        ) from None
    write_atomically(found.roster, data)
    typer.echo(f"roster {signed.version} with {len(signed.members)} hospitals is handed out")


@app.command()
def receipts(
    site: Annotated[str, typer.Argument(help="An enrolled hospital.")],
    home: HomeOption = HERE,
    former: Annotated[
        str, typer.Option("--former", help="Fingerprint of a key that it had before, for that key's ledger.")
    ] = "",
) -> None:
    """Print all receipts for a hospital's ledger: with them it can show, or see, that nothing is missing.

    Example:
        clinimeta coordinator receipts "Hospital A" > receipts.txt
    """
    from clinimeta.server import enrolment
    from clinimeta.server.witness import all_of, former_key

    _, database = opened(home)
    now = enrolment.find(database, site).keys.identity
    key = former_key(database, site, former) if former else now
    for made, signature in all_of(database, site, key):
        typer.echo(f"{made.number} {made.hash.hex()} {signature.hex()}")


def _require_hosts(names: Sequence[str]) -> None:
    for name in names:
        try:
            ip_address(name)
        except ValueError:
            if not _HOST.fullmatch(name):
                raise UserError(
                    "this is neither a host name nor an address",
                    where="--name-in-certificate",
                    found=repr(name),
                    expected="what stands before the port in what hospitals type, without https://",
                    remedy="for example --name-in-certificate hub.example.org",
                ) from None


def _token(home: "Home", token: str, site: str, hours: float, as_json: bool) -> None:
    from clinimeta.server.enrolment_api import ca_digest

    whole = f"{token}.{ca_digest(home.ca_certificate.read_bytes())}"
    if as_json:
        typer.echo(json.dumps({"site": site, "token": whole, "hours": hours}))
        return
    typer.echo(whole)
    typer.echo(f"for {site}, once, within {hours:g} hours: clinimeta site enrol --token-file FILE", err=True)
