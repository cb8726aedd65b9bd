"""From what happened to a patient, and when, to one row: what FHIR files and OMOP tables have in common.

A source reads people and dated events; here a window and a choice among the events in it make a cell. Days
are compared as they are written, order is the order of instants (a time without an offset is taken as UTC).
A date without its day or month stands for its last day, so that nothing is used that may lie behind the
index. What has no time at all is left out wherever time matters.
"""

import re
from calendar import monthrange
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import Field

from clinimeta.client.sources.mapping import Columns, Scale, Translation, Values, scaled
from clinimeta.common.settings import Settings
from clinimeta.common.tasks.table import Records

Choice = Literal["last", "first", "mean", "min", "max", "any"]

_LARGEST = 300
"""The largest power of ten that a number may have: beyond it arithmetic leaves the finite numbers."""
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)([T ].+)?)?)?", flags=re.ASCII)


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was: the day as written, and the instant (UTC)."""

    day: date
    instant: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """One value of a patient, as a text cell, and when it was so, if that is known."""

    cell: str
    at: Moment | None

    def __repr__(self) -> str:
        """Nothing of it: it is a patient's."""
        return "Event(...)"


@dataclass(frozen=True, slots=True)
class Person:
    """One row to be: `key` tells people apart, `place` says where the person stands in the source."""

    key: str
    place: str
    born: date | None
    gender: str

    def __repr__(self) -> str:
        """The place only."""
        return f"Person({self.place!r})"


class Gender(Settings):
    """The administrative gender, as the source codes it."""

    kind: Literal["gender"] = "gender"


class Age(Settings):
    """Completed years at the index; a birth date without its day is taken in the middle of what is known."""

    kind: Literal["age"] = "age"


class Window(Settings):
    """Which of a patient's events count, and what is made of them.

    `before` is up to and with the day of the index, `after` later than it; unset, it is `before` where there
    is an index, else `ever`. `days` is how far from the index, at most.
    """

    choose: Choice = "last"
    when: Literal["ever", "before", "after"] | None = None
    days: Annotated[int, Ge(0)] | None = None

    def cell(self, events: Sequence[Event], index: date | None) -> str:
        """The cell of one patient; empty if nothing counts."""
        return chosen([event for event in events if self._counts(event, index)], self.choose)

    def _counts(self, event: Event, index: date | None) -> bool:
        if index is None or self.when == "ever":
            return True
        if event.at is None:
            return False
        ahead = (event.at.day - index).days
        in_time = ahead > 0 if self.when == "after" else ahead <= 0
        return in_time and (self.days is None or abs(ahead) <= self.days)


class Died(Window):
    """1 if the source knows of the patient's death, else 0."""

    kind: Literal["death"] = "death"
    choose: Literal["any"] = "any"


class Timeline(Settings):
    """What the sources of dated events are all told.

    `index` is one day for everybody, or `index_at` names a column of `take`, whose chosen event's day it is;
    who has no such event has no row.
    """

    index: date | None = None
    index_at: str = ""
    columns: Columns = Field(default_factory=dict)
    values: Values = Field(default_factory=dict)
    scale: Scale = Field(default_factory=dict)

    def words(self, person: str) -> Translation:
        """The mapping as written; `person` is the source's own column of people."""
        return Translation(self.columns, self.values, self.scale, person)

    def check_take(self, take: Mapping[str, Settings], person: str) -> None:
        """Do nothing, if the columns fit together.

        Raises:
            ValueError: they do not; says which and why.
        """
        if not take:
            raise ValueError("at least one column in 'take'")
        if person in take:
            raise ValueError(f"another name for the column '{person}', which every row has anyway")
        if self.index is not None and self.index_at:
            raise ValueError("either 'index' or 'index_at'")
        at = take.get(self.index_at)
        if self.index_at and not (
            isinstance(at, Window) and at.choose in ("first", "last") and at.when != "after"
        ):
            raise ValueError("for 'index_at' a column of 'take' that chooses the first or the last event")
        if self.index is None and not self.index_at:
            for name, how in take.items():
                dated = isinstance(how, Window) and (how.when in ("before", "after") or how.days is not None)
                if dated or isinstance(how, Age):
                    raise ValueError(f"an 'index' or 'index_at', which the column '{name}' needs")
        for name, how in take.items():
            if isinstance(how, Window) and how.when == "ever" and how.days is not None:
                raise ValueError(f"no 'days' for the column '{name}', whose events count whenever they were")

    def rows(
        self,
        where: str,
        people: Sequence[Person],
        events: Mapping[str, Mapping[str, Sequence[Event]]],
        take: Mapping[str, Settings],
        person: str,
    ) -> Records:
        """One row for each person; `events` by column of `take` and key of the person."""
        cells: dict[str, list[str]] = {name: [] for name in (person, *take)}
        places = []
        for one in people:
            index = self._index(one.key, events, take)
            if index is None and self.index_at:
                continue
            places.append(one.place)
            cells[person].append(one.key)
            for name, how in take.items():
                if isinstance(how, Window):
                    cell = how.cell(events.get(name, {}).get(one.key, ()), index)
                else:
                    cell = one.gender if isinstance(how, Gender) else age_years(one.born, index)
                cells[name].append(cell)
        return Records(where, {name: tuple(column) for name, column in cells.items()}, places=tuple(places))

    def _index(
        self, key: str, events: Mapping[str, Mapping[str, Sequence[Event]]], take: Mapping[str, Settings]
    ) -> date | None:
        if not self.index_at:
            return self.index
        how = take[self.index_at]
        assert isinstance(how, Window)
        moments = [e.at for e in events.get(self.index_at, {}).get(key, ()) if e.at is not None]
        pick = min if how.choose == "first" else max
        return pick(moments, key=lambda moment: moment.instant).day if moments else None


