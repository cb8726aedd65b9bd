"""An OMOP database becomes one row a person; what cannot be used is named by table, key and column."""

from pathlib import Path
from typing import Any

import pytest
from hospital_data import CDM, database, records, refused

MG_DL, UMOL_L = 8840, 8749
CREATININE = {"kind": "measurement", "concepts": [3016723], "units": {"8840": 1.0, "8749": 0.0113}}
SMOKING = {"kind": "observation", "concepts": [4275495], "value": "concept"}
INFARCT = {"kind": "condition", "concepts": [4329847], "descendants": True}
TABLES: dict[str, list[tuple[Any, ...]]] = {
    "person": [
        (1, 8507, 1950, 5, 2, None),
        (2, 8532, 1950, None, None, None),
        (3, 0, 1950, 5, None, "1949-01-01 00:00:00"),
    ],
    "measurement": [
        (10, 1, 3016723, "2020-04-01", None, 1.5, None, MG_DL),
        (11, 1, 3016723, "2020-04-02", "2020-04-02 09:00:00", 200, None, UMOL_L),
        (12, 1, 3016723, "2020-04-02", "2020-04-02 08:00:00", 9.0, None, MG_DL),
        (13, 1, 3016723, "2020-09-01", None, 7.0, None, MG_DL),
        (14, 2, 3016723, "2020-04-01", None, None, None, None),
        (15, 2, 4711, "2020-04-01", None, 3.0, None, MG_DL),
    ],
    "observation": [
        (20, 1, 4275495, "2019-01-01", None, None, "20 a day", 45883458, None),
        (21, 2, 4275495, "2019-01-01", None, None, None, 0, None),
    ],
    "condition_occurrence": [(30, 1, 312327, "2020-01-01", None), (31, 2, 312327, "2021-01-01", None)],
    "death": [(2, "2020-05-20", None)],
    "concept_ancestor": [(4329847, 4329847), (4329847, 312327)],
}


def section(**more: Any) -> dict[str, Any]:
    return {"kind": "omop", "url_file": "database.url", "take": {"x": CREATININE}} | more


def column(folder: Path, how: dict[str, Any], **more: Any) -> tuple[str, ...]:
    return tuple(records(section(take={"x": how}, **more), folder).cells["x"])


@pytest.fixture
def cdm(tmp_path: Path) -> Path:
    database(tmp_path, CDM, TABLES)
    return tmp_path


def test_each_person_is_a_row(cdm: Path) -> None:
    take = {"sex": {"kind": "gender"}, "age": {"kind": "age"}, "creatinine": CREATININE, "infarct": INFARCT}
    take |= {"smoking": SMOKING, "died": {"kind": "death", "when": "after", "days": 30}}
    found = records(section(take=take, index="2020-05-01"), cdm)
    assert found.cells == {
        "person_id": ("1", "2", "3"),
        "sex": ("8507", "8532", "0"),
        "age": ("69", "69", "71"),
        "creatinine": ("2.26", "", ""),
        "infarct": ("1", "0", "0"),
        "smoking": ("45883458", "", ""),
        "died": ("0", "1", "0"),
    }
    assert found.place(1) == "person row 2"


@pytest.mark.parametrize(
    ("choose", "cell"), [("first", "1.5"), ("last", "7.0"), ("min", "1.5"), ("max", "9.0"), ("mean", "4.94")]
)
def test_a_number_is_chosen_of_many(cdm: Path, choose: str, cell: str) -> None:
    found = column(cdm, CREATININE | {"choose": choose})
    assert (float(found[0]), found[1:]) == (float(cell), ("", ""))


def test_the_exact_time_orders_the_events_of_a_day(cdm: Path) -> None:
    assert column(cdm, CREATININE | {"choose": "last"}, index="2020-04-02")[0] == "2.26"
    assert column(cdm, CREATININE | {"choose": "first", "days": 0}, index="2020-04-02")[0] == "9"


def test_any_says_whether_there_was_a_value(cdm: Path) -> None:
    assert column(cdm, {"kind": "measurement", "concepts": [3016723, 4711], "choose": "any"}) == (
        "1",
        "1",
        "0",
    )
    assert column(cdm, {"kind": "measurement", "concepts": [3016723], "choose": "any"}) == ("1", "0", "0")


def test_what_lies_below_a_concept_counts_if_asked_for(cdm: Path) -> None:
    assert column(cdm, INFARCT) == ("1", "1", "0")
    assert column(cdm, INFARCT | {"descendants": False}) == ("0", "0", "0")


