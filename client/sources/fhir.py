"""Read FHIR resources (R4 and later, NDJSON) as one row a patient: Patient, Observation, Condition.

A line is a resource, or a Bundle of them. Only what is certain counts: observations that are final, amended or
corrected, and conditions that nobody has called provisional or wrong. Messages name file and line; they show
nothing of a resource.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import MinLen
from pydantic import Field, model_validator

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.mapping import Factor, Translation, scaled
from clinimeta.client.sources.ndjson import Resource, items, part, resources, text
from clinimeta.client.sources.timelines import (
    Age,
    Event,
    Gender,
    Moment,
    Person,
    Timeline,
    Window,
    birth_day,
    moment_of,
)
from clinimeta.common.errors import DataError
from clinimeta.common.tasks.table import Records

PERSON = "patient_id"
"""The column that tells patients apart: the id of the Patient resource."""
_KNOWN = ("final", "amended", "corrected")
_DOUBTED = ("unconfirmed", "provisional", "differential", "refuted", "entered-in-error")
_REFERENCE = re.compile(r"(?:(?:.*/)?Patient/|urn:uuid:)([A-Za-z0-9.\-]{1,64})(?:/_history/.*)?", re.ASCII)

Codes = Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)]
"""Codes of one system; one that ends in `*` stands for all that begin so."""


class Observed(Window):
    """An Observation, or a component of one, with one of these codes: its number, or the code it was answered by.

    `units` says which units a number may have and what it is multiplied by in each. `compared` says what to do
    with a number that comes with a sign, as in "< 5". `answers` is the code system of coded answers; without it an
    answer must have one code only.
    """

    kind: Literal["observation"] = "observation"
    system: str
    codes: Codes
    value: Literal["quantity", "code"] = "quantity"
    units: dict[str, Factor] = Field(default_factory=dict)
    compared: Literal["refuse", "limit", "leave_out"] = "refuse"
    answers: str = ""

    @model_validator(mode="after")
    def _fits(self) -> "Observed":
        if (self.value == "quantity" and self.choose != "any") != bool(self.units):
            raise ValueError("'units' for a number, and for nothing else")
        if self.value == "code" and self.choose in ("mean", "min", "max"):
            raise ValueError("'choose' to be last, first or any, as a code is not a number")
        return self


class Diagnosed(Window):
    """1 if the patient has a Condition with one of these codes, else 0."""

    kind: Literal["condition"] = "condition"
    choose: Literal["any"] = "any"
    system: str
    codes: Codes


Take: TypeAlias = Annotated[Gender | Age | Observed | Diagnosed, Field(discriminator="kind")]


@SOURCES.register("fhir")
class FhirSource(Timeline):
    """A file of FHIR resources (`.ndjson`, `.ndjson.gz`), or a folder of them; `take` says what a row holds."""

    kind: Literal["fhir"] = "fhir"
    path: str
    take: dict[str, Take]

    @model_validator(mode="after")
    def _take_fits(self) -> "FhirSource":
        self.check_take(self.take, PERSON)
        return self

    @property
    def translation(self) -> Translation:
        """The mapping as written; the patient's id is the person."""
        return self.words(PERSON)

    def read(self, folder: Path) -> Records:
        """One row for each Patient, in the order of the files."""
        path, found = folder / self.path, _Found()
        for resource in resources(path):
            match resource.kind:
                case "Patient":
                    found.add_person(_person(resource))
                case "Observation":
                    for name, how in self.take.items():
                        if isinstance(how, Observed):
                            for event in _observed(resource, how, name):
                                found.add_event(name, resource, event)
                case "Condition":
                    for name, how in self.take.items():
                        if isinstance(how, Diagnosed) and _is_diagnosis(resource, how):
                            at = _when(resource, ("onsetDateTime", "onsetPeriod.start", "recordedDate"), name)
                            found.add_event(name, resource, Event("1", at))
        found.require_known_people()
        return self.rows(str(path), list(found.people.values()), found.events, self.take, PERSON)


@dataclass(slots=True)
class _Found:
    """What has been read so far: people by id, events by column and id, where each id was first spoken of."""

    people: dict[str, Person] = field(default_factory=dict)
    events: dict[str, dict[str, list[Event]]] = field(default_factory=dict)
    spoken_of: dict[str, str] = field(default_factory=dict)

    def add_person(self, person: Person) -> None:
        if person.key in self.people:
            raise DataError(
                "two Patient resources have the same id",
                where=f"{self.people[person.key].place} and {person.place}",
                remedy="keep one of them",
            )
        self.people[person.key] = person

    def add_event(self, name: str, resource: Resource, event: Event) -> None:
        reference = text(part(resource.content, "subject"), "reference")
        about = _REFERENCE.fullmatch(reference)
        if about is None:
            raise DataError(
                "a resource does not say which patient it is about",
                where=f"{resource.place}, subject.reference (for the column '{name}')",
                found="another reference" if reference else "no reference",
                expected="Patient/ID, a URL that ends so, or urn:uuid:ID",
                remedy="export references by id, or leave the resource out",
            )
        self.spoken_of.setdefault(about[1], resource.place)
        self.events.setdefault(name, {}).setdefault(about[1], []).append(event)

    def require_known_people(self) -> None:
        for key, place in self.spoken_of.items():
            if key not in self.people:
                raise DataError(
                    "a resource is about a patient who is not in the export",
                    where=f"{place}, subject.reference",
                    expected="a Patient resource of that id in one of the files",
                    remedy="export the Patient resources too, or leave the resource out",
                )


