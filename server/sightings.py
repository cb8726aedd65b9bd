"""When hospitals were there, by the signed questions of their daemons, as intervals.

A hospital's daemon asks how it stands every ten seconds or so (`/v1/enrolment/status`); that it did is what
counts as having been there. Its last contact is the end of its last interval, as exact as `EVERY`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from clinimeta.common.records import Introduction
from clinimeta.server import enrolment
from clinimeta.server.chronicle_tables import sightings
from clinimeta.server.database import Database

log = structlog.get_logger()

EVERY = timedelta(seconds=9)
"""How often a hospital's presence is written at most; its daemon asks every 10 s where all is well."""
GONE = timedelta(seconds=30)
"""Unseen for longer than this, a hospital is gone."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a hospital says of itself; None where it was not said, which is no change."""

    standing: str
    software: str | None = None
    rows_from: int | None = None
    rows_to: int | None = None
    policy: str | None = None
    budget_left: float | None = None


@dataclass(frozen=True, slots=True)
class Presence:
    """From when until when a hospital was there without a break, and said the same of itself."""

    since: datetime
    until: datetime
    facts: Facts


def known(before: Facts, said: Facts) -> Facts:
    """What is known after something was said.

    >>> known(Facts("approved", "clinimeta 1"), Facts("revoked")).software
    'clinimeta 1'
    """
    fields = ("software", "rows_from", "rows_to", "policy", "budget_left")
    new = {name: value for name in fields if (value := getattr(said, name)) is not None}
    return replace(before, standing=said.standing, **new)


def seen(last: Presence | None, at: datetime, said: Facts) -> tuple[Presence, bool]:
    """A hospital's newest interval after a sighting, and whether it is another one than `last`.

    A sighting that comes late lies in the interval that is there, and changes nothing.
    """
    if last is None:
        return Presence(at, at, said), True
    if at <= last.until:
        return last, False
    facts = known(last.facts, said)
    if at - last.until > GONE or facts != last.facts:
        return Presence(at, at, facts), True
    return replace(last, until=at), False


def see(connection: sa.Connection, site: str, at: datetime, said: Facts) -> None:
    """Write a sighting down; call it within `Database.change`."""
    query = sa.select(sightings).where(sightings.c.site == site).order_by(sightings.c.until.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    now, is_new = seen(None if row is None else presence_of(dict(row)), at, said)
    if is_new:
        facts = {name: getattr(now.facts, name) for name in Facts.__slots__}
        values = {"site": site, "since": now.since.isoformat(), "until": now.until.isoformat()}
        connection.execute(sightings.insert().values(**values, **facts))
    else:
        assert row is not None
        connection.execute(
            sightings.update().where(sightings.c.number == row["number"]).values(until=now.until.isoformat())
        )


def presence_of(row: Mapping[str, object]) -> Presence:
    """An interval as its row has it."""
    facts = Facts(**{name: row[name] for name in Facts.__slots__})  # type: ignore[arg-type]
    return Presence(
        datetime.fromisoformat(str(row["since"])), datetime.fromisoformat(str(row["until"])), facts
    )


@dataclass(slots=True)
class Lookout:
    """Writes sightings, few enough of each hospital; a write that fails is logged and forgotten."""

    database: Database
    clock: Callable[[], datetime] = enrolment.now
    _written: dict[str, tuple[datetime, Facts]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, site: str, said: Facts) -> None:
        """A hospital was heard of just now."""
        now = self.clock()
        with self._lock:
            last = self._written.get(site)
            if last is not None and last[1] == said and timedelta(0) <= now - last[0] < EVERY:
                return
            self._written[site] = (now, said)
        try:
            with self.database.change() as connection:
                see(connection, site, now, said)
        except SQLAlchemyError as error:
            log.warning("a sighting could not be written", site=site, error=type(error).__name__)


def introduced(lookout: Lookout, said: Mapping[str, Introduction]) -> None:
    """Hospitals said who they are, as they do when an experiment begins."""
    for site, one in said.items():
        software = "".join(letter for letter in one.software if letter.isprintable())[:200]
        lookout.saw(site, Facts("approved", software, one.rows_from, one.rows_to))
