"""Cells become tensors as the study says; a bad one is named by file, line and column, never by its value."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.errors import DataError
from clinimeta.common.tasks.batch import stack_examples
from clinimeta.common.tasks.schema import Column, Schema
from clinimeta.common.tasks.table import (
    MISSING_CELLS,
    Records,
    Standard,
    Table,
    absent_columns,
    describe_cell,
    encode,
    model_inputs,
    read_targets,
    read_values,
    unusable_rows,
)

SECRET = "4711"
AGE = Column(name="age", unit="years", center=50.0, scale=10.0)
SEX = Column(name="sex", kind="binary")
PAIN = Column(name="pain", kind="categorical", levels=("1", "2", "3"))
CELLS = {
    "age": ["40", "50", "65"],
    "sex": ["0", "1", "1"],
    "pain": ["1", "2", "3"],
    "sick": ["no", "yes", "no"],
}


def schema(*columns: Column, **values: Any) -> Schema:
    return Schema(
        **{"target": "sick", "classes": ("no", "yes"), "columns": columns or (AGE, SEX, PAIN), **values}
    )


def records(first_line: int = 2, **cells: Sequence[str]) -> Records:
    return Records("ulm.csv", {**CELLS, **cells}, first_line)


def inputs(table: Table) -> np.ndarray:
    return table.rows.inputs["table"].numpy()


def test_a_cell_becomes_what_the_studys_columns_say() -> None:
    table = encode(schema(), records())
    assert table.rows.inputs["table"].dtype == torch.float32
    np.testing.assert_allclose(inputs(table), [[-1, 0, 0, 0], [0, 1, 1, 0], [1.5, 1, 0, 1]])
    assert table.rows.targets.tolist() == [0, 1, 0]
    assert table.rows.weights.tolist() == [1, 1, 1]
    assert len(table) == 3


def test_spaces_around_a_cell_do_not_count() -> None:
    plain, spaced = (
        encode(schema(), records()),
        encode(schema(), records(**{name: [f" {cell} " for cell in cells] for name, cells in CELLS.items()})),
    )
    assert torch.equal(plain.rows.inputs["table"], spaced.rows.inputs["table"])
    assert torch.equal(plain.rows.targets, spaced.rows.targets)


def test_columns_that_the_study_does_not_name_are_not_read() -> None:
    assert encode(schema(AGE), records(note=["x", "y", "z"])).rows.inputs["table"].shape == (3, 1)


@pytest.mark.parametrize(("cell", "level"), [("1.0", 0), ("2.00", 1), ("3", 2), ("03", 2)])
def test_a_level_may_be_written_as_another_form_of_the_same_number(cell: str, level: int) -> None:
    table = encode(schema(PAIN), records(pain=[cell] * 3))
    assert inputs(table)[0].tolist() == [float(level == 1), float(level == 2)]


def test_a_class_may_be_written_as_another_form_of_the_same_number() -> None:
    table = encode(schema(AGE, classes=("0", "1")), records(sick=["0.0", "1.0", "1"]))
    assert table.rows.targets.tolist() == [0, 1, 1]


def test_a_level_is_first_of_all_its_own_text() -> None:
    table = encode(
        schema(Column(name="pain", kind="categorical", levels=("1", "1.0"))), records(pain=["1.0"] * 3)
    )
    assert inputs(table).tolist() == [[1.0]] * 3


def test_without_classes_the_target_is_a_number_as_it_stands() -> None:
    table = encode(schema(AGE, classes=()), records(sick=["1.5", "-2", "1e3"]))
    assert table.rows.targets.dtype == torch.float32
    assert table.rows.targets.tolist() == [1.5, -2.0, 1000.0]


# Missing cells

EMPTY = st.sampled_from(sorted(MISSING_CELLS))


@given(mark=EMPTY)
def test_an_empty_cell_is_refused_unless_the_study_says_otherwise(mark: str) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        encode(schema(AGE), records(age=["40", mark, "65"]))
    with pytest.raises(DataError, match="cannot be used"):
        encode(schema(PAIN), records(pain=["1", mark, "2"]))


@given(mark=EMPTY)
def test_an_empty_cell_may_stand_at_the_columns_center(mark: str) -> None:
    table = encode(schema(missing="center"), records(age=["40", mark, "65"], pain=["1", "2", mark]))
    np.testing.assert_allclose(inputs(table), [[-1, 0, 0, 0], [0, 1, 1, 0], [1.5, 1, 0, 0]])


def test_an_empty_cell_may_also_raise_its_columns_indicator() -> None:
    table = encode(schema(missing="indicator"), records(age=["40", "?", "65"], pain=["", "2", "3"]))
    np.testing.assert_allclose(
        inputs(table), [[-1, 0, 0, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0, 0], [1.5, 1, 0, 1, 0, 0, 0]]
    )
    assert len(schema(missing="indicator").features) == inputs(table).shape[1]


def test_a_study_may_mask_so_that_the_model_is_told_what_was_there() -> None:
    table = encode(schema(missing="mask"), records(age=["40", "?", "65"], pain=["", "2", "3"]))
    np.testing.assert_allclose(inputs(table), [[-1, 0, 0, 0], [0, 1, 1, 0], [1.5, 1, 0, 1]])
    present = table.rows.inputs["present"]
    assert present.dtype == torch.float32
    assert present.tolist() == [[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]
    assert present.shape[1] == len(schema(missing="mask").features)


@pytest.mark.parametrize("missing", ["refuse", "center", "indicator"])
def test_any_other_study_gives_the_model_one_table(missing: Any) -> None:
    assert list(encode(schema(missing=missing), records()).rows.inputs) == ["table"]


MAY_LACK = (AGE, PAIN.model_copy(update={"optional": True}), SEX.model_copy(update={"optional": True}))


@pytest.mark.parametrize("normalise", ["study", "site"])
def test_a_table_without_an_optional_column_is_one_with_its_cells_empty(normalise: Any) -> None:
    chosen = schema(*MAY_LACK, missing="mask", normalise=normalise)
    cells = {name: column for name, column in CELLS.items() if name != "pain"}
    lacking, empty = encode(chosen, Records("ulm.csv", cells)), encode(chosen, records(pain=["", "?", "NA"]))
    for name in ("table", "present"):
        assert torch.equal(lacking.rows.inputs[name], empty.rows.inputs[name])
    assert lacking.rows.inputs["present"].tolist() == [[1, 0, 0, 1]] * 3
    assert lacking.rows.inputs["table"][:, 1:3].tolist() == [[0, 0]] * 3
    assert absent_columns(chosen, Records("ulm.csv", cells)) == ("pain",)
    assert absent_columns(chosen, records()) == ()


def test_a_table_may_lack_every_column_that_is_optional() -> None:
    chosen = schema(*MAY_LACK[1:], missing="mask")
    table = encode(chosen, Records("ulm.csv", {"sick": ["no", "yes"]}))
    assert table.rows.inputs["table"].tolist() == table.rows.inputs["present"].tolist() == [[0, 0, 0]] * 2


def test_a_masked_table_keeps_its_rows_together_and_padding_has_nothing() -> None:
    table = encode(schema(AGE, missing="mask"), records(age=["40", "", "65"]), test=[False, False, True])
    rows = table.training.rows.take(torch.tensor([1, 0]))
    assert rows.inputs["present"].tolist() == [[0.0], [1.0]]
    batch = stack_examples([rows, table.rows])
    assert batch.inputs["present"].tolist() == [[[0.0], [1.0], [0.0]], [[1.0], [0.0], [1.0]]]


@pytest.mark.parametrize("missing", ["center", "indicator", "mask"])
@pytest.mark.parametrize("classes", [("no", "yes"), ()])
def test_the_target_is_never_missing(missing: Any, classes: tuple[str, ...]) -> None:
    numbers = ["no", "", "yes"] if classes else ["1", "", "2"]
    with pytest.raises(DataError, match="column 'sick'"):
        encode(schema(AGE, missing=missing, classes=classes), records(sick=numbers))


# Standardisation


def test_a_site_may_standardise_by_its_own_rows() -> None:
    table = encode(schema(AGE, SEX, normalise="site"), records())
    values = np.array([[40, 0], [50, 1], [65, 1]], dtype=float)
    np.testing.assert_allclose(inputs(table), (values - values.mean(0)) / values.std(0, ddof=1), rtol=1e-6)


def test_a_column_in_which_nothing_varies_becomes_zero() -> None:
    table = encode(schema(AGE, normalise="site"), records(age=["50", "50", "50"]))
    assert inputs(table).tolist() == [[0.0]] * 3


@given(st.integers(-70, 175))
def test_test_rows_do_not_enter_the_sites_statistics(value: int) -> None:
    chosen = schema(AGE, normalise="site")
    ages = ["40", str(value), "65", "52"]
    cells = {"age": ages, "sick": ["no", "yes", "no", "yes"]}
    table = encode(chosen, Records("ulm.csv", cells), test=[False, True, False, False])
    known = np.array([40.0, 65.0, 52.0])
    expected = (np.array([float(a) for a in ages]) - known.mean()) / known.std(ddof=1)
    np.testing.assert_allclose(inputs(table)[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_site_of_test_rows_only_still_has_a_table() -> None:
    table = encode(schema(AGE, normalise="site"), records(), test=[True] * 3)
    assert np.isfinite(inputs(table)).all()
    assert len(table.training) == 0


@pytest.mark.parametrize("normalise", ["study", "site"])
def test_one_typing_error_is_cut_at_the_studys_clip(normalise: Any) -> None:
    ages = ["40", "50", "52", "-65000"]
    cells = {"age": ages, "sick": ["no"] * 4}
    table = encode(
        schema(AGE, clip=1.4, normalise=normalise), Records("ulm.csv", cells), test=[False] * 3 + [True]
    )
    assert inputs(table).min() == np.float32(-1.4)
    assert inputs(table)[:3].min() > -1.4


def test_a_gap_is_no_extreme_value() -> None:
    table = encode(schema(AGE, missing="indicator", clip=0.5), records(age=["40", "", "65"]))
    assert inputs(table).tolist() == [[-0.5, 0.0], [0.0, 1.0], [0.5, 0.0]]


def values_with_gaps() -> st.SearchStrategy[np.ndarray]:
    number = st.one_of(st.just(math.nan), st.floats(-1e3, 1e3, width=32))
    return st.integers(1, 3).flatmap(
        lambda width: st.lists(st.lists(number, min_size=width, max_size=width), min_size=1, max_size=6).map(
            lambda rows: np.array(rows, dtype=np.float64)
        )
    )


@given(values_with_gaps())
def test_the_sites_statistics_are_the_textbooks_over_the_cells_that_are_there(values: np.ndarray) -> None:
    found = Standard.of(values)
    for j in range(values.shape[1]):
        there = values[~np.isnan(values[:, j]), j]
        deviation = there.std(ddof=1) if len(there) > 1 else 0.0
        assert found.center[j] == pytest.approx(there.mean() if len(there) else 0.0, rel=1e-9, abs=1e-9)
        assert found.scale[j] == pytest.approx(deviation if deviation > 1e-12 else 1.0, rel=1e-6)


def test_new_rows_can_be_standardised_by_others_numbers() -> None:
    chosen = schema(AGE, normalise="site")
    values = read_values(chosen, records())
    new = model_inputs(chosen, values, Standard(np.array([40.0]), np.array([5.0])))
    assert {name: x.tolist() for name, x in new.items()} == {"table": [[0.0], [2.0], [5.0]]}


# People and test rows


def test_rows_of_one_person_share_a_number() -> None:
    table = encode(schema(AGE, patient="person"), records(person=["b", "a", "b"]))
    numbers = table.patients.tolist()
    assert numbers[0] == numbers[2] != numbers[1]


def test_spaces_do_not_make_a_person_two() -> None:
    table = encode(schema(AGE, patient="person"), records(person=["b", "a", " b "]))
    assert table.patients[0] == table.patients[2] != table.patients[1]


def test_without_a_patient_column_each_row_is_a_person() -> None:
    assert sorted(encode(schema(AGE), records()).patients.tolist()) == [0, 1, 2]


def test_training_sees_no_test_row() -> None:
    table = encode(schema(AGE), records(), test=[False, True, False])
    assert inputs(table.training)[:, 0].tolist() == [-1.0, 1.5]
    assert table.training.patients.tolist() == [0, 2]
    assert not table.training.test.any()
    assert table.test.tolist() == [False, True, False]


def test_rows_are_taken_in_the_order_asked_for() -> None:
    taken = encode(schema(AGE), records(), test=[False, True, False]).take(torch.tensor([2, 1]))
    assert inputs(taken)[:, 0].tolist() == [1.5, 0.0]
    assert (taken.rows.targets.tolist(), taken.test.tolist()) == ([0, 1], [False, True])


# What is said of what cannot be used


def refused(chosen: Schema, rows: Records) -> DataError:
    with pytest.raises(DataError) as caught:
        encode(chosen, rows)
    error = caught.value
    for text in (str(error), repr(error), *map(str, error.args), *error.details().values()):
        assert SECRET not in text
    assert error.__cause__ is None
    assert error.details().keys() >= {"where", "found", "expected", "what to do"}
    return error


BAD_CELLS: Mapping[str, tuple[Schema, str, str, str]] = {
    "a word for a number": (schema(AGE), "age", f"old{SECRET}", "a number in years"),
    "a decimal comma": (schema(AGE), "age", f"{SECRET},5", "a number in years"),
    "a unit": (schema(AGE), "age", f"{SECRET} mg/dL", "a number in years"),
    "a comparison": (schema(AGE), "age", f"<{SECRET}", "a number in years"),
    "infinity": (schema(AGE), "age", "inf", "a number in years"),
    "digits that Python alone would read": (schema(AGE), "age", f"1_{SECRET}", "a number in years"),
    "a number without a unit": (schema(Column(name="age")), "age", f"x{SECRET}", "a number"),
    "neither 0 nor 1": (schema(SEX), "sex", SECRET, "0 or 1"),
    "an unknown level": (schema(PAIN), "pain", SECRET, "one of 1, 2, 3"),
    "an unknown class": (schema(AGE), "sick", SECRET, "one of no, yes"),
    "a target that is no number": (schema(AGE, classes=()), "sick", f"x{SECRET}", "a number"),
}


@pytest.mark.parametrize(("chosen", "column", "cell", "expected"), BAD_CELLS.values(), ids=list(BAD_CELLS))
def test_a_bad_cell_is_named_by_file_line_and_column_and_never_shown(
    chosen: Schema, column: str, cell: str, expected: str
) -> None:
    good = {"sick": ["1", "2", "3"]} if not chosen.classes else {}
    cells = [*{**CELLS, **good}[column][:2], cell]
    error = refused(chosen, records(**{**good, column: cells}))
    assert error.where == f"ulm.csv, line 4, column '{column}'"
    assert error.expected == expected
    assert error.found == describe_cell(cell)


def test_the_line_counts_from_where_the_source_says() -> None:
    assert "line 12," in refused(schema(AGE), records(10, age=["40", "50", SECRET + "x"])).where


@pytest.mark.parametrize(
    ("chosen", "gone"),
    [
        (schema(AGE), "age"),
        (schema(AGE), "sick"),
        (schema(AGE, patient="person"), "person"),
        (schema(*MAY_LACK, missing="mask"), "age"),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(chosen: Schema, gone: str) -> None:
    rows = Records("ulm.csv", {n: [SECRET] * 3 if n == "other" else c for n, c in CELLS.items() if n != gone})
    error = refused(chosen, rows)
    assert error.what == f"the column '{gone}' is missing"
    assert error.where == "ulm.csv"
    assert "pain" in error.found


def test_a_misspelt_column_is_recognised() -> None:
    cells = {"Age": CELLS["age"], **{n: c for n, c in CELLS.items() if n != "age"}}
    assert "did you mean 'Age'?" in refused(schema(AGE), Records("ulm.csv", cells)).expected


@pytest.mark.parametrize(
    ("cells", "found"), [({}, "an empty file"), ({"age": [], "sick": []}, "no line after the header")]
)
def test_a_table_without_rows_is_refused(cells: dict[str, list[str]], found: str) -> None:
    error = refused(schema(AGE), Records("ulm.csv", cells))
    assert (error.what, error.where, error.found) == ("there are no rows", "ulm.csv", found)


def test_neither_records_nor_tables_show_a_value() -> None:
    rows = records(age=[SECRET, "1", "2"])
    assert SECRET not in repr(rows)
    assert "3 rows" in repr(rows)
    table = encode(schema(Column(name="age")), rows)
    assert SECRET not in repr(table)
    assert "3 rows" in repr(table)


KINDS = re.compile(
    r"an empty cell|a missing-value mark|a number|a number with a decimal comma"
    r"|a number with a comparison sign|a number followed by text \(a unit\?\)|text of (\d+) characters"
)


@given(st.one_of(st.text(max_size=20), st.from_regex(r"[<>=]?-?[0-9]{0,4}[.,_]?[0-9]{0,3} ?[a-zA-Z/%]{0,5}")))
def test_a_description_is_one_of_a_few_kinds_and_at_most_a_length(cell: str) -> None:
    kind = KINDS.fullmatch(describe_cell(cell))
    assert kind is not None
    assert kind.group(1) in (None, str(len(cell.strip())))


@given(st.one_of(st.text(max_size=8), st.floats().map(str), st.integers().map(str)))
def test_what_is_called_a_number_is_read_as_one_and_nothing_else_is(cell: str) -> None:
    chosen = schema(Column(name="age"))
    try:
        encode(chosen, records(age=[cell] * 3))
        accepted = True
    except DataError:
        accepted = False
    assert accepted == (describe_cell(cell) == "a number")


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("", "an empty cell"),
        ("  ", "an empty cell"),
        ("NA", "a missing-value mark"),
        ("-3.5", "a number"),
        ("3,5", "a number with a decimal comma"),
        ("< 5", "a number with a comparison sign"),
        (">=5.5", "a number with a comparison sign"),
        ("5 mg/dl", "a number followed by text (a unit?)"),
        ("80%", "a number followed by text (a unit?)"),
        ("2020-01-31", "text of 10 characters"),
        ("high", "text of 4 characters"),
    ],
)
def test_each_kind_of_cell_has_its_words(cell: str, kind: str) -> None:
    assert describe_cell(cell) == kind


# Places


def test_a_row_that_is_no_line_is_named_as_its_source_names_it() -> None:
    table = Records(
        "the query", CELLS | {"age": ["40", SECRET + "x", "65"]}, places=["row 1", "row 2", "row 3"]
    )
    with pytest.raises(DataError) as caught:
        encode(schema(), table)
    assert caught.value.where == "the query, row 2, column 'age'"


@given(
    cells=st.lists(st.sampled_from(["40", "1", "0", "3", "x", "1,5", "", "NA", "no", "yes"]), min_size=1),
    name=st.sampled_from(["age", "sex", "pain", "sick", "score"]),
    missing=st.sampled_from(["refuse", "center", "mask"]),
)
def test_the_unusable_rows_are_those_that_encoding_would_refuse(
    cells: list[str], name: str, missing: str
) -> None:
    known = schema(missing=missing)
    if name == "score":
        known = schema(missing=missing, target="score", classes=())
    table = Records("ulm.csv", {**{n: [c[0]] * len(cells) for n, c in CELLS.items()}, name: cells})

    def refused(row: int) -> bool:
        one = Records("ulm.csv", {n: [column[row]] for n, column in table.cells.items()})
        try:
            read_values(known, one)
            read_targets(known, one)
        except DataError:
            return True
        return False

    assert list(unusable_rows(known, table, name)) == [row for row in range(len(cells)) if refused(row)]
