"""`clinimeta site ledger ...`: what left the hospital, whether that is true, and a page that says so."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clinimeta.client.home_option import HERE, HomeOption, Json, home_of
from clinimeta.common.errors import UserError

if TYPE_CHECKING:
    from datetime import datetime

    from clinimeta.client.config import Home
    from clinimeta.client.ledger import Entry
    from clinimeta.client.ledger_check import Findings

app = typer.Typer(
    help="Show what left this hospital. Example: clinimeta site ledger show.", no_args_is_help=True
)


@app.command("show")
def show_ledger(
    home: HomeOption = HERE,
    last: Annotated[int, typer.Option(min=1, help="How many records.")] = 20,
    as_json: Json = False,
) -> None:
    """Show the last records; with --json all that is in them.

    Example:
        clinimeta site ledger show --last 50
    """
    from dataclasses import asdict

    from clinimeta.client.certificate import KINDS, in_words

    entries = entries_of(home_of(home))[-last:]
    if as_json:
        typer.echo(json.dumps([{"number": number, **asdict(entry)} for number, entry in entries], indent=1))
        return
    for number, entry in entries:
        what = KINDS.get(entry.kind, entry.kind) if entry.outcome == "sent" else f"refused: {entry.outcome}"
        place = "" if entry.round is None else f", round {entry.round}"
        about = f" [{entry.study}{place}]" if entry.study else ""
        typer.echo(f"{number:>6}  {entry.at[:19]}  {in_words(entry.bytes):>9}  {what}{about}")


@app.command("verify")
def verify_ledger(
    home: HomeOption = HERE,
    receipts: Annotated[
        Path | None, typer.Option(help="Receipts from the coordinator (its `receipts` command).")
    ] = None,
) -> None:
    """Check, offline, that no record was changed (integrity) and none is missing (completeness).

    Example:
        clinimeta site ledger verify --receipts receipts.txt
    """
    from clinimeta.client.ledger_check import text

    findings = _findings(home_of(home), receipts)
    typer.echo(text(findings))
    if not (findings.intact and findings.complete):
        raise UserError("the ledger is not as it was written", remedy="keep the file as evidence, and say so")


@app.command("certificate")
def write_certificate(
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.")],
    home: HomeOption = HERE,
    receipts: Annotated[
        Path | None, typer.Option(help="Receipts from the coordinator (its `receipts` command).")
    ] = None,
) -> None:
    """Write one page for the data-protection officer: what left, to whom, at what cost, and if it is all.

    Example:
        clinimeta site ledger certificate --out certificate.html
    """
    from datetime import UTC, datetime

    from clinimeta.common.files import write_atomically

    write_atomically(out, certificate_of(home_of(home), receipts, datetime.now(UTC)).encode())
    typer.echo(str(out))


def certificate_of(home: "Home", receipts: Path | None, at: "datetime") -> str:
    """The page for the data-protection officer (HTML).

    Raises:
        LedgerFileError: there is no ledger, or it cannot be read.
    """
    from clinimeta.client.certificate import Subject, certificate
    from clinimeta.client.enrol import Enrolment
    from clinimeta.client.hospital import policy_digest, policy_of
    from clinimeta.client.keys import identity
    from clinimeta.client.ledger_check import read
    from clinimeta.common.secagg.identity import fingerprint

    enrolment = Enrolment.of(home)
    subject = Subject(
        enrolment.site,
        fingerprint(identity(home, enrolment.site).public),
        enrolment.coordinator,
        policy_digest(policy_of(home)),
    )
    records, _ = read(home.ledger)
    return certificate(subject, records, _findings(home, receipts), at)


def entries_of(home: "Home") -> "list[tuple[int, Entry]]":
    """The records of the hospital's ledger with their numbers, as far as they can be read.

    Raises:
        LedgerFileError: there is none, or it cannot be read.
    """
    from clinimeta.client.ledger_check import entry_in, read

    records, _ = read(home.ledger)
    found = [(record.number, entry) for record in records if (entry := entry_in(record)) is not None]
    if len(found) < len(records):
        note = f"note: {len(records) - len(found)} records cannot be read: clinimeta site ledger verify"
        typer.echo(note, err=True)
    return found


def _findings(home: "Home", receipts: Path | None) -> "Findings":
    from clinimeta.client.enrol import Enrolment
    from clinimeta.client.keys import identity
    from clinimeta.client.ledger_check import read_receipts, verify

    enrolment = Enrolment.of(home)
    more = read_receipts(receipts) if receipts is not None else {}
    key = bytes.fromhex(enrolment.coordinator_key)
    return verify(home.ledger, identity(home, enrolment.site).public, key, more)
