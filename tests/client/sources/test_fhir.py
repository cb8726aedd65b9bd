"""FHIR resources become one row a patient; what is not certain, or not asked for, is not used."""

import json
from pathlib import Path
from typing import Any

import pytest
from hospital_data import (
    ICD,
    LOINC,
    SNOMED,
    coded,
    condition,
    ndjson,
    observation,
    patient,
    quantity,
    records,
    refused,
)

CREATININE = {
    "kind": "observation",
    "system": LOINC,
    "codes": ["2160-0"],
    "units": {"mg/dL": 1.0, "umol/L": 0.0113},
}
INFARCT = {"kind": "condition", "system": ICD, "codes": ["I21*", "I22.0"]}


def section(path: str = "export", **more: Any) -> dict[str, Any]:
    return {"kind": "fhir", "path": path, "take": {"x": CREATININE}} | more


def cell(folder: Path, how: dict[str, Any], *resources: dict[str, Any], **more: Any) -> str:
    """The cell of the only patient."""
    ndjson(
        folder / "export" / "all.ndjson", patient("p", birthDate="1950-02-01", gender="female"), *resources
    )
    found = records(section(take={"x": how}, **more), folder)
    (only,) = found.cells["x"]
    return only


def test_each_patient_is_a_row(tmp_path: Path) -> None:
    export = tmp_path / "export"
    ndjson(export / "Observation.ndjson.gz", observation("b", "2160-0", **quantity(1.1)))
    ndjson(
        export / "Patient.000.ndjson",
        patient("a", gender="male", birthDate="1950-05-02"),
        patient("b", gender="unknown", birthDate="1950"),
        patient("c", deceasedBoolean=True),
    )
    ndjson(export / "Condition.ndjson", condition("a", "I21.4", onsetDateTime="2019-05"))
    ndjson(export / "Encounter.ndjson", {"resourceType": "Encounter", "id": "e"}, "")
    (export / "notes.txt").write_text("not JSON")
    take = {"sex": {"kind": "gender"}, "age": {"kind": "age"}, "creatinine": CREATININE, "infarct": INFARCT}
    found = records(
        section(take=take | {"died": {"kind": "death", "when": "ever"}}, index="2020-05-01"), tmp_path
    )
    assert found.cells == {
        "patient_id": ("a", "b", "c"),
        "sex": ("male", "unknown", ""),
        "age": ("69", "69", ""),
        "creatinine": ("", "1.1", ""),
        "infarct": ("1", "0", "0"),
        "died": ("0", "0", "1"),
    }
    assert found.place(1) == f"{export / 'Patient.000.ndjson'}, line 2"


def test_a_bundle_on_a_line_is_its_resources(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"fullUrl": "urn:uuid:p", "resource": patient("p")},
        {"resource": observation("x", "2160-0", **quantity(3)) | {"subject": {"reference": "urn:uuid:p"}}},
        {"request": {"method": "DELETE"}},
    ]
    ndjson(tmp_path / "one.ndjson", {"resourceType": "Bundle", "entry": entries})
    assert records(section("one.ndjson"), tmp_path).cells["x"] == ("3",)
    entries[1]["resource"]["valueQuantity"]["unit"] = entries[1]["resource"]["valueQuantity"]["code"] = (
        "stone"
    )
    ndjson(tmp_path / "one.ndjson", {"resourceType": "Bundle", "entry": entries})
    assert "line 1, entry 2 (for the column 'x')" in refused(section("one.ndjson"), tmp_path).where


@pytest.mark.parametrize(
    "reference", ["Patient/p", "https://fhir.example/r4/Patient/p", "Patient/p/_history/3", "urn:uuid:p"]
)
def test_a_patient_is_known_by_any_usual_reference(tmp_path: Path, reference: str) -> None:
    resource = observation("p", "2160-0", **quantity(1.5)) | {"subject": {"reference": reference}}
    assert cell(tmp_path, CREATININE, resource) == "1.5"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (quantity(1.50), "1.5"),
        (quantity(100, "umol/L"), "1.13"),
        ({"valueQuantity": {"value": 100, "unit": "micromole", "code": "umol/L"}}, "1.13"),
        ({"valueQuantity": {"value": 2, "unit": "mg/dL"}}, "2"),
        ({"valueQuantity": {"unit": "mg/dL"}}, ""),
        ({"dataAbsentReason": {"text": "lost"}}, ""),
    ],
)
def test_a_number_comes_in_a_unit_that_the_mapping_names(tmp_path: Path, value: dict, expected: str) -> None:
    assert cell(tmp_path, CREATININE, observation("p", "2160-0", **value)) == expected


