"""What the console's screens show of an experiment's rounds: queries, each one look, in pages."""

import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from clinimeta.server.chronicle_tables import answers, attempts, rounds
from clinimeta.server.database import experiments
from clinimeta.server.views import AnswerLine, answer_lines

PAGE = 200


@dataclass(frozen=True, slots=True)
class RoundLine:
    """A round. `ended` is None while it goes on; `why` says what ended it where it was not done.

    `change` only grows: whoever has all up to N asks for those since N.
    """

    experiment: str
    round: int
    training: str
    started: str
    ended: str | None
    cohort: int
    accepted: int
    metrics: dict[str, float | None]
    gradient_norm: float | None
    bytes_down: int
    bytes_up: int
    seconds: float | None
    rollbacks: int
    epsilon: float | None
    why: str
    change: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one metric over the hospitals of a round: least, quartiles, most, and of how many."""

    round: int
    least: float
    lower: float
    median: float
    upper: float
    most: float
    sites: int


@dataclass(frozen=True, slots=True)
class AttemptLine:
    """An attempt of secure aggregation. `lost`: phase -> hospital -> why; `phases`: its beginning and end.

    `survivors` is None where no sum was opened; `aborted` says why. `threshold` is None before it is known.
    """

    experiment: str
    round: int
    attempt: int
    name: str
    begun: str
    ended: str | None
    asked: int
    threshold: int | None
    survivors: int | None
    aborted: str
    lost: dict[str, dict[str, str]]
    phases: dict[str, tuple[str, str | None]]
    change: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """One round: itself (None where it has not begun), its attempts, and a page of its answers."""

    round: RoundLine | None
    attempts: tuple[AttemptLine, ...]
    answers: tuple[AnswerLine, ...]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a study's noisy sums have cost each patient after a round of one of its experiments."""

    experiment: str
    round: int
    epsilon: float


def rounds_since(
    connection: sa.Connection, experiment: str, since: int = 0, *, limit: int = PAGE
) -> tuple[RoundLine, ...]:
    """The rounds that changed after change number `since`, in the order in which they did.

    A round that is done again comes again; whoever keeps them, keeps them by number.
    """
    query = (
        sa.select(rounds)
        .where(rounds.c.experiment == experiment, rounds.c.change > since)
        .order_by(rounds.c.change)
        .limit(limit)
    )
    return tuple(_round(dict(row)) for row in connection.execute(query).mappings())


def rounds_after(
    connection: sa.Connection, experiment: str, after: int = 0, *, limit: int = PAGE
) -> tuple[RoundLine, ...]:
    """The rounds after one, by number."""
    return tuple(_round(row) for row in _rows(connection, experiment, after, limit))


def spread(
    connection: sa.Connection,
    experiment: str,
    metric: str = "query_loss",
    *,
    after: int = 0,
    limit: int = PAGE,
) -> tuple[Spread, ...]:
    """How a metric differs between hospitals, round by round; nothing of rounds where only sums were seen."""
    found = ((row["round"], json.loads(row["spread"])) for row in _rows(connection, experiment, after, limit))
    return tuple(Spread(number, *measured[metric]) for number, measured in found if metric in measured)


def timeline(
    connection: sa.Connection,
    experiment: str,
    number: int,
    *,
    after: tuple[int, str] = (0, ""),
    since: int = 0,
    limit: int = PAGE,
) -> Timeline:
    """A round, and its answers after one (attempt, hospital); with `since`, only what changed after that."""
    one = sa.select(rounds).where(rounds.c.experiment == experiment, rounds.c.round == number)
    row = connection.execute(one).mappings().first()
    asked = (
        sa.select(answers)
        .where(
            answers.c.experiment == experiment,
            answers.c.round == number,
            answers.c.change > since,
            sa.tuple_(answers.c.attempt, answers.c.site) > after,
        )
        .order_by(answers.c.attempt, answers.c.site)
        .limit(limit)
    )
    tried = _attempts(experiment).where(attempts.c.round == number, attempts.c.change > since).limit(limit)
    return Timeline(
        None if row is None else _round(dict(row)),
        tuple(_attempt(dict(each)) for each in connection.execute(tried).mappings()),
        answer_lines(connection, asked),
    )


def aggregation(
    connection: sa.Connection,
    experiment: str,
    *,
    after: tuple[int, int] = (0, 0),
    limit: int = PAGE,
) -> tuple[AttemptLine, ...]:
    """The attempts of secure aggregation after one (round, attempt)."""
    query = _attempts(experiment).where(sa.tuple_(attempts.c.round, attempts.c.attempt) > after).limit(limit)
    return tuple(_attempt(dict(row)) for row in connection.execute(query).mappings())


def privacy(
    connection: sa.Connection, study: str, *, after: tuple[str, int] = ("", 0), limit: int = PAGE
) -> tuple[Spent, ...]:
    """What the experiments of a study have spent, round by round, after one (experiment, round)."""
    of_study = sa.select(experiments.c.id).where(experiments.c.study == study)
    query = (
        sa.select(rounds.c.experiment, rounds.c.round, rounds.c.epsilon)
        .where(
            rounds.c.experiment.in_(of_study),
            rounds.c.epsilon.is_not(None),
            sa.tuple_(rounds.c.experiment, rounds.c.round) > after,
        )
        .order_by(rounds.c.experiment, rounds.c.round)
        .limit(limit)
    )
    return tuple(Spent(**row) for row in connection.execute(query).mappings())


def _rows(connection: sa.Connection, experiment: str, after: int, limit: int) -> list[dict[str, Any]]:
    query = (
        sa.select(rounds)
        .where(rounds.c.experiment == experiment, rounds.c.round > after)
        .order_by(rounds.c.round)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _round(row: dict[str, Any]) -> RoundLine:
    kept = {name: value for name, value in row.items() if name != "spread"}
    return RoundLine(**{**kept, "metrics": json.loads(row["metrics"])})


def _attempts(experiment: str) -> "sa.Select[tuple[Any, ...]]":
    return (
        sa.select(attempts)
        .where(attempts.c.experiment == experiment)
        .order_by(attempts.c.round, attempts.c.attempt)
    )


def _attempt(row: dict[str, Any]) -> AttemptLine:
    phases = {phase: (begun, ended) for phase, (begun, ended) in json.loads(row["phases"]).items()}
    return AttemptLine(**{**row, "lost": json.loads(row["lost"]), "phases": phases})
