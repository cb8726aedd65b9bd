"""Read FHIR resources (R4 and later, NDJSON) as one row a patient: Patient, Observation, Condition.

A line is a resource, or a Bundle of them. Only what is certain counts: observations that are final, amended
or corrected, and conditions that nobody has called provisional or wrong. Messages name file and line; they
show nothing of a resource.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.fhir_answers import (
    Diagnosed,
    Observed,
    bad_date,
    is_diagnosis,
    moment_in,
    observed,
)
from clinimeta.client.sources.mapping import Translation
from clinimeta.client.sources.ndjson import Resource, part, resources, text
from clinimeta.client.sources.timelines import Age, Died, Event, Gender, Person, Timeline, birth_day
from clinimeta.common.errors import DataError
from clinimeta.common.tasks.table import Records

PERSON = "patient_id"
"""The column that tells patients apart: the id of the Patient resource."""
_REFERENCE = re.compile(r"(?:(?:.*/)?Patient/|urn:uuid:)([A-Za-z0-9.\-]{1,64})(?:/_history/.*)?", re.ASCII)

Take: TypeAlias = Annotated[Gender | Age | Died | Observed | Diagnosed, Field(discriminator="kind")]


@SOURCES.register("fhir")
class FhirSource(Timeline):
    """A file of FHIR resources (`.ndjson`, `.ndjson.gz`), or a folder of them; `take` is what a row holds."""

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
            for name, event in self._events(resource):
                found.add_event(name, resource, event)
            if resource.kind == "Patient":
                found.add_person(_person(resource))
        found.require_known_people()
        return self.rows(str(path), list(found.people.values()), found.events, self.take, PERSON)

    def _events(self, resource: Resource) -> Iterator[tuple[str, Event]]:
        """What a resource says: columns of `take` and events."""
        for name, how in self.take.items():
            match resource.kind, how:
                case "Patient", Died():
                    if (death := _death(resource, name)) is not None:
                        yield name, death
                case "Observation", Observed():
                    yield from ((name, event) for event in observed(resource, how, name))
                case "Condition", Diagnosed() if is_diagnosis(resource, how):
                    times = ("onsetDateTime", "onsetPeriod.start", "recordedDate")
                    yield name, Event("1", moment_in(resource, times, name))


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
        if resource.kind == "Patient":
            self.events.setdefault(name, {})[text(resource.content, "id")] = [event]
            return
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
        raise bad_date(resource, "birthDate") from None
    return Person(key, resource.place, born, text(resource.content, "gender"))


def _death(resource: Resource, name: str) -> Event | None:
    if resource.content.get("deceasedBoolean") is True:
        return Event("1", None)
    at = moment_in(resource, ("deceasedDateTime",), name)
    return None if at is None else Event("1", at)
