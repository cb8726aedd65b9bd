"""`clinimeta consortium ...`: the offline key that says who the hospitals are, for secure aggregation.

Run it on a machine without a network. The coordinator hands the roster out, and cannot change it: hospitals
know the consortium's public key from people.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from clinimeta.common.errors import UserError

app = typer.Typer(
    help="Say offline who the hospitals are. Example: clinimeta consortium init keys.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
KEY, ROSTER = "consortium.key", "roster.json"
Folder = Annotated[Path, typer.Argument(help="The consortium's folder.")]


@app.command()
def init(folder: Folder) -> None:
    """Make the consortium's key, in a new folder that stays offline.

    Example:
        clinimeta consortium init keys
    """
    import secrets

    from clinimeta.common.private_files import make_private_folder, write_secret
    from clinimeta.common.secagg.identity import Identity, fingerprint

    make_private_folder(folder)
    secret = secrets.token_bytes(32)
    write_secret(folder / KEY, secret)
    public = Identity("consortium", secret).public
    typer.echo(f"public key, for [consortium] in every site.toml: {public.hex()}")
    typer.echo(f"fingerprint, to be compared by telephone: {fingerprint(public)}")


@app.command()
def sign(
    folder: Folder,
    sites: Annotated[
        Path, typer.Option(help="Output of `clinimeta coordinator list --json`, checked by people.")
    ],
    days: Annotated[int, typer.Option(min=1, help="How long the keys hold.")] = 365,
) -> None:
    """Sign a new roster of the approved hospitals; prints whom, for a last look.

    Example:
        clinimeta consortium sign keys --sites sites.json
    """
    from clinimeta.common.errors import RecordError
    from clinimeta.common.files import write_atomically
    from clinimeta.common.private_files import read_secret
    from clinimeta.common.roster_file import SignedRoster
    from clinimeta.common.secagg.identity import Identity, Member, Roster, fingerprint

    own = Identity("consortium", read_secret(folder / KEY))
    try:
        rows = [row for row in json.loads(sites.read_text(encoding="utf-8")) if row["state"] == "approved"]
        today = datetime.now(UTC).date()
        until = today + timedelta(days=days)
        members = tuple(
            Member(row["site"], bytes.fromhex(row["key"]), today - timedelta(days=1), until)
            for row in sorted(rows, key=lambda row: str(row["site"]))
        )
        file = folder / ROSTER
        before = (
            SignedRoster.from_bytes(file.read_bytes()).verified(own.public).version if file.exists() else 0
        )
        roster = Roster(before + 1, members)
    except (ValueError, KeyError, TypeError, RecordError) as error:
        raise UserError(
            "these are no hospitals to sign",
            where=str(sites),
            found=type(error).__name__ if not isinstance(error, RecordError) else str(error),
            expected="what `clinimeta coordinator list --json` prints",
        ) from None
    write_atomically(file, SignedRoster.of(roster, own).to_bytes())
    for member in roster.members:
        typer.echo(f"{member.site}: {fingerprint(member.key)}, until {member.valid_to}")
    typer.echo(f"roster {roster.version} is in {file}; next: clinimeta coordinator roster {file}")
