"""Whatever stands in a hospital's rows, no error and no finding about any kind of source repeats it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hospital_data import CDM, ICD, LOINC, STUDY, condition, database, ndjson, observation, patient, quantity
from hypothesis import given, settings
from hypothesis import strategies as st

from clinimeta.client.sources import SOURCES
from clinimeta.client.sources.base import configured, records_for
from clinimeta.client.sources.checking import check_section
from clinimeta.common.errors import UserError
from clinimeta.common.findings import lines
from clinimeta.common.tasks.table import encode

NAMES = ("patient", "age", "sex", "creatinine", "smoker", "died")
ROW = ("p1", "63", "1", "0.9", "never", "no")
AROUND = ("", "<", " ", "'", '"', ",", "\\", "2020-", "{", "%s", "\u00e4", ";")
PLANTED = "zq7hunter2"


def csv_hospital(folder: Path, column: int, cell: str) -> dict[str, Any]:
    with (folder / "ulm.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, ROW, (*ROW[:column], cell, *ROW[column + 1 :])])
    return {"kind": "csv", "path": "ulm.csv"}


def parquet_hospital(folder: Path, column: int, cell: str) -> dict[str, Any]:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    planted: object = cell.encode() if column % 2 else cell
    columns = {
        n: [v, planted if i == column else None] for i, (n, v) in enumerate(zip(NAMES, ROW, strict=True))
    }
    columns[NAMES[column]][0] = planted
    pq.write_table(pa.table(columns), folder / "ulm.parquet")
    return {"kind": "parquet", "path": "ulm.parquet"}


def sql_hospital(folder: Path, column: int, cell: str) -> dict[str, Any]:
    planted = (*ROW[:column], cell.encode() if column % 2 else cell, *ROW[column + 1 :])
    database(folder, f"CREATE TABLE t ({', '.join(NAMES)})", {"t": [ROW, planted]})
    query = "SELECT *, json(sex) AS j FROM t" if column == 2 else "SELECT * FROM t"
    return {"kind": "sql", "url_file": "database.url", "query": query}


WORDS = {
    "sex": {"male": "1", "8507": "1"},
    "smoker": {"male": "never", "8507": "never"},
    "died": {"0": "no", "1": "yes"},
}
MEASURED: tuple[Any, ...] = (10, 1, 3016723, "2020-04-01", None, 1.5, None, 8840)
CREATININE = {"units": {"mg/dL": 1.0}, "choose": "mean", "when": "ever"}


def fhir_hospital(folder: Path, column: int, cell: str) -> dict[str, Any]:
    values = (quantity(cell), quantity(1, cell), quantity(1, comparator=cell), {"valueString": cell})
    planted: list[Any] = [
        patient("p", birthDate=cell),
        patient("p", gender=cell),
        observation("p", "2160-0", **values[len(cell) % 4]),
        observation("p", "2160-0", at=cell, **quantity(1)),
        condition("p", "I21", onsetDateTime=cell) | {"subject": {"reference": cell}},
        json.dumps(patient(cell)) + cell,
    ]
    ndjson(folder / "ulm.ndjson", planted[column], *([patient("p")] if column > 1 else ()))
    take = {
        "age": {"kind": "age"},
        "sex": {"kind": "gender"},
        "creatinine": {"kind": "observation", "system": LOINC, "codes": ["2160-0"], **CREATININE},
        "smoker": {"kind": "gender"},
        "died": {"kind": "condition", "system": ICD, "codes": ["I21"]},
    }
    return {"kind": "fhir", "path": "ulm.ndjson", "index": "2020-05-01", "take": take, "values": WORDS}


def omop_hospital(folder: Path, column: int, cell: str) -> dict[str, Any]:
    person: list[Any] = [1, 8507, 1950, None, None, None]
    measured = list(MEASURED)
    row, place = [(person, 1), (person, 5), (person, 2), (measured, 3), (measured, 5), (measured, 7)][column]
    row[place] = cell
    database(folder, CDM, {"person": [tuple(person)], "measurement": [tuple(measured)]})
    take = {
        "age": {"kind": "age"},
        "sex": {"kind": "gender"},
        "creatinine": {"kind": "measurement", "concepts": [3016723], **CREATININE, "units": {"8840": 1.0}},
        "smoker": {"kind": "gender"},
        "died": {"kind": "death"},
    }
    return {"kind": "omop", "url_file": "database.url", "index": "2020-05-01", "take": take, "values": WORDS}


HOSPITALS: dict[str, Callable[[Path, int, str], dict[str, Any]]] = {
    "csv": csv_hospital,
    "parquet": parquet_hospital,
    "sql": sql_hospital,
    "fhir": fhir_hospital,
    "omop": omop_hospital,
}


def test_every_kind_of_source_is_tried_here() -> None:
    assert set(HOSPITALS) == set(SOURCES.names())


@pytest.mark.parametrize("kind", HOSPITALS)
@settings(max_examples=60)
@given(column=st.integers(0, len(NAMES) - 1), before=st.sampled_from(AROUND), after=st.sampled_from(AROUND))
def test_a_planted_value_is_in_no_error_and_no_finding(
    tmp_path_factory: pytest.TempPathFactory, kind: str, column: int, before: str, after: str
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    section = HOSPITALS[kind](folder, column, f"{before}{PLANTED}{after}")
    texts = lines(check_section(section, "site.toml, [data]", STUDY, folder))
    assert texts
    error = failure(section, folder)
    if error is None:
        assert (kind, column) in {("csv", 0), ("sql", 0)}, "a cell that cannot be used was used"
    else:
        texts.append(str(error))
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None
    assert PLANTED not in "\n".join(texts)


def failure(section: dict[str, Any], folder: Path) -> UserError | None:
    """Why the rows cannot be used, or None if they can."""
    try:
        encode(STUDY, records_for(configured(section, "site.toml, [data]"), STUDY, folder))
    except UserError as error:
        return error
    return None


@pytest.mark.parametrize("kind", ["fhir", "omop"])
def test_without_a_planted_value_the_same_rows_can_be_used(tmp_path: Path, kind: str) -> None:
    section = HOSPITALS[kind](tmp_path, 5, "x")
    person = patient("p", birthDate="1950", gender="male")
    ndjson(tmp_path / "ulm.ndjson", person, observation("p", "2160-0", **quantity(1)))
    database(tmp_path, CDM, {"person": [(1, 8507, 1950, None, None, None)], "measurement": [MEASURED]})
    assert failure(section, tmp_path) is None
