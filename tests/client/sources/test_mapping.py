"""A mapping turns a hospital's names, codes and units into a study's, and is checked before any cell is."""

import pytest
from hospital_data import STUDY
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.sources.mapping import Translation, known_columns, mistakes, translate
from clinimeta.common.errors import DataError
from clinimeta.common.tasks.table import Records, encode

CELLS = {
    "patient": ["1", "1", "2"],
    "AGE": ["63", "64", ""],
    "sex": ["W", "M", "W"],
    "krea": ["88.4", "NA", "150"],
    "smoker": ["1", "2.0", "3"],
    "died": ["no", "no", "yes"],
}
WORDS = Translation(
    columns={"age": "AGE", "creatinine": "krea"},
    values={"sex": {"W": "0", "M": "1"}, "smoker": {"1": "never", "2": "former", "3": "current"}},
    scale={"creatinine": 0.0113},
)


def hospital(**more: list[str]) -> Records:
    return Records("ulm.csv", CELLS | more)


def test_names_codes_and_units_become_the_studys() -> None:
    found = translate(hospital(ward=["A", "B", "C"]), WORDS, STUDY)
    assert found.cells == {
        "age": ("63", "64", ""),
        "sex": ("0", "1", "0"),
        "creatinine": ("0.99892", "NA", "1.695"),
        "smoker": ("never", "former", "current"),
        "died": ("no", "no", "yes"),
        "patient": ("1", "1", "2"),
    }
    assert len(encode(STUDY, found)) == 3


def test_what_is_not_named_stays_for_the_table_to_judge() -> None:
    found = translate(hospital(sex=["X", " W ", "<5"], krea=["<5", "1,5", "5 mg"]), WORDS, STUDY)
    assert found.cells["sex"] == ("X", "0", "<5")
    assert found.cells["creatinine"] == ("<5", "1,5", "5 mg")


def test_rows_keep_their_places() -> None:
    records = Records("x", CELLS, places=("row 7", "row 8", "row 9"))
    assert translate(records, WORDS, STUDY).place(2) == "row 9"


def test_the_sources_own_column_of_people_is_the_patient() -> None:
    cells = {name: column for name, column in CELLS.items() if name != "patient"} | {
        "person_id": ["a", "a", "b"]
    }
    words = Translation(WORDS.columns, WORDS.values, WORDS.scale, person="person_id")
    assert translate(Records("x", cells), words, STUDY).cells["patient"] == ("a", "a", "b")
    assert translate(hospital(person_id=["a", "a", "b"]), words, STUDY).cells["patient"] == ("1", "1", "2")


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        (Translation(columns={"agee": "AGE"}), "no column 'agee'", "[data.columns], key 'agee'"),
        (Translation(scale={"krea": 2.0}), "no column 'krea'", "[data.scale], key 'krea'"),
        (Translation(scale={"sex": 2.0}), "not a number in a unit", "[data.scale], key 'sex'"),
        (Translation(scale={"died": 2.0}), "not a number in a unit", "[data.scale], key 'died'"),
        (Translation(values={"died": {"tot": "dead"}}), "'died' is translated", "[data.values.died]"),
        (Translation(values={"sex": {"W": "female"}}), "'sex' is translated", "[data.values.sex]"),
        (Translation(values={"age": {"alt": "old"}}), "'age' is translated", "[data.values.age]"),
        (Translation(columns={"age": "Alter"}), "'Alter' is missing", "key 'age'"),
        (Translation(columns={"lactate": "laktat"}), "'laktat' is missing", "key 'lactate'"),
    ],
)
def test_each_mistake_of_a_mapping_is_named(words: Translation, what: str, where: str) -> None:
    records = Records(
        "ulm.csv", {column.name: ["1"] for column in STUDY.columns} | {"died": ["no"], "patient": ["1"]}
    )
    (mistake,) = mistakes(records, words, STUDY)
    assert what in mistake.what
    assert where in mistake.where
    with pytest.raises(DataError, match=what):
        translate(records, words, STUDY)


def test_all_mistakes_are_found_at_once() -> None:
    words = Translation(columns={"ages": "AGE"}, values={"sex": {"W": "w"}}, scale={"smoker": 2.0})
    found = [mistake.what for mistake in mistakes(Records("x", {"sex": ["W"]}), words, STUDY)]
    assert len(found) == 8
    assert "the column 'creatinine' is missing" in found


def test_an_optional_column_may_be_missing_and_so_may_one_of_many_names() -> None:
    assert not mistakes(hospital(), WORDS, STUDY)
    assert "lactate" not in known_columns(hospital(), WORDS, STUDY).cells
    many = Records("x", {f"x{n}": ["1"] for n in range(3000)})
    assert all(len(mistake.expected) < 200 for mistake in mistakes(many, WORDS, STUDY))


def test_a_source_of_dated_events_is_told_to_take_the_column() -> None:
    (mistake,) = mistakes(hospital(), Translation({"age": "AGE"}, person="patient"), STUDY)
    assert "[data.take]" in mistake.remedy
    (mistake,) = mistakes(hospital(), Translation({"age": "AGE"}), STUDY)
    assert "[data.take]" not in mistake.remedy


def test_missing_marks_are_values_too() -> None:
    words = Translation(WORDS.columns, {**WORDS.values, "sex": {"W": "0", "M": "1", "D": ""}}, WORDS.scale)
    assert translate(hospital(sex=["W", "D", "M"]), words, STUDY).cells["sex"] == ("0", "", "1")


@given(st.decimals(-10_000, 10_000, places=4), st.floats(1e-6, 1e6))
def test_a_number_in_another_unit_is_the_product(number: object, factor: float) -> None:
    words = Translation(WORDS.columns, WORDS.values, {"creatinine": factor})
    found = translate(hospital(krea=[str(number)] * 3), words, STUDY).cells["creatinine"]
    assert float(found[0]) == pytest.approx(float(str(number)) * factor)
