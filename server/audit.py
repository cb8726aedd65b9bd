"""The record of events, each chained to the one before it: none can be changed or taken out unseen.

What is not promised: somebody who can write the database can also make the whole chain anew, or take events
off its end. Whoever keeps `head` elsewhere sees that, too.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sqlalchemy as sa

from clinimeta.server.database import Database, events

START = bytes(32)
FIELDS = ("number", "at", "who", "role", "what", "about", "detail", "reason")
PAGE = 1000
LAST = 2**63 - 1
"""No number is larger."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, in which role, and why."""

    name: str
    role: str = "operator"
    reason: str = ""


By: TypeAlias = str | Actor
"""Who does something; a name alone is an operator's, without a reason."""


@dataclass(frozen=True, slots=True)
class Event:
    """Who did what to which hospital or experiment, when (UTC), in which role and why."""

    number: int
    at: str
    who: str
    role: str
    what: str
    about: str
    detail: str
    reason: str
    hash: str


def chained(before: bytes, event: Mapping[str, Any]) -> bytes:
    """An event's SHA-256 over the one before it, 32 bytes."""
    text = json.dumps([event[name] for name in FIELDS], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(b"clinimeta event 1\0" + before + text.encode()).digest()


def append(connection: sa.Connection, values: Mapping[str, str]) -> None:
    """One more event at the chain's end; call it within `Database.change`, so that nobody else does."""
    last = connection.execute(
        sa.select(events.c.number, events.c.hash).order_by(events.c.number.desc()).limit(1)
    ).first()
    event = {**values, "number": 1 if last is None else last.number + 1}
    before = START if last is None else last.hash
    connection.execute(events.insert().values(**event, hash=chained(before, event)))


def verify_events(database: Database) -> int | None:
    """The number of the first event that does not fit the chain; None where all do."""
    before = START
    for number, row in enumerate(_all(database), start=1):
        if row["number"] != number or row["hash"] != chained(before, row):
            return number
        before = row["hash"]
    return None


def head(connection: sa.Connection) -> tuple[int, str]:
    """The newest event's number and hash: what to keep elsewhere."""
    last = connection.execute(
        sa.select(events.c.number, events.c.hash).order_by(events.c.number.desc()).limit(1)
    ).first()
    return (0, START.hex()) if last is None else (last.number, last.hash.hex())


def audit(
    connection: sa.Connection, search: str = "", *, before: int = LAST, limit: int = 50
) -> tuple[Event, ...]:
    """The newest events first; with `search`, those that have all its words (or their beginnings).

    A page goes on `before` the last number of the page before it.
    """
    query = sa.select(events).where(events.c.number < before).order_by(events.c.number.desc()).limit(limit)
    if words := [word for word in search.replace('"', " ").replace("\0", " ").split() if word]:
        wanted = " ".join(f'"{word}"*' for word in words)
        found = sa.text("SELECT rowid FROM events_words WHERE events_words MATCH :wanted")
        query = query.where(events.c.number.in_(found.bindparams(wanted=wanted)))
    return tuple(Event(**{**row, "hash": row["hash"].hex()}) for row in connection.execute(query).mappings())


def _all(database: Database) -> Iterator[dict[str, Any]]:
    after = 0
    while rows := database.rows(
        sa.select(events).where(events.c.number > after).order_by(events.c.number).limit(PAGE)
    ):
        yield from rows
        after = rows[-1]["number"]