def chosen(events: Sequence[Event], choose: Choice) -> str:
    """One cell of many events; of those at the same instant `first` takes the first read, `last` the last.

    >>> day = moment_of("2020-01-31")
    >>> [chosen([Event("2", day), Event("4", None)], choice) for choice in ("last", "mean", "max", "any")]
    ['2', '3.0', '4', '1']
    >>> chosen([], "last"), chosen([], "any")
    ('', '0')
    """
    if choose == "any":
        return str(int(bool(events)))
    if choose in ("first", "last"):
        dated = sorted(((e.at.instant, i) for i, e in enumerate(events) if e.at is not None))
        return events[dated[0 if choose == "first" else -1][1]].cell if dated else ""
    numbers = [Decimal(event.cell) for event in events]
    if not numbers:
        return ""
    if choose == "mean":
        return repr(float(sum(numbers) / len(numbers)))
    return events[numbers.index(min(numbers) if choose == "min" else max(numbers))].cell


def number_cell(value: object, factor: float) -> str:
    """A number as a cell, in another unit.

    Raises:
        ValueError: it is none, or not a finite one; shows nothing of it.

    >>> number_cell(Decimal("88.0"), 1.0), number_cell(88, 0.0113)
    ('88.0', '0.9944')
    """
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise ValueError("no number")
    number = Decimal(str(value))
    if not number.is_finite() or number.adjusted() > _LARGEST:
        raise ValueError("no finite number")
    return str(number) if factor == 1.0 else scaled(str(number), factor)


def moment_of(value: object) -> Moment | None:
    """When that is, of a date or time or its ISO 8601 text; None if there is none.

    Raises:
        ValueError: anything else; shows nothing of it.

    >>> moment_of("2020-02").day, moment_of("2020-01-01T00:30:00+02:00").instant.hour
    (datetime.date(2020, 2, 29), 22)
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        return _at(value)
    if isinstance(value, date):
        return _at(datetime.combine(value, time()))
    try:
        year, month, day, rest = _parts(value)
        if rest:
            return _at(datetime.fromisoformat(str(value)))
        month = 12 if month is None else month
        last = date(year, month, monthrange(year, month)[1] if day is None else day)
        return _at(datetime.combine(last, time()))
    except (ValueError, OverflowError):
        raise ValueError("no date or time") from None


def birth_day(value: object) -> date | None:
    """The day of birth, of a date or its text (ISO 8601); the middle of what is known where the day is not.

    Raises:
        ValueError: anything else; shows nothing of it.

    >>> birth_day("1950"), birth_day("1950-02")
    (datetime.date(1950, 7, 1), datetime.date(1950, 2, 15))
    """
    if value is None or value == "":
        return None
    if isinstance(value, date):  # a datetime is one, too
        return date(value.year, value.month, value.day)
    try:
        year, month, day, _ = _parts(value)
        if month is None:
            return date(year, 7, 1)
        return date(year, month, 15 if day is None else day)
    except ValueError:
        raise ValueError("no date") from None


def age_years(born: date | None, at: date | None) -> str:
    """Completed years as a cell, empty where a date is missing or the birth is later.

    >>> age_years(date(1950, 7, 1), date(2020, 6, 30)), age_years(date(1950, 7, 1), date(2020, 7, 1))
    ('69', '70')
    """
    if born is None or at is None or born > at:
        return ""
    return str(at.year - born.year - ((at.month, at.day) < (born.month, born.day)))


def _parts(value: object) -> tuple[int, int | None, int | None, str]:
    found = _DATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("no date or time")
    year, month, day, rest = found.groups()
    return int(year), None if month is None else int(month), None if day is None else int(day), rest or ""


def _at(value: datetime) -> Moment:
    return Moment(value.date(), value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))
