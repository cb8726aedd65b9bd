"""Read an OMOP database (CDM 5.3 and 5.4) as one row a person.

What is read are the tables person, measurement, observation, condition_occurrence and death. Concepts are
named by their ids, with `descendants` also what lies below them in the vocabulary (concept_ancestor).
"""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.database import reading
from clinimeta.client.sources.mapping import Translation
from clinimeta.client.sources.omop_tables import Database, Diagnosed, Measured
from clinimeta.client.sources.timelines import Age, Died, Gender, Timeline
from clinimeta.common.tasks.table import Records

PERSON = "person_id"
"""The column that tells patients apart."""

Take: TypeAlias = Annotated[Gender | Age | Died | Measured | Diagnosed, Field(discriminator="kind")]


@SOURCES.register("omop")
class OmopSource(Timeline):
    """An OMOP database; the file `url_file` (mode 0600) holds its URL, and `take` is what a row holds.

    `cdm` is the schema of the database that the tables lie in; empty, it is the database's default.
    """

    kind: Literal["omop"] = "omop"
    url_file: str
    cdm: str = ""
    take: dict[str, Take]

    @model_validator(mode="after")
    def _take_fits(self) -> "OmopSource":
        self.check_take(self.take, PERSON)
        return self

    @property
    def translation(self) -> Translation:
        """The mapping as written."""
        return self.words(PERSON)

    def read(self, folder: Path) -> Records:
        """One row for each person, by person_id."""
        where = f"the database of {folder / self.url_file}"
        with reading(folder, self.url_file) as connection:
            database = Database(connection, self.cdm or None, where)
            people = database.people()
            known = {person.key for person in people}
            events = {
                name: database.events(name, how, known)
                for name, how in self.take.items()
                if isinstance(how, Measured | Diagnosed | Died)
            }
        return self.rows(where, people, events, self.take, PERSON)