def test_an_observation_may_be_text(cdm: Path) -> None:
    assert column(cdm, SMOKING | {"value": "text"}) == ("20 a day", "", "")


def test_a_number_without_a_unit_needs_the_mappings_word(tmp_path: Path) -> None:
    rows = [
        (10, 1, 3016723, "2020-04-01", None, 5, None, None),
        (11, 2, 3016723, "2020-04-01", None, 6, None, 0),
    ]
    database(tmp_path, CDM, TABLES | {"measurement": rows})
    assert column(tmp_path, CREATININE | {"units": {"0": 0.5}}) == ("2.5", "3.0", "")
    error = refused(section(), tmp_path)
    assert "measurement_id 10 (for the column 'x'), unit_concept_id" in error.where
    assert error.found == "no unit"


def test_the_index_may_be_each_persons_own(cdm: Path) -> None:
    take = {
        "first": CREATININE | {"choose": "first"},
        "age": {"kind": "age"},
        "died": {"kind": "death", "when": "after"},
    }
    found = records(section(take=take, index_at="first"), cdm)
    assert found.cells == {"person_id": ("1",), "first": ("1.5",), "age": ("69",), "died": ("0",)}


MEASURED = (10, 1, 3016723, "2020-04-01", None, 1.5, None, MG_DL)
CODED = (20, 1, 4275495, "2019-01-01", None, None, "x", 1, None)


@pytest.mark.parametrize(
    ("table", "row", "where"),
    [
        (
            "person",
            (7, 0, "hunter2", None, None, None),
            "person row 1, birth_datetime or year_of_birth",
        ),
        (
            "person",
            (7, 0, 1950, 13, None, None),
            "person row 1, birth_datetime or year_of_birth",
        ),
        (
            "person",
            (7, 0, 1950, 1, 1, "hunter2"),
            "person row 1, birth_datetime or year_of_birth",
        ),
        ("measurement", (10, 4711, *MEASURED[2:]), "measurement, measurement_id 10 (for the column 'x')"),
        (
            "measurement",
            (*MEASURED[:3], "hunter2", *MEASURED[4:]),
            "measurement_date or measurement_datetime",
        ),
        (
            "measurement",
            (*MEASURED[:4], "hunter2", *MEASURED[5:]),
            "measurement_date or measurement_datetime",
        ),
        ("measurement", (*MEASURED[:5], "hunter2", None, MG_DL), "10 (for the column 'x'), value_as_number"),
        (
            "measurement",
            (*MEASURED[:5], float("inf"), None, MG_DL),
            "10 (for the column 'x'), value_as_number",
        ),
        ("measurement", (*MEASURED[:5], 1.0, None, 4711), "10 (for the column 'x'), unit_concept_id"),
        (
            "observation",
            (*CODED[:6], b"hunter2", 1, None),
            "observation_id 20 (for the column 'y'), value_as_string",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_table_key_and_column(
    tmp_path: Path, table: str, row: tuple[Any, ...], where: str
) -> None:
    rows = {"person": [(1, 0, 1950, None, None, None)], "measurement": [MEASURED], "observation": [CODED]}
    database(tmp_path, CDM, rows | {table: [row]})
    error = refused(section(take={"x": CREATININE, "y": SMOKING | {"value": "text"}}), tmp_path)
    assert where in error.where
    assert "hunter2" not in str(error)
    assert "4711" not in str(error)


def test_a_table_or_column_that_is_missing_is_named(tmp_path: Path) -> None:
    database(tmp_path, "CREATE TABLE person (person_id INTEGER, gender INTEGER);")
    error = refused(section(), tmp_path)
    assert error.what == "the column 'gender_concept_id' is missing"
    assert "table person" in error.where
    database(
        tmp_path, CDM.replace("CREATE TABLE measurement", "CREATE TABLE lab"), {"person": TABLES["person"]}
    )
    assert refused(section(), tmp_path).what == "the table 'measurement' is missing"
    assert "'person' is missing" in refused(section(cdm="elsewhere"), tmp_path).what


def test_the_schema_of_the_tables_may_be_named(cdm: Path) -> None:
    assert records(section(cdm="main"), cdm).cells["x"] == ("7", "", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": {}}, "'units'"),
        ({"units": {"mg/dL": 1.0}}, "should match pattern"),
        ({"value": "concept"}, "'units'"),
        ({"value": "concept", "units": {}, "choose": "max"}, "not a number"),
        ({"value": "text", "units": {}}, "no text"),
        ({"concepts": []}, "at least 1"),
        ({"days": 3}, "index"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in str(refused(section(take={"x": CREATININE | change}), tmp_path))
