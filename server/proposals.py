"""Plans that hospitals are asked about before a run, and what each would answer: a dry run of policies.

A proposal is for the approved hospitals. A verdict is what a policy says today; it binds nobody.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from clinimeta.common.errors import UserError
from clinimeta.common.plan import Plan
from clinimeta.server import enrolment
from clinimeta.server.audit import By
from clinimeta.server.chronicle_tables import proposals, verdicts
from clinimeta.server.database import Database
from clinimeta.server.reasons import reason

LIFE = timedelta(days=14)
MOST = 20
"""So many proposals are open at once; older ones are no longer asked about."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hospital would answer to a plan, and when it said so; no reasons: it would answer."""

    site: str
    at: str
    reasons: tuple[str, ...]


def propose(database: Database, plan: Plan, who: By) -> None:
    """Ask the hospitals about a plan; again, if they were asked before."""
    now = enrolment.now().isoformat()
    values = {"plan": plan.digest, "study": plan.study, "content": plan.canonical(), "made_at": now}
    with database.change() as connection:
        statement = insert(proposals).values(**values)
        connection.execute(statement.on_conflict_do_update(index_elements=["plan"], set_={"made_at": now}))
        enrolment.record(connection, who, "proposed", plan.study, plan.digest)


def open_proposals(database: Database, now: datetime) -> list[str]:
    """Digests of the plans that are asked about, the newest first."""
    query = (
        sa.select(proposals.c.plan)
        .where(proposals.c.made_at >= (now - LIFE).isoformat())
        .order_by(proposals.c.made_at.desc())
        .limit(MOST)
    )
    return [row["plan"] for row in database.rows(query)]


def content_of(database: Database, plan: str) -> bytes | None:
    """A proposed plan's canonical bytes; None where it was not proposed."""
    rows = database.rows(sa.select(proposals.c.content).where(proposals.c.plan == plan))
    return bytes(rows[0]["content"]) if rows else None


def hear(database: Database, site: str, plan: str, codes: Sequence[str], now: datetime) -> None:
    """Keep what a hospital would answer; it replaces what it said before.

    Raises:
        UserError: nobody asked about this plan.
    """
    if content_of(database, plan) is None:
        raise UserError("nobody asked about this plan", found=plan)
    values = {"plan": plan, "site": site, "at": now.isoformat(), "codes": json.dumps(list(codes))}
    with database.change() as connection:
        statement = insert(verdicts).values(**values)
        said = {name: values[name] for name in ("at", "codes")}
        connection.execute(statement.on_conflict_do_update(index_elements=["plan", "site"], set_=said))


def verdicts_on(connection: sa.Connection, plan: str) -> dict[str, Verdict]:
    """What hospitals said of a plan, by name."""
    query = sa.select(verdicts).where(verdicts.c.plan == plan).order_by(verdicts.c.site)
    return {
        row["site"]: Verdict(
            row["site"], row["at"], tuple(reason(f"refused: {code}")[1] for code in json.loads(row["codes"]))
        )
        for row in connection.execute(query).mappings()
    }