def test_a_number_keeps_the_digits_that_were_written(tmp_path: Path) -> None:
    line = json.dumps(observation("p", "2160-0", **quantity(0))).replace('"value": 0', '"value": 1.50')
    ndjson(tmp_path / "all.ndjson", patient("p"), line)
    assert records(section("all.ndjson"), tmp_path).cells["x"] == ("1.50",)


def test_a_number_without_a_unit_needs_the_mappings_word(tmp_path: Path) -> None:
    bare = observation("p", "2160-0", valueQuantity={"value": 7})
    assert cell(tmp_path, CREATININE | {"units": {"": 1.0}}, bare) == "7"


@pytest.mark.parametrize(("compared", "expected"), [("limit", "5"), ("leave_out", "")])
def test_a_number_with_a_sign_is_taken_as_the_mapping_says(
    tmp_path: Path, compared: str, expected: str
) -> None:
    how = CREATININE | {"compared": compared}
    assert cell(tmp_path, how, observation("p", "2160-0", **quantity(5, comparator="<"))) == expected


def test_a_component_answers_like_an_observation(tmp_path: Path) -> None:
    parts = [
        {"code": {"coding": [{"system": LOINC, "code": code}]}, **quantity(value, "mm[Hg]")}
        for code, value in (("8480-6", 128), ("8462-4", 79))
    ]
    how = CREATININE | {"codes": ["8462-4"], "units": {"mm[Hg]": 1.0}}
    assert cell(tmp_path, how, observation("p", "85354-9", component=parts)) == "79"


def test_only_observations_that_are_final_count(tmp_path: Path) -> None:
    found = [
        observation("p", "2160-0", **quantity(number)) | {"status": status}
        for number, status in enumerate(
            ["final", "amended", "corrected", "preliminary", "entered-in-error", "unknown"]
        )
    ]
    assert cell(tmp_path, CREATININE | {"choose": "mean"}, *found) == "1.0"


def test_a_code_counts_in_its_own_system_only(tmp_path: Path) -> None:
    other = observation("p", "2160-0", **quantity(9))
    other["code"]["coding"][0]["system"] = SNOMED
    assert cell(tmp_path, CREATININE, other) == ""


@pytest.mark.parametrize(
    ("time", "counts"),
    [
        ({"effectiveDateTime": "2020-05-01T23:59:00-11:00"}, True),
        ({"effectiveInstant": "2020-05-02T00:00:00Z"}, False),
        ({"effectivePeriod": {"start": "2020-04-30", "end": "2020-05-02"}}, False),
        ({"issued": "2020-05-01T08:00:00Z"}, True),
        ({"effectiveDateTime": "2020"}, False),
        ({}, False),
    ],
)
def test_nothing_counts_that_may_lie_behind_the_index(tmp_path: Path, time: dict, counts: bool) -> None:
    found = observation("p", "2160-0", at="", **quantity(1)) | time
    assert cell(tmp_path, CREATININE, found, index="2020-05-01") == ("1" if counts else "")


def test_a_coded_answer_is_its_code(tmp_path: Path) -> None:
    how = {"kind": "observation", "system": LOINC, "codes": ["72166-2"], "value": "code"}
    answer = coded((LOINC, "LA15920-4"), (SNOMED, "8517006"))
    found = observation("p", "72166-2", **answer)
    assert cell(tmp_path, how | {"answers": SNOMED}, found) == "8517006"
    ndjson(tmp_path / "export" / "all.ndjson", patient("p"), found)
    assert refused(section(take={"x": how}), tmp_path).found == "2 codes"


def test_any_says_whether_it_was_observed(tmp_path: Path) -> None:
    how = {"kind": "observation", "system": LOINC, "codes": ["2160-0"], "choose": "any"}
    assert cell(tmp_path, how, observation("p", "2160-0", valueString="hunter2")) == "1"
    assert cell(tmp_path, how, observation("p", "2160-0")) == "0"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (condition("p", "I21.9", onsetDateTime="2020-05-01"), "1"),
        (condition("p", "I22.0", onsetPeriod={"start": "2020-01-01"}), "1"),
        (condition("p", "I22.09", recordedDate="2020-01-01"), "0"),
        (condition("p", "I21.9", onsetDateTime="2020-05-02"), "0"),
        (condition("p", "I21.9"), "0"),
        (
            condition(
                "p", "I21.9", recordedDate="2019", verificationStatus={"coding": [{"code": "refuted"}]}
            ),
            "0",
        ),
        (
            condition(
                "p", "I21.9", recordedDate="2019", verificationStatus={"coding": [{"code": "confirmed"}]}
            ),
            "1",
        ),
    ],
)
def test_a_condition_counts_if_it_was_there_before(tmp_path: Path, found: dict, expected: str) -> None:
    assert cell(tmp_path, INFARCT, found, index="2020-05-01") == expected


