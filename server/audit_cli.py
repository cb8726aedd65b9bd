"""`clinimeta coordinator events` and `invitations`: who did what, and who may still come."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from clinimeta.common.errors import UserError
from clinimeta.server.cli_parts import HERE, HomeOption, Json, opened, table, who


def events(
    home: HomeOption = HERE,
    search: Annotated[str, typer.Option(help="Only events with these words, or their beginnings.")] = "",
    last: Annotated[int, typer.Option("--last", min=1, help="How many of the newest.")] = 20,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that none was changed or taken out since.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List who did what to which hospital or experiment, the newest last; or check that record.

    --verify prints the newest event's number and hash. Keep them elsewhere: who has them sees, too, when
    events were taken off the end.

    Example:
        clinimeta coordinator events --last 50
    """
    from clinimeta.server.audit import audit, head, verify_events

    _, database = opened(home)
    if verify:
        if (broken := verify_events(database)) is not None:
            raise UserError(
                "the record of events was changed",
                where=str(database.engine.url.database),
                found=f"event {broken} does not fit those before it",
                remedy="compare with a backup: events from there on may be missing, changed or added",
            )
        with database.engine.connect() as connection:
            number, digest = head(connection)
        if as_json:
            typer.echo(json.dumps({"sound": True, "events": number, "head": digest}))
        else:
            typer.echo(f"sound: {number} events, the last has SHA-256 {digest}")
        return
    with database.engine.connect() as connection:
        found = audit(connection, search, limit=last)
    rows = [asdict(event) for event in reversed(found)]
    if not as_json:
        rows = [{name: value for name, value in row.items() if name != "hash"} for row in rows]
    table(rows, as_json, "no event like that is recorded" if search else "nothing has happened yet")


def invitations(
    home: HomeOption = HERE,
    withdraw: Annotated[str, typer.Option("--withdraw", help="Take this hospital's back.")] = "",
    as_json: Json = False,
) -> None:
    """List the invitations that can still be used, or take one back: its token is then worth nothing.

    Example:
        clinimeta coordinator invitations --withdraw "Hospital A"
    """
    from clinimeta.server.invitations import open_invitations
    from clinimeta.server.invitations import withdraw as take_back

    _, database = opened(home)
    if withdraw:
        gone = take_back(database, withdraw, who())
        typer.echo(json.dumps({"site": withdraw, "withdrawn": gone}) if as_json else f"taken back: {gone}")
        return
    rows = [asdict(invitation) for invitation in open_invitations(database)]
    table(rows, as_json, "no invitation is open: clinimeta coordinator invite NAME")
