"""A schema says what every hospital's table looks like, and a wrong one is refused with the key's name."""

from typing import Any

import pytest

from clinimeta.common.errors import StudyError
from clinimeta.common.settings import parse
from clinimeta.common.tasks.schema import Column, Schema


def schema(**values: Any) -> Schema:
    """A schema as a study file gives it."""
    plain = {"target": "sick", "classes": ["no", "yes"], "columns": [{"name": "age"}], **values}
    return parse(Schema, plain, "study.toml [table]")


def refused(**values: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        schema(**values)
    assert caught.value.where == "study.toml [table]"
    return caught.value


def test_a_categorical_column_becomes_a_feature_for_every_level_but_the_first() -> None:
    assert Column(name="cp", kind="categorical", levels=("a", "b", "c")).features == ("cp=b", "cp=c")


@pytest.mark.parametrize("kind", ["numeric", "binary"])
def test_any_other_column_is_one_feature_of_its_name(kind: Any) -> None:
    assert Column(name="age", kind=kind).features == ("age",)


CHEST_PAIN = {"name": "cp", "kind": "categorical", "levels": ["a", "b", "c"]}


@pytest.mark.parametrize("missing", ["refuse", "center", "mask"])
def test_features_keep_the_order_of_the_columns(missing: str) -> None:
    chosen = schema(columns=[{"name": "age"}, CHEST_PAIN, {"name": "sex", "kind": "binary"}], missing=missing)
    assert chosen.features == ("age", "cp=b", "cp=c", "sex")


def test_indicators_come_last_one_a_column_whatever_its_levels() -> None:
    chosen = schema(columns=[CHEST_PAIN, {"name": "age"}], missing="indicator")
    assert chosen.features == ("cp=b", "cp=c", "age", "cp missing", "age missing")


def test_without_classes_the_target_is_a_number() -> None:
    assert schema(classes=[]).classes == ()


def test_the_defaults_refuse_empty_cells_and_standardise_as_the_study_says() -> None:
    assert (schema().missing, schema().normalise, schema().patient) == ("refuse", "study", "")


OPTIONAL = [{"name": "age"}, {"name": "crp", "optional": True}]


def test_no_column_is_optional_unless_the_study_says_so() -> None:
    assert [column.optional for column in schema(columns=OPTIONAL, missing="mask").columns] == [False, True]


@pytest.mark.parametrize("missing", ["refuse", "center", "indicator"])
def test_a_column_can_be_optional_only_where_the_model_is_told_what_is_missing(missing: str) -> None:
    error = refused(columns=OPTIONAL, missing=missing)
    assert error.expected == "column 'crp' is optional, which needs missing = \"mask\""


def test_equal_schemas_are_one_key() -> None:
    assert len({schema(), schema(), schema(missing="center")}) == 2


@pytest.mark.parametrize(
    "column",
    [
        {"name": "cp", "kind": "categorical"},
        {"name": "cp", "kind": "categorical", "levels": ["a"]},
        {"name": "cp", "kind": "numeric", "levels": ["a", "b"]},
        {"name": "cp", "kind": "binary", "levels": ["a", "b"]},
    ],
)
def test_levels_belong_to_categorical_columns_and_to_them_alone(column: dict[str, Any]) -> None:
    error = refused(columns=[column])
    assert "'cp'" in error.expected
    assert "columns[0]" in error.what


@pytest.mark.parametrize(
    "columns",
    [[{"name": "age"}, {"name": "age"}], [{"name": "age"}, {"name": "sick"}]],
    ids=["twice", "target"],
)
def test_a_name_stands_for_one_column(columns: list[dict[str, Any]]) -> None:
    assert "occurs twice, or the target is also a column" in refused(columns=columns).expected


def test_a_single_class_is_no_question() -> None:
    assert "two or more classes" in refused(classes=["yes"]).expected


@pytest.mark.parametrize(
    "values",
    [{"classes": ["no", "no"]}, {"columns": [{**CHEST_PAIN, "levels": ["a", "b", "a"]}]}],
    ids=["classes", "levels"],
)
def test_a_class_or_level_is_named_once(values: dict[str, Any]) -> None:
    assert "twice" in refused(**values).expected


def test_a_table_needs_a_column() -> None:
    assert "columns" in refused(columns=[]).what


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ({"name": "age", "scale": 0.0}, "columns[0].scale"),
        ({"name": "age", "scale": -1.0}, "columns[0].scale"),
        ({"name": "age", "center": float("nan")}, "columns[0].center"),
        ({"name": "age", "kind": "ordinal"}, "columns[0].kind"),
        ({"name": "age", "levels": "ab"}, "columns[0].levels"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_key(column: dict[str, Any], key: str) -> None:
    assert f"'{key}'" in refused(columns=[column]).what


def test_a_misspelt_key_is_named_with_the_nearest() -> None:
    error = refused(columns=[{"name": "age", "centre": 60.0}])
    assert "unknown key 'columns[0].centre'" in error.what
    assert "did you mean 'center'?" in error.expected
