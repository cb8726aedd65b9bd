"""The tables of an OMOP CDM, read as people and dated events; places are named, values never.

A row is known in messages by its table's own key (`measurement_id`), never by its person.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from annotated_types import MinLen
from pydantic import Field, StringConstraints, model_validator

from clinimeta.client.sources.cells import cell_text
from clinimeta.client.sources.mapping import Factor
from clinimeta.client.sources.timelines import (
    Died,
    Event,
    Moment,
    Person,
    Window,
    birth_day,
    moment_of,
    number_cell,
)
from clinimeta.common.errors import DataError, nearest

NO_UNIT = "0"
"""What `units` calls a measurement without a unit, or with one that has no concept."""

Concepts = Annotated[tuple[int, ...], MinLen(1)]
ConceptId = Annotated[str, StringConstraints(pattern=r"^[0-9]+$")]


class Measured(Window):
    """A measurement or an observation of one of these concepts: its number, concept or text.

    `units` says which units (concept ids) a number may have, and what it is multiplied by in each.
    """

    kind: Literal["measurement", "observation"]
    concepts: Concepts
    descendants: bool = False
    value: Literal["number", "concept", "text"] = "number"
    units: dict[ConceptId, Factor] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> "Measured":
        if (self.value == "number" and self.choose != "any") != bool(self.units):
            raise ValueError("'units' for a number, and for nothing else")
        if self.value != "number" and self.choose in ("mean", "min", "max"):
            raise ValueError("'choose' to be last, first or any, as the value is not a number")
        if self.kind == "measurement" and self.value == "text":
            raise ValueError("no text for a measurement: the table has no such column")
        return self


class Diagnosed(Window):
    """1 if the person has a condition of one of these concepts, else 0."""

    kind: Literal["condition"] = "condition"
    choose: Literal["any"] = "any"
    concepts: Concepts
    descendants: bool = False


@dataclass(frozen=True, slots=True)
class _Cdm:
    """The tables as far as we read them: columns, those that must be there first."""

    key: str
    day: str
    moment: str
    concept: str = ""


_TABLES = {
    "measurement": _Cdm(
        "measurement_id", "measurement_date", "measurement_datetime", "measurement_concept_id"
    ),
    "observation": _Cdm(
        "observation_id", "observation_date", "observation_datetime", "observation_concept_id"
    ),
    "condition": _Cdm(
        "condition_occurrence_id", "condition_start_date", "condition_start_datetime", "condition_concept_id"
    ),
    "death": _Cdm("person_id", "death_date", "death_datetime"),
}
_NAMES = {"condition": "condition_occurrence"}
_VALUES = {"number": "value_as_number", "concept": "value_as_concept_id", "text": "value_as_string"}
_PERSON = (
    "person_id",
    "gender_concept_id",
    "year_of_birth",
    "month_of_birth",
    "day_of_birth",
    "birth_datetime",
)


@dataclass(frozen=True, slots=True)
class Database:
    """A connection to a CDM; `cdm` is its schema, `where` what messages call it."""

    connection: sa.Connection
    cdm: str | None
    where: str

    def people(self) -> list[Person]:
        """Everybody, by person_id."""
        table = self._table("person", _PERSON)
        found = []
        for number, row in enumerate(self._rows(sa.select(table).order_by(table.c.person_id)), start=1):
            place = f"person row {number}"
            try:
                born = _born(row)
            except (ValueError, TypeError):
                raise self._bad_date(place, "birth_datetime or year_of_birth") from None
            gender = row["gender_concept_id"]
            found.append(Person(cell_text(row["person_id"]), place, born, cell_text(gender)))
        return found

    def events(
        self, column: str, how: Measured | Diagnosed | Died, known: set[str]
    ) -> Mapping[str, list[Event]]:
        """A column's events by person_id, in the order of the table's own key.

        Raises:
            DataError: no such table or column, a value or date that cannot be used, or nobody's row.
        """
        names = _TABLES[how.kind]
        value = _VALUES[how.value] if isinstance(how, Measured) else ""
        unit = "unit_concept_id" if value == "value_as_number" else ""
        wanted = (names.key, "person_id", names.day, names.moment, names.concept, value, unit)
        table = self._table(_NAMES.get(how.kind, how.kind), tuple(dict.fromkeys(filter(None, wanted))))
        query = sa.select(table).order_by(table.c[names.key])
        if not isinstance(how, Died):
            query = query.where(self._is_of(table.c[names.concept], how))
        found: dict[str, list[Event]] = {}
        for row in self._rows(query):
            key = "" if names.key == "person_id" else f", {names.key} {cell_text(row[names.key])}"
            place = f"{table.name}{key} (for the column '{column}')"
            person = cell_text(row["person_id"])
            if person not in known:
                raise DataError(
                    "a row is about nobody in the table 'person'",
                    where=f"{self.where}, {place}",
                    remedy="correct the database",
                )
            cell = self._cell(row, value, how, place) if isinstance(how, Measured) else "1"
            if cell:
                found.setdefault(person, []).append(Event(cell, self._moment(row, names, place)))
        return found

    def _rows(self, query: sa.Select[Any]) -> Iterator[Mapping[str, Any]]:
        return (row._asdict() for row in self.connection.execute(query))

    def _is_of(self, concept: sa.ColumnElement[Any], how: Measured | Diagnosed) -> sa.ColumnElement[bool]:
        itself = concept.in_(how.concepts)
        if not how.descendants:
            return itself
        tree = self._table("concept_ancestor", ("ancestor_concept_id", "descendant_concept_id"))
        below = sa.select(tree.c.descendant_concept_id).where(tree.c.ancestor_concept_id.in_(how.concepts))
        return sa.or_(itself, concept.in_(below))

    def _cell(self, row: Mapping[str, Any], column: str, how: Measured, place: str) -> str:
        """Empty where there is no value."""
        value = row[column]
        if value is None or (column == "value_as_concept_id" and value == 0):
            return ""
        if how.choose == "any":
            return "1"
        if column != "value_as_number":
            return self._text(value, f"{place}, {column}")
        unit = cell_text(row["unit_concept_id"]) or NO_UNIT
        if unit not in how.units:
            raise DataError(
                "a number is in a unit that the mapping does not name",
                where=f"{self.where}, {place}, unit_concept_id",
                found="no unit" if unit == NO_UNIT else "another concept (not shown)",
                expected=f"one of {', '.join(how.units)}",
                remedy=f"add the unit and its factor to the column's units ({NO_UNIT} stands for no unit)",
            )
        try:
            return number_cell(value, how.units[unit])
        except ValueError:
            raise self._bad_cell(f"{place}, {column}", "a finite number") from None

    def _text(self, value: object, place: str) -> str:
        try:
            return cell_text(value).strip()
        except TypeError:
            raise self._bad_cell(place, "text or a number") from None

    def _moment(self, row: Mapping[str, Any], names: _Cdm, place: str) -> Moment | None:
        """The day of the date column, which the CDM requires; the instant of the finer one if it is there."""
        try:
            day, exact = moment_of(row[names.day]), moment_of(row[names.moment])
        except ValueError:
            raise self._bad_date(place, f"{names.day} or {names.moment}") from None
        return Moment(day.day, exact.instant) if day and exact else day or exact

    def _table(self, name: str, columns: tuple[str, ...]) -> sa.TableClause:
        """The table, untyped, so that no value is converted where we could not name its place.

        Raises:
            DataError: it is not there, or lacks a column.
        """
        inspector = sa.inspect(self.connection)
        if not inspector.has_table(name, self.cdm):
            raise DataError(
                f"the table '{name}' is missing",
                where=self.where,
                found=f"no such table in the schema '{self.cdm}'" if self.cdm else "",
                remedy="set cdm in [data] to the schema of the CDM, and check that the user may read it",
            )
        there = {column["name"].lower() for column in inspector.get_columns(name, self.cdm)}
        for column in columns:
            if column not in there:
                raise DataError(
                    f"the column '{column}' is missing",
                    where=f"{self.where}, table {name}",
                    expected=nearest(column, there),
                    remedy="the tables of CDM 5.3 and 5.4 are read",
                )
        return sa.table(name, *(sa.column(column) for column in columns), schema=self.cdm)

    def _bad_date(self, place: str, column: str) -> DataError:
        return DataError(
            "a date cannot be read",
            where=f"{self.where}, {place}, {column}",
            found="no date",
            expected="a date, or its text (YYYY-MM-DD)",
            remedy="correct the database",
        )

    def _bad_cell(self, place: str, wanted: str) -> DataError:
        return DataError(
            "a value cannot be used",
            where=f"{self.where}, {place}",
            found="something else",
            expected=wanted,
            remedy="correct the database",
        )


def _born(row: Mapping[str, Any]) -> date | None:
    exact = row["birth_datetime"]
    if exact is not None and exact != "":
        return exact.date() if isinstance(exact, datetime) else birth_day(str(exact)[:10])
    year, month, day = row["year_of_birth"], row["month_of_birth"], row["day_of_birth"]
    if year is None:
        return None
    return date(int(year), int(month or 7), int(day or (15 if month else 1)))
