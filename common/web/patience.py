"""Wrong passwords cost time: for the name that was tried, and for the address that tried it; kept on disk."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from clinimeta.common.errors import UserError
from clinimeta.common.web.account_tables import tries

FREE_TRIES, LONGEST_WAIT = 5, timedelta(minutes=15)
"""So many wrong passwords cost nothing; each further one doubles the wait, from a second on."""


def require(connection: sa.Connection, about: Sequence[str], now: datetime) -> None:
    """Do nothing, if none of these has to wait.

    Raises:
        UserError: one has; how long.
    """
    found = connection.execute(sa.select(tries.c.not_before).where(tries.c.about.in_(about))).scalars()
    until = max((datetime.fromisoformat(text) for text in found), default=now)
    wait = (until - now).total_seconds()
    if wait > 0:
        raise UserError("too many wrong passwords", remedy=f"try again in {wait:.0f} seconds")


def count(connection: sa.Connection, about: Sequence[str], now: datetime) -> None:
    """One more wrong password of each of these."""
    for one in about:
        row = connection.execute(sa.select(tries).where(tries.c.about == one)).one_or_none()
        failures = 1 if row is None else row.failures + 1
        over = failures - FREE_TRIES
        wait = min(timedelta(seconds=2.0 ** min(over, 20)), LONGEST_WAIT) if over > 0 else timedelta(0)
        values = {"failures": failures, "not_before": (now + wait).isoformat()}
        if row is None:
            connection.execute(tries.insert().values(about=one, **values))
        else:
            connection.execute(tries.update().where(tries.c.about == one).values(**values))


def forget(connection: sa.Connection, about: str) -> None:
    """The right password came."""
    connection.execute(tries.delete().where(tries.c.about == about))
