"""What the console's screens show of the federation and of its experiments: queries, each one look.

Pure functions of a connection. Lists come in pages; the next one begins after (or before) the last entry
of this one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from clinimeta.common.errors import UserError
from clinimeta.server.chronicle_tables import answers, rounds, sightings
from clinimeta.server.database import experiments, sites
from clinimeta.server.sightings import GONE, Presence, presence_of

PAGE = 200


@dataclass(frozen=True, slots=True)
class SiteLine:
    """A hospital in the list. `last_contact` is None where it was never heard of; `present`: just now."""

    name: str
    state: str
    software: str
    enrolled_at: str
    last_contact: str | None
    present: bool
    rows_from: int | None
    rows_to: int | None
    policy: str | None
    budget_left: float | None


@dataclass(frozen=True, slots=True)
class Federation:
    """A page of hospitals by name; `by_state` and `present` (of the approved) count all of them."""

    sites: tuple[SiteLine, ...]
    by_state: dict[str, int]
    present: int


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """How a hospital was asked once, and what came of it. `metrics` is empty where only sums were seen."""

    experiment: str
    round: int
    attempt: int
    site: str
    phase: str
    asked: str
    at: str
    seconds: float | None
    bytes_down: int
    bytes_up: int
    code: str
    sentence: str
    metrics: dict[str, float | None]
    change: int


@dataclass(frozen=True, slots=True)
class SiteView:
    """A hospital: what it is, when it was there (newest first), and what it was asked last."""

    line: SiteLine
    presence: tuple[Presence, ...]
    answers: tuple[AnswerLine, ...]


@dataclass(frozen=True, slots=True)
class RunLine:
    """An experiment in the list, with its last round that ended well, where there is one."""

    id: str
    study: str
    wanted: str
    state: str
    detail: str
    participants: tuple[str, ...]
    round: int
    rounds: int
    made_at: str
    changed_at: str
    submissions: int
    metrics: dict[str, float | None]
    epsilon: float | None


def federation(connection: sa.Connection, now: datetime, *, after: str = "", limit: int = PAGE) -> Federation:
    """The hospitals after one, by name, and how many there are in all."""
    page = _lines().where(sites.c.name > after).order_by(sites.c.name).limit(limit)
    rows = connection.execute(page).mappings().all()
    states = sa.select(sites.c.state, sa.func.count()).group_by(sites.c.state)
    counts = {str(state): int(number) for state, number in connection.execute(states).all()}
    present = (
        sa.select(sa.func.count(sa.distinct(sightings.c.site)))
        .where(sightings.c.until >= (now - GONE).isoformat(), sightings.c.site == sites.c.name)
        .where(sites.c.state == "approved")
    )
    here = int(connection.execute(present).scalar_one())
    return Federation(tuple(_line(dict(row), now) for row in rows), counts, here)


def site(
    connection: sa.Connection, name: str, now: datetime, *, before: str = "~", limit: int = 50
) -> SiteView:
    """A hospital; intervals and answers from `before` this time on back.

    Raises:
        UserError: none of this name is known.
    """
    row = connection.execute(_lines().where(sites.c.name == name)).mappings().first()
    if row is None:
        raise UserError(
            "no hospital of this name is enrolled", found=repr(name), remedy="clinimeta coordinator list"
        )
    there = (
        sa.select(sightings)
        .where(sightings.c.site == name, sightings.c.until < before)
        .order_by(sightings.c.until.desc())
        .limit(limit)
    )
    asked = (
        sa.select(answers)
        .where(answers.c.site == name, answers.c.asked < before)
        .order_by(answers.c.asked.desc())
        .limit(limit)
    )
    return SiteView(
        _line(dict(row), now),
        tuple(presence_of(dict(one)) for one in connection.execute(there).mappings()),
        answer_lines(connection, asked),
    )


def runs(
    connection: sa.Connection, *, state: str = "", study: str = "", before: str = "~", limit: int = 50
) -> tuple[RunLine, ...]:
    """The experiments made before a time, the newest first; those in a state, or of a study, where named."""
    query = _runs().where(experiments.c.made_at < before).order_by(experiments.c.made_at.desc()).limit(limit)
    if state:
        query = query.where(experiments.c.state == state)
    if study:
        query = query.where(experiments.c.study == study)
    return tuple(_run(dict(row)) for row in connection.execute(query).mappings())


def run(connection: sa.Connection, name: str) -> RunLine:
    """An experiment.

    Raises:
        UserError: there is none of this id.
    """
    row = connection.execute(_runs().where(experiments.c.id == name)).mappings().first()
    if row is None:
        raise UserError("there is no such experiment", found=repr(name), remedy="clinimeta list")
    return _run(dict(row))


def answer_lines(connection: sa.Connection, query: "sa.Select[tuple[object, ...]]") -> tuple[AnswerLine, ...]:
    """Answers as a query finds them."""
    found = (dict(row) for row in connection.execute(query).mappings())
    return tuple(AnswerLine(**{**row, "metrics": json.loads(row["metrics"] or "{}")}) for row in found)


def _lines() -> "sa.Select[tuple[object, ...]]":
    """Each hospital with its newest interval."""
    other = sightings.alias("other")
    newest = (
        sa.select(other.c.number)
        .where(other.c.site == sites.c.name)
        .order_by(other.c.until.desc())
        .limit(1)
        .scalar_subquery()
    )
    told = ("software", "rows_from", "rows_to", "policy", "budget_left", "until")
    return sa.select(
        sites.c.name,
        sites.c.state,
        sites.c.enrolled_at,
        sites.c.software.label("enrolled_with"),
        *(sightings.c[name] for name in told),
    ).select_from(sites.outerjoin(sightings, sightings.c.number == newest))


def _line(row: dict[str, object], now: datetime) -> SiteLine:
    until, software, first = row.pop("until"), row.pop("software"), row.pop("enrolled_with")
    present = until is not None and now - datetime.fromisoformat(str(until)) <= GONE
    return SiteLine(
        **row,  # type: ignore[arg-type]
        software=str(software or first),
        last_contact=None if until is None else str(until),
        present=present,
    )


def _runs() -> "sa.Select[tuple[object, ...]]":
    """Each experiment with its newest round that was done."""
    other = rounds.alias("other")
    newest = (
        sa.select(other.c.round)
        .where(other.c.experiment == experiments.c.id, other.c.seconds.is_not(None))
        .order_by(other.c.round.desc())
        .limit(1)
        .scalar_subquery()
    )
    on = (rounds.c.experiment == experiments.c.id) & (rounds.c.round == newest)
    left_out = ("flower_run", "worker")
    return sa.select(
        *(column for column in experiments.c if column.name not in left_out),
        rounds.c.metrics,
        rounds.c.epsilon,
    ).select_from(experiments.outerjoin(rounds, on))


def _run(row: dict[str, str]) -> RunLine:
    participants: Sequence[str] = json.loads(row["participants"])
    metrics = json.loads(row["metrics"] or "{}")
    return RunLine(**{**row, "participants": tuple(participants), "metrics": metrics})
