"""Federation: who takes part, who is there, what each offers; one hospital by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from clinimeta.common.web.drawing import Plot, presence
from clinimeta.common.web.roles import May, Who
from clinimeta.common.web.shell import Screen
from clinimeta.server import enrolment, views
from clinimeta.server.chronicle_tables import sightings
from clinimeta.server.console.base import Console, require_sees

UPTIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A hospital in the list; `there` is when, in the last day, as parts of it from 0 to 1."""

    line: views.SiteLine
    there: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Federation:
    """Hospitals by name, from one on; `next_after` begins the next page."""

    sites: tuple[SiteRow, ...]
    by_state: dict[str, int]
    present: int
    next_after: str


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital: itself, when it was there in the last day, its last answers."""

    line: views.SiteLine
    there: tuple[tuple[float, float], ...]
    answers: tuple[views.AnswerLine, ...]


def federation_screen(console: Console, who: Who, after: str = "") -> Federation:
    """A page of hospitals; a viewer sees the own one."""
    now = enrolment.now()
    with console.database.engine.connect() as connection:
        found = views.federation(connection, now, after=after)
        there = presences(connection, [one.name for one in found.sites], now - UPTIME)
    if not who.may(May.READ):
        own = tuple(one for one in found.sites if who.sees(one.name))
        found = views.Federation(own, {one.state: 1 for one in own}, sum(one.present for one in own))
    rows = tuple(SiteRow(one, _parts(there.get(one.name, ()), now)) for one in found.sites)
    more = len(found.sites) == views.PAGE
    return Federation(rows, found.by_state, found.present, found.sites[-1].name if more else "")


def site_screen(console: Console, who: Who, site: str) -> Hospital:
    """One hospital."""
    require_sees(who, site)
    now = enrolment.now()
    with console.database.engine.connect() as connection:
        found = views.site(connection, site, now)
        there = presences(connection, [site], now - UPTIME)
    return Hospital(found.line, _parts(there.get(site, ()), now), found.answers)


def presences(
    connection: sa.Connection, names: Sequence[str], since: datetime
) -> dict[str, tuple[tuple[datetime, datetime], ...]]:
    """When each of these hospitals was there since a time; one query."""
    query = (
        sa.select(sightings.c.site, sightings.c.since, sightings.c.until)
        .where(sightings.c.site.in_(names), sightings.c.until >= since.isoformat())
        .order_by(sightings.c.site, sightings.c.until)
    )
    found: dict[str, list[tuple[datetime, datetime]]] = {}
    for name, begun, ended in connection.execute(query):
        found.setdefault(name, []).append((datetime.fromisoformat(begun), datetime.fromisoformat(ended)))
    return {name: tuple(intervals) for name, intervals in found.items()}


def _parts(
    intervals: tuple[tuple[datetime, datetime], ...], now: datetime
) -> tuple[tuple[float, float], ...]:
    since = now - UPTIME
    return tuple(
        (max(0.0, (begun - since) / UPTIME), min(1.0, (ended - since) / UPTIME)) for begun, ended in intervals
    )


def _strips(view: Federation) -> dict[str, Plot]:
    return {
        row.line.name: presence(f"p{number}", f"{row.line.name}, last 24 hours", row.there)
        for number, row in enumerate(view.sites)
    }


def _strip(view: Hospital) -> dict[str, Any]:
    return {"presence": presence("presence", f"{view.line.name}, last 24 hours", view.there)}


SCREENS = (
    Screen("/", May.READ_OWN, "Federation", federation_screen, "federation.html", nav=True, draw=_strips),
    Screen("/sites/{site}", May.READ_OWN, "Hospital", site_screen, "site.html", draw=_strip),
)