def test_a_death_after_the_index_is_an_outcome(tmp_path: Path) -> None:
    died = patient("p", deceasedDateTime="2020-05-20T10:00:00Z")
    ndjson(tmp_path / "all.ndjson", died, patient("q"))
    take = {"x": {"kind": "death", "when": "after", "days": 30}}
    assert records(section("all.ndjson", take=take, index="2020-05-01"), tmp_path).cells["x"] == ("1", "0")
    assert records(section("all.ndjson", take=take, index="2020-04-01"), tmp_path).cells["x"] == ("0", "0")


NUMBER = observation("p", "2160-0", **quantity(1))


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("hunter2", "line 2"),
        ('{"a": NaN}', "line 2"),
        ("[1]", "line 2"),
        ("[" * 100_000, "line 2"),
        ("{}", "line 2"),
        (patient("p"), "line 1 and "),
        (patient(""), "line 2, id"),
        (patient("q", birthDate="hunter2"), "line 2, birthDate"),
        (patient("q", birthDate=1950), "line 2, birthDate"),
        (NUMBER | {"subject": {"reference": "Patient/hunter2"}}, "line 2, subject.reference"),
        (NUMBER | {"subject": {"reference": "#hunter2"}}, "line 2, subject.reference (for the column 'x')"),
        (NUMBER | {"subject": {"display": "hunter2"}}, "line 2, subject.reference (for the column 'x')"),
        (NUMBER | {"status": None}, "line 2, status"),
        (NUMBER | {"effectiveDateTime": "hunter2"}, "line 2, effectiveDateTime (for the column 'x')"),
        (NUMBER | quantity(1, "hunter2"), "line 2 (for the column 'x'), valueQuantity.unit"),
        (NUMBER | {"valueQuantity": {"value": 1}}, "line 2 (for the column 'x'), valueQuantity.unit"),
        (NUMBER | quantity("hunter2"), "line 2 (for the column 'x'), valueQuantity.value"),
        (NUMBER | quantity(True), "line 2 (for the column 'x'), valueQuantity.value"),
        (NUMBER | quantity(10**400), "line 2 (for the column 'x'), valueQuantity.value"),
        (NUMBER | quantity(1, comparator="<"), "line 2 (for the column 'x'), valueQuantity.comparator"),
        (observation("p", "2160-0", valueString="hunter2"), "line 2 (for the column 'x')"),
    ],
)
def test_a_resource_that_cannot_be_used_is_named_by_line_and_column(
    tmp_path: Path, line: dict[str, Any] | str, where: str
) -> None:
    file = tmp_path / "export" / "all.ndjson"
    ndjson(file, patient("p"), line)
    error = refused(section(), tmp_path)
    assert f"{file}, {where}" in error.where
    assert "hunter2" not in str(error)
    assert "10000" not in str(error)


def test_a_date_of_a_condition_that_is_none_is_named(tmp_path: Path) -> None:
    ndjson(tmp_path / "all.ndjson", patient("p"), condition("p", "I21", onsetPeriod={"start": "hunter2"}))
    error = refused(section("all.ndjson", take={"x": INFARCT}), tmp_path)
    assert "line 2, onsetPeriod.start (for the column 'x')" in error.where
    assert "hunter2" not in str(error)


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.ndjson.gz").write_bytes(b"hunter2")
    assert "cannot be unpacked" in refused(section("all.ndjson.gz"), tmp_path).what
    assert "no such" in refused(section("nowhere"), tmp_path).what
    (tmp_path / "empty").mkdir()
    assert "no NDJSON file" in refused(section("empty"), tmp_path).what


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": {}}, "'units'"),
        ({"value": "code"}, "'units'"),
        ({"value": "code", "units": {}, "choose": "mean"}, "not a number"),
        ({"choose": "any"}, "'units'"),
        ({"when": "before"}, "index"),
        ({"codes": []}, "at least 1"),
        ({"units": {"mg/dL": 0.0}}, "greater than 0"),
        ({"choose": "median"}, "'last', 'first'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    error = refused(section(take={"x": CREATININE | change}), tmp_path)
    assert message in str(error)
    assert "site.toml" in error.where


def test_a_misspelt_key_of_a_column_is_told_by_its_path(tmp_path: Path) -> None:
    error = refused(section(take={"x": CREATININE | {"unit": "mg"}}), tmp_path)
    assert "take.x.unit" in error.what
    assert "did you mean 'units'" in error.expected
    assert "there is no 'observatoin'" in refused(section(take={"x": {"kind": "observatoin"}}), tmp_path).what
