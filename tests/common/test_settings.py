"""Settings take exactly what they say; a wrong key is an error that names its path and the nearest."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, MinLen
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Discriminator, ValidationError, model_validator
from typing_extensions import TypedDict

from clinimeta.common.errors import (
    ClinimetaError,
    DataError,
    MissingDataError,
    NumericalError,
    QuorumError,
    RecordError,
    RunDirError,
    StudyError,
    UserError,
    nearest,
)
from clinimeta.common.settings import STRICT, Settings, hyperparameters, is_number, parse, quoted


class Inner(Settings):
    rate: float = 0.5
    rounds: Annotated[int, Ge(0)] = 3


class Loosely(TypedDict):
    """A group that is no `Settings`: its keys cannot be listed, but a wrong one is still named."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    deep: "Deeper"


class Deeper(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]

    rate: float


class Near(Settings):
    kind: Literal["near"] = "near"
    miles: float = 1.0


class Far(Settings):
    kind: Literal["far"] = "far"
    light_years: int


class Group(Settings):
    name: str
    origins: Mapping[str, Annotated[Near | Far, Discriminator("kind")]] = {}
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    by_name: Mapping[str, Inner] = {}
    loosely: Loosely | None = None
    kind: Literal["big", "small"] = "big"
    flag: bool = False
    numbers: Annotated[tuple[int, ...], MinLen(1)] = (1,)
    either: int | Literal["all"] = 1
    each: tuple[Annotated[int, Ge(0)] | Literal["half", "all"], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Group":
        if self.name == "wrong":
            raise ValueError("the name and the kind do not fit")
        return self


def refused(**values: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        parse(Group, {"name": "x", **values}, "study.toml")
    assert caught.value.where == "study.toml"
    return caught.value


def test_values_as_toml_gives_them_become_settings() -> None:
    found = parse(
        Group,
        {
            "name": "x",
            "inner": {"rate": 1},
            "several": [{}, {"rounds": 0}],
            "numbers": [1, 2],
            "each": [3, "all"],
        },
        "study.toml",
    )
    expected = Group(
        name="x",
        inner=Inner(rate=1.0),
        several=(Inner(), Inner(rounds=0)),
        numbers=(1, 2),
        each=(3, "all"),
    )
    assert found == expected
    assert isinstance(found.inner.rate, float)


@given(rate=st.floats(allow_nan=False, allow_infinity=False), rounds=st.integers(0, 2**62))
def test_numbers_are_read_to_the_bit(rate: float, rounds: int) -> None:
    assert parse(Inner, {"rate": rate, "rounds": rounds}, "x") == Inner(rate=rate, rounds=rounds)


def test_settings_do_not_change() -> None:
    settings = Inner()
    with pytest.raises(ValidationError, match="frozen"):
        settings.rate = 1.0  # type: ignore[misc]


# Wrong keys

KNOWN = ", ".join(sorted(Group.model_fields))
FAR_OR_NEAR = "did you mean 'miles'? there is: kind, miles"


@pytest.mark.parametrize(
    ("values", "path", "expected"),
    [
        ({"nam": 1}, "nam", f"did you mean 'name'? there is: {KNOWN}"),
        ({"xyzzy": 1}, "xyzzy", f"there is: {KNOWN}"),
        ({"inner": {"rte": 1.0}}, "inner.rte", "did you mean 'rate'? there is: rate, rounds"),
        ({"several": [{}, {"rond": 1}]}, "several[1].rond", "did you mean 'rounds'? there is: rate, rounds"),
        ({"maybe": {"rte": 1.0}}, "maybe.rte", "did you mean 'rate'? there is: rate, rounds"),
        ({"by_name": {"a": {"rte": 1.0}}}, "by_name.a.rte", "did you mean 'rate'? there is: rate, rounds"),
        ({"origins": {"a": {"kind": "near", "mils": 1.0}}}, "origins.a.mils", FAR_OR_NEAR),
        ({"loosely": {"deep": {"rate": 1.0}, "dep": 1}}, "loosely.dep", "no such key here"),
        ({"loosely": {"deep": {"rate": 1.0, "rte": 1}}}, "loosely.deep.rte", "no such key here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_named_with_its_path_and_the_nearest(
    values: dict[str, Any], path: str, expected: str
) -> None:
    error = refused(**values)
    assert error.what == f"unknown key '{path}'"
    assert error.expected == expected
    assert error.remedy == "rename or remove the key"


@pytest.mark.parametrize("values", [3, None, "name", ["name"], [["name", "x"]], True], ids=str)
def test_what_is_no_table_at_all_is_refused(values: Any) -> None:
    with pytest.raises(StudyError, match="the settings do not fit") as caught:
        parse(Group, values, "study.toml")
    assert (caught.value.where, caught.value.found) == ("study.toml", json.dumps(values))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(StudyError) as caught:
        parse(Group, {}, "study.toml")
    assert caught.value.details() == {"where": "study.toml", "what to do": "add 'name' to the file"}
    assert caught.value.what == "the key 'name' is missing"


@pytest.mark.parametrize(
    ("values", "path", "found"),
    [
        ({"name": 3}, "name", "3"),
        ({"inner": {"rounds": "3"}}, "inner.rounds", '"3"'),
        ({"inner": {"rounds": 3.0}}, "inner.rounds", "3.0"),
        ({"inner": {"rounds": True}}, "inner.rounds", "true"),
        ({"inner": {"rounds": -1}}, "inner.rounds", "-1"),
        ({"inner": {"rate": "0.5"}}, "inner.rate", '"0.5"'),
        ({"inner": {"rate": True}}, "inner.rate", "true"),
        ({"inner": {"rate": float("nan")}}, "inner.rate", "NaN"),
        ({"inner": {"rate": float("-inf")}}, "inner.rate", "-Infinity"),
        ({"inner": []}, "inner", "[]"),
        ({"several": {}}, "several", "{}"),
        ({"several": [{}, 3]}, "several[1]", "3"),
        ({"kind": "bigger"}, "kind", '"bigger"'),
        ({"flag": 1}, "flag", "1"),
        ({"flag": "yes"}, "flag", '"yes"'),
        ({"numbers": []}, "numbers", "[]"),
        ({"origins": {"a": {"kind": "near", "miles": "1"}}}, "origins.a.miles", '"1"'),
        ({"numbers": [1, "2"]}, "numbers[1]", '"2"'),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_named_with_its_path(
    values: dict[str, Any], path: str, found: str
) -> None:
    error = refused(**values)
    assert error.what == f"the key '{path}' has a value that does not fit"
    assert error.found == found
    assert error.expected
    assert not error.expected.startswith("Input should be")


@pytest.mark.parametrize(
    ("values", "path"),
    [({"either": "none"}, "either"), ({"each": [1, "third"]}, "each[1]"), ({"each": [-1]}, "each[0]")],
    ids=str,
)
def test_a_value_that_fits_none_of_several_types_is_named_by_its_key_alone(
    values: dict[str, Any], path: str
) -> None:
    assert refused(**values).what.startswith(f"the key '{path}' has a value that does not fit")


@pytest.mark.parametrize(
    ("origin", "what", "expected"),
    [
        ({}, "the key 'origins.a.kind' is missing", ""),
        (
            {"kind": "fr"},
            "there is no 'fr' for the key 'origins.a.kind'",
            "did you mean 'far'? there is: far, near",
        ),
        ({"kind": "far"}, "the key 'origins.a.light_years' is missing", ""),
    ],
    ids=str,
)
def test_a_table_of_one_of_several_kinds_is_told_by_its_kind(
    origin: dict[str, Any], what: str, expected: str
) -> None:
    error = refused(origins={"a": origin})
    assert (error.what, error.expected) == (what, expected)


def test_the_first_of_several_wrong_keys_is_named_and_the_others_counted() -> None:
    error = refused(nam=1, kind="none", inner={"rte": 1, "rounds": -1})
    assert error.what.endswith("(and 3 more)")


def test_settings_that_do_not_fit_together_are_explained() -> None:
    error = refused(name="wrong")
    assert error.what == "the settings do not fit"
    assert error.expected == "the name and the kind do not fit"


@given(text=st.text(min_size=61, max_size=500))
def test_a_long_value_is_shown_in_part(text: str) -> None:
    found = refused(kind=text).found
    assert len(found) == 60
    assert json.dumps(text).startswith(found.removesuffix("..."))


# Hyperparameters of a dataclass


@dataclasses.dataclass(frozen=True)
class Learner:
    model: Inner
    steps: Annotated[int, Ge(1)] = 5
    rate: float = 0.1


def test_hyperparameters_are_the_fields_with_a_default() -> None:
    assert hyperparameters(Learner)().model_dump() == {"steps": 5, "rate": 0.1}


@pytest.mark.parametrize(
    "values", [{"model": {}}, {"steps": 0}, {"steps": 2.0}, {"rate": float("inf")}], ids=str
)
def test_hyperparameters_are_as_strict_as_settings(values: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        parse(hyperparameters(Learner), values, "arm 'a'")


@pytest.mark.parametrize("value", [0, -3, 1.5, 2**80])
def test_a_finite_number_is_a_number(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, "1", None, float("nan"), float("inf"), [1]])
def test_nothing_else_is_a_number(value: object) -> None:
    assert not is_number(value)


# Errors, and what they say


def test_every_error_of_ours_can_be_caught_as_one() -> None:
    user = (StudyError, DataError, MissingDataError, RunDirError)
    assert all(issubclass(error, UserError) for error in user)
    assert all(issubclass(e, ClinimetaError) for e in (UserError, QuorumError, RecordError, NumericalError))


def test_a_user_error_is_printed_with_the_parts_that_are_known() -> None:
    error = UserError(
        "no such file", where="cases.csv", found="", expected="a table", remedy="check the path"
    )
    assert str(error) == "no such file\n  where: cases.csv\n  expected: a table\n  what to do: check the path"
    assert str(UserError("no such file")) == "no such file"


def test_a_quorum_error_names_the_missing_by_reason() -> None:
    error = QuorumError(7, 1, 4, {"ulm": "silent", "graz": "not finite", "bern": "silent"})
    assert error.missing == {"bern": "silent", "graz": "not finite", "ulm": "silent"}
    assert (error.round_number, error.accepted, error.quorum) == (7, 1, 4)
    assert str(error) == "round 7: 1 usable answers, 4 needed (not finite: graz; silent: bern, ulm)"
    assert str(QuorumError(1, 0, 1, {})) == "round 1: 0 usable answers, 1 needed (nobody else is there)"


def test_a_name_like_no_other_gets_the_list_without_a_guess() -> None:
    assert nearest("xyzzy", ["maml", "protonet"]) == "there is: maml, protonet"
    assert nearest("protnet", ["protonet", "maml"]) == "did you mean 'protonet'? there is: maml, protonet"


@given(st.text())
def test_any_text_can_be_written_into_a_file_of_settings(text: str) -> None:
    assert tomllib.loads(f"x = {quoted(text)}  # a note") == {"x": text}
