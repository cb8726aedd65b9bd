"""Invitations that hospitals have not used yet: list them, or take them back."""

from dataclasses import dataclass

import sqlalchemy as sa

from clinimeta.common.errors import UserError, nearest
from clinimeta.server import enrolment
from clinimeta.server.audit import By
from clinimeta.server.database import Database, invitations


@dataclass(frozen=True, slots=True)
class Invitation:
    """A token that can still be used. `purpose`: enrol, or rotate keys."""

    site: str
    purpose: str
    automatic: bool
    made_at: str
    expires_at: str


def open_invitations(database: Database) -> list[Invitation]:
    """Those that are neither used nor expired, by hospital."""
    query = (
        sa.select(invitations)
        .where(invitations.c.used_at.is_(None), invitations.c.expires_at >= enrolment.now().isoformat())
        .order_by(invitations.c.site, invitations.c.made_at)
    )
    return [
        Invitation(row["site"], row["purpose"], row["automatic"], row["made_at"], row["expires_at"])
        for row in database.rows(query)
    ]


def withdraw(database: Database, site: str, who: By) -> int:
    """Make a hospital's open invitations useless, as if they had never been made; says how many.

    Raises:
        UserError: it has none.
    """
    with database.change() as connection:
        gone = connection.execute(
            invitations.delete().where(
                invitations.c.site == site,
                invitations.c.used_at.is_(None),
                invitations.c.expires_at >= enrolment.now().isoformat(),
            )
        ).rowcount
        if gone:
            enrolment.record(connection, who, "withdrew", site, f"invitations: {gone}")
    if not gone:
        names = {invitation.site for invitation in open_invitations(database)}
        raise UserError(
            "this hospital has no open invitation",
            found=repr(site),
            expected=nearest(site, names) if names else "none is open",
            remedy="clinimeta coordinator invitations",
        )
    return gone
