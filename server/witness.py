"""Counter-sign hospitals' ledgers: each answer brings a checkpoint, and gets a receipt that is kept.

A ledger belongs to a key: a hospital whose keys were rotated begins a new one.
"""

import re

import sqlalchemy as sa
import structlog

from clinimeta.common.errors import UserError
from clinimeta.common.receipts import Checkpoint, receipt
from clinimeta.common.secagg.identity import Identity, fingerprint
from clinimeta.server import enrolment
from clinimeta.server.database import Database, checkpoints

log = structlog.get_logger()


def witness(database: Database, own: Identity, site: str, site_key: bytes, made: Checkpoint) -> bool:
    """Keep a checkpoint and the receipt for it; False (and an event) where it contradicts an earlier one.

    Answers may arrive in another order than they were written down in, so a lower number is no contradiction.
    """
    with database.change() as connection:
        known = connection.execute(
            sa.select(checkpoints.c.checkpoint).where(
                checkpoints.c.site == site,
                checkpoints.c.key == site_key,
                checkpoints.c.number == made.number,
            )
        ).first()
        if known is not None:
            same = Checkpoint.from_bytes(known.checkpoint) == made
            if not same:
                log.warning("a hospital's ledger contradicts what it sent before", site=site)
                enrolment.record(connection, site, "ledger rewritten", site, f"record {made.number}")
            return same
        connection.execute(
            checkpoints.insert().values(
                site=site,
                key=site_key,
                number=made.number,
                checkpoint=made.to_bytes(),
                receipt=receipt(made, site_key, own),
                at=enrolment.now().isoformat(),
            )
        )
    return True


def newest(database: Database, site: str, site_key: bytes) -> tuple[Checkpoint, bytes] | None:
    """The last checkpoint of a hospital's ledger, and the receipt for it."""
    found = all_of(database, site, site_key)
    return found[-1] if found else None


def all_of(database: Database, site: str, site_key: bytes) -> list[tuple[Checkpoint, bytes]]:
    """All receipts for a hospital's ledger, in order: what it can check it against after a loss."""
    rows = database.rows(
        sa.select(checkpoints)
        .where(checkpoints.c.site == site, checkpoints.c.key == site_key)
        .order_by(checkpoints.c.number)
    )
    return [(Checkpoint.from_bytes(row["checkpoint"]), row["receipt"]) for row in rows]


def former_key(database: Database, site: str, text: str) -> bytes:
    """The key of one of a hospital's ledgers, by its fingerprint (groups of digits).

    Raises:
        UserError: it has no ledger under such a key.
    """
    rows = database.rows(sa.select(checkpoints.c.key).where(checkpoints.c.site == site).distinct())
    known = {fingerprint(key): key for key in (bytes(row["key"]) for row in rows)}
    asked = " ".join(re.findall(r"\d+", text))
    if asked not in known:
        raise UserError(
            "this hospital has no ledger under such a key",
            found=text,
            expected="; ".join(known) or "no ledger at all",
            remedy="the folders under former/ at the hospital have the fingerprints as names",
        )
    return known[asked]