def _person(resource: Resource) -> Person:
    key = text(resource.content, "id")
    if not key:
        raise DataError("a Patient has no id", where=f"{resource.place}, id", remedy="export it with its id")
    try:
        born = birth_day(resource.content.get("birthDate"))
    except ValueError:
        raise _bad_date(resource, "birthDate") from None
    return Person(key, resource.place, born, text(resource.content, "gender"))


def _observed(resource: Resource, how: Observed, name: str) -> Iterator[Event]:
    content = resource.content
    answered = [c for c in (content, *items(content, "component")) if _has(part(c, "code"), how)]
    if not answered:
        return
    if not text(content, "status"):
        raise DataError("an Observation has no status", where=f"{resource.place}, status", expected="final")
    if content["status"] not in _KNOWN:
        return
    times = ("effectiveDateTime", "effectiveInstant", "effectivePeriod.end", "issued")
    for one in answered:
        cell = _answer(one, how, f"{resource.place} (for the column '{name}')")
        if cell is not None:
            yield Event(cell, _when(resource, times, name))


def _answer(one: dict[str, Any], how: Observed, where: str) -> str | None:
    """The cell, or None where there is no value, as in a panel or where the lab found none."""
    kinds = [key for key in one if key.startswith("value")]
    if not kinds or how.choose == "any":
        return "1" if kinds else None
    wanted = "valueQuantity" if how.value == "quantity" else "valueCodeableConcept"
    if wanted not in one:
        raise DataError(
            "an observation's value is of another kind",
            where=where,
            found="one of another kind than asked for",
            expected=wanted,
            remedy='set value = "quantity" or "code" for the column, or leave the resource out',
        )
    value = part(one, wanted)
    return _number(value, how, where) if how.value == "quantity" else _code(value, how, where)


def _number(quantity: dict[str, Any], how: Observed, where: str) -> str | None:
    number = quantity.get("value")
    if number is None:
        return None
    if not isinstance(number, int | Decimal) or isinstance(number, bool):
        raise DataError(
            "a quantity's value is not a number",
            where=f"{where}, valueQuantity.value",
            found="text, a truth value or a list",
            expected="a JSON number",
        )
    if quantity.get("comparator") and how.compared != "limit":
        if how.compared == "leave_out":
            return None
        raise DataError(
            "a number comes with a sign of comparison",
            where=f"{where}, valueQuantity.comparator",
            expected="a plain number",
            remedy='set compared = "limit" (take the number as it stands) or "leave_out" for the column',
        )
    names = [text(quantity, "code"), text(quantity, "unit")]
    unit = next((name for name in (names if any(names) else [""]) if name in how.units), None)
    if unit is None:
        raise DataError(
            "a number is in a unit that the mapping does not name",
            where=f"{where}, valueQuantity.unit",
            found="another unit (not shown)" if any(names) else "no unit",
            expected=f"one of {', '.join(repr(name) for name in how.units)}",
            remedy='add the unit and its factor to the column\'s units ("" stands for no unit)',
        )
    factor = how.units[unit]
    return format(number, "f") if factor == 1.0 else scaled(str(number), factor)


def _code(concept: dict[str, Any], how: Observed, where: str) -> str:
    codings = [c for c in items(concept, "coding") if not how.answers or text(c, "system") == how.answers]
    found = {code for coding in codings if (code := text(coding, "code"))}
    if len(found) != 1:
        raise DataError(
            "a coded answer does not have one code",
            where=f"{where}, valueCodeableConcept.coding",
            found=f"{len(found)} codes{' of that system' * bool(how.answers)}",
            expected="one",
            remedy="name the code system of the answers (answers), or leave the resource out",
        )
    return found.pop()


def _is_diagnosis(resource: Resource, how: Diagnosed) -> bool:
    doubts = items(part(resource.content, "verificationStatus"), "coding")
    doubted = any(text(coding, "code") in _DOUBTED for coding in doubts)
    return not doubted and _has(part(resource.content, "code"), how)


def _has(concept: dict[str, Any], how: Observed | Diagnosed) -> bool:
    found = [text(c, "code") for c in items(concept, "coding") if text(c, "system") == how.system]
    return any(
        code.startswith(wanted[:-1]) if wanted.endswith("*") else code == wanted
        for code in found
        for wanted in how.codes
    )


def _when(resource: Resource, keys: tuple[str, ...], name: str) -> Moment | None:
    for key in keys:
        outer, _, inner = key.partition(".")
        value = part(resource.content, outer).get(inner) if inner else resource.content.get(outer)
        if value is not None:
            try:
                return moment_of(value)
            except ValueError:
                raise _bad_date(resource, f"{key} (for the column '{name}')") from None
    return None


def _bad_date(resource: Resource, key: str) -> DataError:
    return DataError(
        "a date cannot be read",
        where=f"{resource.place}, {key}",
        found="no date of FHIR's",
        expected="YYYY, YYYY-MM, YYYY-MM-DD, or a time such as 2024-05-31T08:30:00+02:00",
        remedy="correct it, or leave the resource out",
    )
