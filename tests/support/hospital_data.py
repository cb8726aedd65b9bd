"""Small hospitals' data of every kind, made by the tests, and the study that asks for them."""

import gzip
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clinimeta.client.sources.base import Source, configured, records_for
from clinimeta.common.errors import UserError
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import Records

LOINC, SNOMED, ICD = "http://loinc.org", "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10"

STUDY = Schema(
    target="died",
    classes=("no", "yes"),
    columns=(
        Column(name="age", unit="years", center=60.0, scale=15.0),
        Column(name="sex", kind="binary"),
        Column(name="creatinine", unit="mg/dL", center=1.0, scale=0.3),
        Column(name="smoker", kind="categorical", levels=("never", "former", "current")),
        Column(name="lactate", optional=True),
    ),
    patient="patient",
    missing="mask",
)

CDM = """
CREATE TABLE person (person_id INTEGER PRIMARY KEY, gender_concept_id INTEGER, year_of_birth INTEGER,
    month_of_birth INTEGER, day_of_birth INTEGER, birth_datetime TEXT);
CREATE TABLE measurement (measurement_id INTEGER PRIMARY KEY, person_id INTEGER,
    measurement_concept_id INTEGER, measurement_date TEXT, measurement_datetime TEXT,
    value_as_number NUMERIC, value_as_concept_id INTEGER, unit_concept_id INTEGER);
CREATE TABLE observation (observation_id INTEGER PRIMARY KEY, person_id INTEGER,
    observation_concept_id INTEGER, observation_date TEXT, observation_datetime TEXT,
    value_as_number NUMERIC, value_as_string TEXT, value_as_concept_id INTEGER, unit_concept_id INTEGER);
CREATE TABLE condition_occurrence (condition_occurrence_id INTEGER PRIMARY KEY, person_id INTEGER,
    condition_concept_id INTEGER, condition_start_date TEXT, condition_start_datetime TEXT);
CREATE TABLE death (person_id INTEGER PRIMARY KEY, death_date TEXT, death_datetime TEXT);
CREATE TABLE concept_ancestor (ancestor_concept_id INTEGER, descendant_concept_id INTEGER);
"""


def source(section: Mapping[str, Any]) -> Source:
    """The source of a data section."""
    return configured(section, "site.toml, [data]")


def records(section: Mapping[str, Any], folder: Path) -> Records:
    """The rows of a data section, as the section's source has them."""
    return source(section).read(folder)


def refused(section: Mapping[str, Any], folder: Path, schema: Schema | None = None) -> UserError:
    """The error with which a section is refused: as it is parsed, read, or made the study's."""
    with pytest.raises(UserError) as caught:
        records_for(source(section), schema, folder) if schema else records(section, folder)
    return caught.value


def database(
    folder: Path, script: str, tables: Mapping[str, Iterable[tuple[Any, ...]]] | None = None
) -> Path:
    """A SQLite database, and the private file with its URL (`database.url`)."""
    path = folder / "hospital.db"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(f"PRAGMA synchronous = OFF; {script}")
        for table, rows in (tables or {}).items():
            for row in rows:
                connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    connection.close()
    secret(folder, f"sqlite:///{path.name}")
    return path


def secret(folder: Path, url: str, mode: int = 0o600) -> None:
    """The file with the URL."""
    file = folder / "database.url"
    file.write_text(url + "\n")
    os.chmod(file, mode)


def ndjson(path: Path, *resources: Mapping[str, Any] | str) -> None:
    """A file with a resource a line, gzipped where its name says so."""
    path.parent.mkdir(exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in resources]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def patient(key: str, **more: Any) -> dict[str, Any]:
    """A Patient."""
    return {"resourceType": "Patient", "id": key, **more}


def observation(key: str, code: str, at: str = "2020-05-01", **more: Any) -> dict[str, Any]:
    """A final Observation with a LOINC code, about a patient."""
    return {
        "resourceType": "Observation",
        "status": "final",
        "subject": {"reference": f"Patient/{key}"},
        "code": {"coding": [{"system": LOINC, "code": code}]},
        **({"effectiveDateTime": at} if at else {}),
        **more,
    }


def quantity(value: object, unit: str = "mg/dL", **more: Any) -> dict[str, Any]:
    """The value of an observation."""
    return {"valueQuantity": {"value": value, "unit": unit, "code": unit, **more}}


def coded(*codes: tuple[str, str]) -> dict[str, Any]:
    """A coded value: pairs of system and code."""
    return {"valueCodeableConcept": {"coding": [{"system": system, "code": code} for system, code in codes]}}


def condition(key: str, code: str, system: str = ICD, **more: Any) -> dict[str, Any]:
    """A Condition of a patient."""
    return {
        "resourceType": "Condition",
        "subject": {"reference": f"Patient/{key}"},
        "code": {"coding": [{"system": system, "code": code}]},
        **more,
    }
