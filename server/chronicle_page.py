"""One write of the chronicle: what one piece of news changes, in one transaction, under one number."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from clinimeta.server.chronicle_tables import answers, attempts, changes, openings, rounds
from clinimeta.server.masked_attempts import Attempt
from clinimeta.server.training import RoundSummary

Row: TypeAlias = dict[str, Any]
"""Part of a row, by its columns' names."""

UNKNOWN = "its end was not written down"


class Page:
    """What one piece of news changes, in one transaction, under one number."""

    def __init__(self, connection: sa.Connection, experiment: str, now: datetime) -> None:
        self._connection, self._experiment = connection, experiment
        self.now, self.at = now, now.isoformat()
        bump = changes.update().values(number=changes.c.number + 1).returning(changes.c.number)
        self._change = connection.execute(bump).scalar_one()

    def forget_rounds_after(self, number: int) -> None:
        """Those are done again; of earlier ones whatever is open stays so no longer."""
        for one in (rounds, answers, attempts):
            self._connection.execute(
                one.delete().where(one.c.experiment == self._experiment, one.c.round > number)
            )
        self.close(UNKNOWN)

    def begin_round(self, number: int, training: str, cohort: int) -> None:
        """A round begins."""
        self._close(rounds, "why", UNKNOWN)
        values = {"ended": None, "why": "", "accepted": 0}
        row = {"round": number, "training": training, "started": self.at, "cohort": cohort}
        self._put(rounds, [row | values])

    def accept(self, number: int, accepted: int) -> None:
        """So many hospitals count."""
        self._connection.execute(
            rounds.update()
            .where(rounds.c.experiment == self._experiment, rounds.c.round == number)
            .values(accepted=accepted, change=self._change)
        )

    def end_round(self, summary: RoundSummary, epsilon: float | None) -> None:
        """A round is done."""
        row = {
            "round": summary.round,
            "ended": self.at,
            "cohort": summary.cohort,
            "accepted": summary.accepted,
            "metrics": as_json(summary.metrics),
            "spread": json.dumps(spread_of(summary.by_site)),
            "gradient_norm": _finite(summary.gradient_norm),
            "bytes_down": summary.bytes_down,
            "bytes_up": summary.bytes_up,
            "seconds": summary.seconds,
            "rollbacks": summary.rollbacks,
            "epsilon": epsilon,
        }
        self._put(rounds, [row], {"training": summary.training, "started": self.at})

    def close(self, why: str) -> None:
        """Whatever is open has ended, not as it should."""
        self._close(rounds, "why", why)
        self._close(attempts, "aborted", why)

    def _close(self, one: sa.Table, said: str, why: str) -> None:
        self._connection.execute(
            one.update()
            .where(one.c.experiment == self._experiment, one.c.ended.is_(None))
            .values({said: why, "ended": self.at, "change": self._change})
        )

    def ask(self, rows: Sequence[Row]) -> None:
        """Hospitals are asked, or something is added to what they were asked: what they have said stays."""
        self._put(answers, rows, {"phase": "asked", "asked": self.at, "at": self.at})
        self._touch(rows)

    def note(self, rows: Sequence[Row], phase: str, code: str = "", sentence: str = "") -> None:
        """Hospitals have come so far."""
        said = {"phase": phase, "at": self.at, "code": code, "sentence": sentence}
        self._put(answers, [row | said for row in rows], {"asked": self.at})
        self._touch(rows)

    def attempt(self, one: Attempt) -> None:
        """How an attempt stands."""
        row = {
            "round": one.key.round,
            "attempt": one.number,
            "name": one.key.run,
            "begun": one.begun,
            "ended": one.ended,
            "asked": one.asked,
            "threshold": one.threshold,
            "survivors": one.survivors,
            "aborted": one.aborted,
            "lost": json.dumps(one.lost),
            "phases": json.dumps(one.phases),
        }
        self._put(attempts, [row])
        self._touch([row])

    def open(self, number: int, name: str) -> None:
        """A noisy sum is seen."""
        row = {"experiment": self._experiment, "round": number, "name": name, "at": self.at}
        self._connection.execute(insert(openings).values(row).on_conflict_do_nothing())

    def opened(self) -> int:
        """How many were seen."""
        query = sa.select(sa.func.count()).where(openings.c.experiment == self._experiment)
        return int(self._connection.execute(query).scalar_one())

    def _touch(self, rows: Sequence[Row]) -> None:
        """The rounds that these rows are about are news, too."""
        for number in {row["round"] for row in rows}:
            self._connection.execute(
                rounds.update()
                .where(rounds.c.experiment == self._experiment, rounds.c.round == number)
                .values(change=self._change)
            )

    def _put(self, into: sa.Table, rows: Sequence[Row], first: Row | None = None) -> None:
        """Make rows, all of the same columns, or change them; `first` is for new ones. Bytes add up."""
        if not rows:
            return
        new = {"experiment": self._experiment, "change": self._change}
        statement = insert(into)
        keys = [column.name for column in into.primary_key]
        changed = {
            name: into.c[name] + statement.excluded[name]
            if into is answers and name.startswith("bytes_")
            else statement.excluded[name]
            for name in (new | rows[0])
            if name not in keys
        }
        statement = statement.on_conflict_do_update(index_elements=keys, set_=changed)
        self._connection.execute(statement, [new | row | (first or {}) for row in rows])


def spread_of(by_site: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Of each metric over hospitals: least, lower quartile, median, upper quartile, most, and how many.

    >>> spread_of({"ulm": {"query_loss": 1.0}, "graz": {"query_loss": 3.0}})
    {'query_loss': [1.0, 1.5, 2.0, 2.5, 3.0, 2]}
    """
    found: dict[str, list[float]] = {}
    for name in sorted({name for measured in by_site.values() for name in measured}):
        values = [m[name] for m in by_site.values() if name in m and math.isfinite(m[name])]
        if values:
            quartiles = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
            found[name] = [min(values), *quartiles, max(values), len(values)]
    return found


def as_json(values: Mapping[str, float]) -> str:
    """Numbers by name; what is not finite becomes null."""
    return json.dumps({name: _finite(value) for name, value in values.items()})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
