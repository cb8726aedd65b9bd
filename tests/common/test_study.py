"""A study is read exactly or refused with the key's name; a plan has one form, and sites accept no other."""

import copy
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.algorithms.fine_tune import FineTune
from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.algorithms.protonet import ProtoNet
from clinimeta.common.errors import StudyError
from clinimeta.common.optim import OuterSettings
from clinimeta.common.plan import Plan
from clinimeta.common.safeguards import AggregationSettings
from clinimeta.common.study import Arm, Study, Training, read_study
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.simulations import studies

SMALL: dict[str, Any] = {
    "name": "small",
    "primary": "first",
    "data": {"name": "synthetic", "sites": 4},
    "table": {
        "target": "ill",
        "classes": ["0", "1"],
        "columns": [{"name": "age", "unit": "years"}, {"name": "crp"}],
    },
    "model": {"name": "linear"},
    "episodes": {"shots": [1, 5], "query": 7},
    "training": {"rounds": 4, "outer": {"name": "sgd", "rate": 0.5, "momentum": 0.5}},
    "arms": [
        {"name": "first", "algorithm": {"name": "maml", "inner_steps": 2}},
        {"name": "second", "algorithm": {"name": "fine_tune", "steps": 3}, "trained_by": "first"},
    ],
    "evaluations": [{"name": "new", "sites": 1, "shots": [5, "half"]}],
    "questions": [{"evaluation": "new", "arm": "first", "against": "second", "shots": 5}],
    "published": [{"evaluation": "new", "method": "M", "source": "S", "values": {"ulm": 0.5}}],
    "faults": {"silent": 0.25},
}
MISSING = object()
Path = tuple[str | int, ...]


def changed(path: Path, value: Any) -> dict[str, Any]:
    """The small study's values with one of them replaced, added, or taken away (`MISSING`)."""
    values = copy.deepcopy(SMALL)
    *folder, last = path
    here: Any = values
    for step in folder:
        here = here[step] if isinstance(step, int) else here.setdefault(step, {})
    if value is MISSING:
        del here[last]
    else:
        here[last] = value
    return values


def read(values: dict[str, Any]) -> Study:
    return read_study(tomli_w.dumps(values), "small.toml")


def refused(path: Path, value: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        read(changed(path, value))
    return caught.value


def plan_of(study: Study, arm: str = "first", seed: int = 3) -> Plan:
    return study.plan(study.arm(arm), seed)


def test_a_study_is_read() -> None:
    study = read(SMALL)
    assert (study.name, study.seeds, study.primary) == ("small", (0,), "first")
    assert study.data.name == "synthetic"
    assert study.data.options == {"sites": 4}
    assert [column.name for column in study.table.columns] == ["age", "crp"]
    assert [arm.name for arm in study.arms] == ["first", "second"]
    assert study.evaluations[0].shots == (5, "half")
    assert study.published[0].values == {"ulm": 0.5}
    assert study.faults.silent == 0.25


# Arms inherit and override


def arm(**values: Any) -> Arm:
    return read(changed(("arms", 0), {"name": "first", "algorithm": {"name": "maml"}, **values})).arms[0]


def test_an_arm_inherits_what_it_does_not_name() -> None:
    inherited = arm()
    assert inherited.model.name == "linear"
    assert inherited.episodes == Episodes(shots=(1, 5), query=7)
    assert inherited.training == Training(rounds=4, outer=OuterSettings(name="sgd", rate=0.5, momentum=0.5))


def test_an_arm_overrides_key_by_key() -> None:
    found = arm(episodes={"query": 9}, training={"local_meta_steps": 3})
    assert found.episodes == Episodes(shots=(1, 5), query=9)
    assert found.training == arm().training.model_copy(update={"local_meta_steps": 3})


def test_a_nested_group_is_overridden_key_by_key_too() -> None:
    assert arm(training={"outer": {"rate": 0.25}}).training.outer == OuterSettings(
        name="sgd", rate=0.25, momentum=0.5
    )
    same = arm(training={"outer": {"name": "sgd", "rate": 0.25}}).training.outer
    assert same == OuterSettings(name="sgd", rate=0.25, momentum=0.5)


def test_another_name_takes_none_of_the_old_ones_options() -> None:
    assert arm(training={"outer": {"name": "adam"}}).training.outer == OuterSettings(name="adam")
    values = changed(("model",), {"name": "mlp", "hidden": [4]})
    values["arms"] = [
        {"name": "first", "algorithm": {"name": "maml"}, "model": {"name": "linear"}},
        {"name": "same", "algorithm": {"name": "maml"}, "model": {"activation": "tanh"}},
        {"name": "second", "algorithm": {"name": "maml"}},
    ]
    first, same, second = read(values).arms
    assert (first.model.name, first.model.options) == ("linear", {})
    assert (same.model.name, same.model.options) == ("mlp", {"hidden": [4], "activation": "tanh"})
    assert (second.model.name, second.model.options) == ("mlp", {"hidden": [4]})


def test_another_aggregation_rule_takes_none_of_the_old_ones_numbers() -> None:
    values = changed(("training", "aggregation"), {"rule": "trimmed_mean", "trim": 0.2})
    values["arms"][0]["training"] = {"aggregation": {"rule": "median"}}
    values["arms"][1]["training"] = {"aggregation": {"trim": 0.3}}
    first, second = read(values).arms
    assert first.training.aggregation == AggregationSettings(rule="median")
    assert second.training.aggregation == AggregationSettings(rule="trimmed_mean", trim=0.3)


@pytest.mark.parametrize(
    ("aggregation", "says"),
    [
        ({"rule": "mode"}, "median"),
        ({"rule": "median", "trim": 0.1}, "no trim for 'median': it is of trimmed_mean"),
        ({"clip": 1.0}, "no clip for 'mean': it is of norm_clipped_mean"),
        ({"rule": "mean", "bad_sites": 1}, "no bad_sites for 'mean'"),
        ({"rule": "trimmed_mean"}, "'trimmed_mean' needs a trim over 0"),
        ({"rule": "trimmed_mean", "trim": 0.5}, "less than 0.5"),
        ({"rule": "multi_krum"}, "'multi_krum' needs a bad_sites over 0"),
        ({"rule": "multi_krum", "bad_sites": -1}, "greater than or equal to 0"),
        ({"rule": "multi_krum", "badsites": 1}, "bad_sites"),
    ],
    ids=str,
)
def test_an_aggregation_that_makes_no_sense_is_refused(aggregation: dict[str, Any], says: str) -> None:
    error = refused(("training", "aggregation"), aggregation)
    assert "training.aggregation" in error.what
    assert says in error.expected


def test_a_cohort_too_small_for_its_rule_is_refused() -> None:
    values = changed(("training", "cohort_size"), 6)
    values["training"]["aggregation"] = {"rule": "multi_krum", "bad_sites": 2}
    with pytest.raises(StudyError, match="a cohort of 6 is too small for 'multi_krum'") as caught:
        read(values)
    assert "7 or more" in caught.value.expected
    values["training"]["cohort_size"] = 7
    assert read(values).arms[0].training.aggregation.least_sites == 7


@pytest.mark.parametrize(
    "gate", [{"on": 1}, {"factor": 1.0}, {"window": 0}, {"shrink": 0.0}, {"R": 3}], ids=str
)
def test_a_gate_that_makes_no_sense_is_refused(gate: dict[str, Any]) -> None:
    assert "training.gate" in refused(("training", "gate"), gate).what


def test_what_nobody_names_has_its_default() -> None:
    values = {key: value for key, value in SMALL.items() if key not in ("episodes", "training")}
    first = read(values).arms[0]
    assert (first.episodes, first.training) == (Episodes(), Training())


def test_one_arms_override_does_not_reach_another() -> None:
    values = changed(("arms", 0, "training"), {"rounds": 9, "outer": {"rate": 0.1}})
    first, second = read(values).arms
    assert (first.training.rounds, first.training.outer.rate) == (9, 0.1)
    assert (second.training.rounds, second.training.outer.rate) == (4, 0.5)


def test_an_arm_is_found_by_name_and_called_by_its_label() -> None:
    study = read(changed(("arms", 0, "label"), "MAML"))
    assert study.arm("first").title == "MAML"
    assert study.arm("second").title == "second"
    with pytest.raises(StudyError) as caught:
        study.arm("frist")
    assert caught.value.expected == "did you mean 'first'? there is: first, second"


# Wrong keys

UNKNOWN: list[tuple[Path, str, str]] = [
    (("titel",), "titel", "title"),
    (("table", "colums"), "table.colums", "columns"),
    (("table", "columns", 1, "unt"), "table.columns[1].unt", "unit"),
    (("faults", "silnt"), "faults.silnt", "silent"),
    (("arms", 1, "trained_bye"), "arms[1].trained_bye", "trained_by"),
    (("arms", 0, "training", "round"), "arms[0].training.round", "rounds"),
    (("arms", 0, "training", "outer", "rte"), "arms[0].training.outer.rte", "rate"),
    (("arms", 0, "episodes", "shot"), "arms[0].episodes.shot", "shots"),
    (("training", "outr"), "training.outr", "outer"),
    (("training", "outer", "rte"), "training.outer.rte", "rate"),
    (("episodes", "shot"), "episodes.shot", "shots"),
    (("evaluations", 0, "split_"), "evaluations[0].split_", "split"),
    (("questions", 0, "agianst"), "questions[0].agianst", "against"),
    (("published", 0, "metod"), "published[0].metod", "method"),
]


@pytest.mark.parametrize(("path", "named", "near"), UNKNOWN, ids=[named for _, named, _ in UNKNOWN])
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest(path: Path, named: str, near: str) -> None:
    error = refused(path, 1)
    assert error.where == "small.toml"
    assert error.what.startswith("unknown key '")
    assert named in error.what
    assert error.expected.startswith(f"did you mean '{near}'? there is: ")


@pytest.mark.parametrize(
    ("path", "key", "whose", "near"),
    [
        (("arms", 0, "algorithm", "inner_step"), "inner_step", "arm 'first' algorithm 'maml'", "inner_steps"),
        (("arms", 1, "algorithm", "step"), "step", "arm 'second' algorithm 'fine_tune'", "steps"),
        (("arms", 0, "algorithm", "model"), "model", "arm 'first' algorithm 'maml'", ""),
        (("arms", 0, "algorithm", "objective"), "objective", "arm 'first' algorithm 'maml'", ""),
        (("model", "hidden"), "hidden", "arm 'first' model 'linear'", ""),
        (("model", "features"), "features", "arm 'first' model 'linear'", ""),
    ],
    ids=str,
)
def test_an_unknown_hyperparameter_is_refused(path: Path, key: str, whose: str, near: str) -> None:
    error = refused(path, 1)
    assert (error.what, error.where) == (f"unknown key '{key}'", whose)
    assert error.expected.startswith(f"did you mean '{near}'?" if near else "")


NAMES: list[tuple[Path, str, str]] = [
    (("arms", 0, "algorithm", "name"), "mamel", "maml"),
    (("model", "name"), "liner", "linear"),
    (("application",), "diagnoses", "diagnosis"),
    (("primary",), "frist", "first"),
    (("arms", 1, "trained_by"), "frist", "first"),
    (("questions", 0, "arm"), "frist", "first"),
    (("questions", 0, "against"), "secnd", "second"),
    (("questions", 0, "evaluation"), "nwe", "new"),
    (("evaluations", 0, "scores"), "aurok", "auroc"),
]


@pytest.mark.parametrize(("path", "wrong", "near"), NAMES, ids=lambda value: str(value))
def test_a_name_that_means_nothing_is_refused_with_the_nearest(path: Path, wrong: str, near: str) -> None:
    error = refused(path, [wrong] if path[-1] == "scores" else wrong)
    assert f"'{wrong}'" in error.what + error.expected
    assert f"did you mean '{near}'?" in error.expected


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("questions", 0, "score"), "auc"),
        (("questions", 0, "score"), "calibration_error"),
        (("questions", 0, "shots"), 7),
        (("published", 0, "evaluation"), "old"),
    ],
    ids=str,
)
def test_what_could_never_be_answered_or_shown_is_refused(path: Path, wrong: Any) -> None:
    """A score or a number of shots that the evaluation does not measure; a row of no evaluation."""
    assert str(wrong) in str(refused(path, wrong))


WRONG: list[tuple[Path, Any, str]] = [
    (("name",), 3, "name"),
    (("seeds",), 0, "seeds"),
    (("seeds",), [], "seeds"),
    (("seeds",), [-1], "seeds[0]"),
    (("seeds",), [0.0], "seeds[0]"),
    (("data",), "synthetic", "data"),
    (("data", "name"), 1, "data.name"),
    (("table",), [], "table"),
    (("table", "columns"), [], "table.columns"),
    (("table", "columns"), "age", "table.columns"),
    (("table", "columns", 0, "kind"), "number", "table.columns[0].kind"),
    (("table", "columns", 0, "scale"), 0.0, "table.columns[0].scale"),
    (("table", "columns", 0, "center"), "60", "table.columns[0].center"),
    (("table", "columns", 0, "levels"), ["a", "b"], "table.columns[0]"),
    (("table", "columns", 0, "kind"), "categorical", "table.columns[0]"),
    (("table", "columns", 0, "name"), "ill", "table"),
    (("table", "columns", 0, "name"), "crp", "table"),
    (("table", "classes"), ["1"], "table"),
    (("table", "classes"), [0, 1], "table.classes[0]"),
    (("model",), 3, "model"),
    (("model",), "linear", "model"),
    (("episodes",), 3, "episodes"),
    (("episodes",), [], "episodes"),
    (("training",), 3, "training"),
    (("training",), "long", "training"),
    (("arms", 0, "model"), 3, "arms[0].model"),
    (("arms", 0, "episodes"), "few", "arms[0].episodes"),
    (("arms", 0, "training"), 3, "arms[0].training"),
    (("arms", 0, "training"), {"outer": 3}, "arms[0].training.outer"),
    (("training", "outer"), 3, "training.outer"),
    (("training", "rounds"), "4", "training.rounds"),
    (("training", "rounds"), 4.0, "training.rounds"),
    (("training", "rounds"), True, "training.rounds"),
    (("training", "rounds"), -1, "training.rounds"),
    (("training", "quorum"), 0.0, "training.quorum"),
    (("training", "quorum"), 1.5, "training.quorum"),
    (("training", "deadline_s"), float("inf"), "training.deadline_s"),
    (("training", "max_norm"), float("nan"), "training.max_norm"),
    (("training", "max_norm_ratio"), 1.0, "training.max_norm_ratio"),
    (("training", "attempts"), 0, "training.attempts"),
    (("training", "weighting"), "patients", "training.weighting"),
    (("training", "outer", "name"), "adm", "training.outer.name"),
    (("episodes", "shots"), 5, "episodes.shots"),
    (("episodes", "shots"), [], "episodes.shots"),
    (("episodes", "shots"), ["5"], "episodes.shots[0]"),
    (("episodes", "ways"), 1, "episodes.ways"),
    (("arms",), [], "arms"),
    (("arms",), {"name": "first"}, "arms"),
    (("arms",), 3, "arms"),
    (("arms",), True, "arms"),
    (("arms",), "first", "arms"),
    (("arms", 0), 3, "arms[0]"),
    (("arms", 0), "first", "arms[0]"),
    (("arms", 0, "name"), 3, "arms[0].name"),
    (("arms", 0, "algorithm"), "maml", "arms[0].algorithm"),
    (("arms", 0, "algorithm", "name"), 3, "arms[0].algorithm.name"),
    (("arms", 0, "algorithm", "inner_steps"), "2", "inner_steps"),
    (("arms", 0, "algorithm", "inner_steps"), -1, "inner_steps"),
    (("arms", 0, "algorithm", "inner_steps"), True, "inner_steps"),
    (("arms", 0, "algorithm", "inner_rate"), float("nan"), "inner_rate"),
    (("evaluations", 0, "split"), "random", "evaluations[0].split"),
    (("evaluations", 0, "folds"), 1, "evaluations[0].folds"),
    (("evaluations", 0, "shots"), "all", "evaluations[0].shots"),
    (("evaluations", 0, "shots"), [5, "third"], "evaluations[0].shots[1]"),
    (("evaluations", 0, "shots"), [-1], "evaluations[0].shots[0]"),
    (("evaluations", 0, "scores"), [], "evaluations[0].scores"),
    (("evaluations", 0, "scores"), "auroc", "evaluations[0].scores"),
    (("evaluations", 0, "bootstrap"), 10, "evaluations[0].bootstrap"),
    (("questions", 0, "shots"), "third", "questions[0].shots"),
    (("published", 0, "values"), {"ulm": "0.5"}, "published[0].values.ulm"),
    (("published", 0, "values"), {"ulm": float("nan")}, "published[0].values.ulm"),
    (("faults", "silent"), 1.5, "faults.silent"),
    (("faults", "slow"), -0.1, "faults.slow"),
]


def ids(cases: Iterable[tuple[Path, Any, str]]) -> list[str]:
    return [f"{named} = {value!r}" for _, value, named in cases]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=ids(WRONG))
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(path: Path, value: Any, named: str) -> None:
    """A key of the shared groups may be named where the arms inherit it."""
    what = refused(path, value).what
    assert f"'{named}'" in what or f".{named}'" in what


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("name",), "name"),
        (("primary",), "primary"),
        (("data",), "data"),
        (("data", "name"), "data.name"),
        (("table",), "table"),
        (("table", "target"), "table.target"),
        (("table", "columns"), "table.columns"),
        (("table", "columns", 1, "name"), "table.columns[1].name"),
        (("arms",), "arms"),
        (("arms", 1, "name"), "arms[1].name"),
        (("arms", 0, "algorithm"), "arms[0].algorithm"),
        (("arms", 0, "algorithm", "name"), "arms[0].algorithm.name"),
        (("model",), "arms[0].model"),
        (("model", "name"), "arms[0].model.name"),
        (("evaluations", 0, "name"), "evaluations[0].name"),
        (("questions", 0, "against"), "questions[0].against"),
        (("published", 0, "source"), "published[0].source"),
    ],
    ids=str,
)
def test_a_missing_key_is_refused_by_its_name(path: Path, named: str) -> None:
    error = refused(path, MISSING)
    assert error.what.startswith(f"the key '{named}' is missing")
    assert error.where == "small.toml"


def test_text_that_is_no_toml_is_refused_with_the_line() -> None:
    with pytest.raises(StudyError, match="not valid TOML") as caught:
        read_study('name = "x"\nprimary = first\n', "mine.toml")
    assert caught.value.where == "mine.toml"
    assert "line 2" in caught.value.found


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("arms", 1, "name"), "first", "two arms have the same name"),
        (("evaluations",), [{"name": "new"}, {"name": "new"}], "two evaluations have the same name"),
        (("evaluations", 0, "shots"), [5, 1, 5], "a size occurs twice"),
        (("seeds",), [1, 2, 1], "one occurs twice"),
        (("arms", 0, "trained_by"), "second", "arm 'first': 'second' is not trained itself"),
        (("arms", 1, "model"), {"name": "mlp"}, "arm 'second': 'first' trains another model"),
        (("episodes", "ways"), 3, "arm 'first': 3 ways, but 2 classes"),
    ],
    ids=str,
)
def test_arms_that_contradict_each_other_are_refused(path: Path, value: Any, why: str) -> None:
    assert why in refused(path, value).expected


def test_an_arm_trained_by_an_arm_that_is_trained_by_another_is_refused() -> None:
    third = {"name": "third", "algorithm": {"name": "maml"}, "trained_by": "second"}
    error = refused(("arms",), [*SMALL["arms"], third])
    assert "arm 'third': 'second' is not trained itself" in error.expected


NUMBERS = {
    **{key: SMALL[key] for key in ("name", "primary", "data", "model", "arms")},
    "application": "regression",
    "table": {"target": "stay", "columns": [{"name": "age"}]},
    "episodes": {"draw": "rows", "ways": 9},
    "evaluations": [{"name": "new", "sites": 1, "draw": "rows", "scores": ["absolute_error"]}],
}
"""A study of a number; how many ways an episode has means nothing to it."""


def test_a_study_of_a_number_is_read() -> None:
    assert read(NUMBERS).table.classes == ()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"application": "diagnosis"}, "the application 'diagnosis' does not fit the target"),
        ({"episodes": {"draw": "per_class"}}, "arm 'first': a number cannot be drawn per class"),
        ({"evaluations": [{"name": "new", "draw": "rows"}]}, "'auroc' does not score this target"),
        (
            {"evaluations": [{"name": "new", "draw": "per_class", "scores": ["absolute_error"]}]},
            "evaluation 'new': a number cannot be drawn per class",
        ),
    ],
    ids=["application", "episodes", "scores", "evaluation"],
)
def test_a_study_of_a_number_that_asks_for_classes_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(StudyError) as caught:
        read({**NUMBERS, **changes})
    assert (caught.value.what, caught.value.where) == (what, "small.toml")
    assert caught.value.expected


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("application",), "regression", "the application 'regression' does not fit the target"),
        (
            ("table", "classes"),
            ["a", "b", "c"],
            "arm 'first': episodes of 2 ways cannot be judged on all classes",
        ),
        (
            ("evaluations", 0, "scores"),
            ["auroc", "absolute_error"],
            "'absolute_error' does not score this target",
        ),
        (
            ("arms", 1, "algorithm"),
            {"name": "protonet"},
            "arm 'second': the meta-parameters of 'first' are not its own kind",
        ),
        (
            ("training", "proximal"),
            0.1,
            "arm 'first': `proximal` says nothing to a single local step",
        ),
    ],
    ids=["application", "ways", "scores", "teacher", "proximal"],
)
def test_parts_that_do_not_work_together_are_refused(path: Path, value: Any, what: str) -> None:
    error = refused(path, value)
    assert (error.what, error.where) == (what, "small.toml")
    assert error.expected


def test_episodes_of_fewer_ways_than_classes_may_train_where_nothing_is_judged() -> None:
    values = changed(("table", "classes"), ["a", "b", "c"])
    values |= {"evaluations": [], "questions": [], "published": []}
    assert plan_of(read(values)).learner().objective.classes == 2


# There and back


@pytest.mark.parametrize("name", studies.names())
def test_every_built_in_study_is_read_back_from_its_own_toml(name: str) -> None:
    study = studies.find(name)
    assert read_study(study.to_toml(), "again") == study


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    title=TEXT,
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    shots=st.lists(st.integers(6, 50) | st.sampled_from(["half", "all"]), max_size=3, unique=True),
    values=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_a_study_is_read_back_from_its_own_toml(
    title: str, seeds: list[int], rate: float, shots: list[Any], values: dict[str, float]
) -> None:
    given_values = copy.deepcopy(SMALL) | {"title": title, "description": title, "seeds": seeds}
    given_values["training"]["local_rate"] = rate
    given_values["evaluations"][0]["shots"] = [5, *shots]
    given_values["published"][0]["values"] = values
    study = read(given_values)
    assert (study.title, study.seeds, study.arms[1].training.local_rate) == (title, tuple(seeds), rate)
    assert read_study(study.to_toml(), "again") == study


# The plan that a site gets


def test_a_plan_holds_what_a_site_acts_on_and_no_more() -> None:
    study = read(SMALL)
    plan = plan_of(study, "second")
    assert set(Plan.model_fields) == {
        *("study", "arm", "application", "table", "model", "algorithm", "episodes"),
        *("local_meta_steps", "local_rate", "proximal", "weighting", "seed", "trainable", "rank"),
        "protection",
    }
    assert (plan.study, plan.arm, plan.seed) == ("small", "second", 3)
    assert (plan.table, plan.algorithm, plan.model) == (
        study.table,
        study.arms[1].algorithm,
        study.arms[1].model,
    )
    assert (plan.episodes, plan.local_rate) == (study.arms[1].episodes, study.arms[1].training.local_rate)


def test_the_canonical_form_is_compact_json_with_sorted_keys() -> None:
    plan = plan_of(read(SMALL))
    values = json.loads(plan.canonical())
    assert plan.canonical() == json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    assert values["algorithm"] == {"name": "maml", "inner_steps": 2}
    assert values["local_rate"] == 0.05
    assert set(values) == set(Plan.model_fields)


def test_the_digest_is_that_of_the_canonical_bytes() -> None:
    plan = plan_of(read(SMALL))
    assert plan.digest == hashlib.sha256(plan.canonical()).hexdigest()


def test_equal_plans_have_equal_bytes_however_the_study_was_written() -> None:
    values = changed(("arms", 0), {"algorithm": {"inner_steps": 2, "name": "maml"}, "name": "first"})
    values["training"]["local_rate"] = 0.05
    assert plan_of(read(values)).canonical() == plan_of(read(SMALL)).canonical()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), "other"),
        (("table", "columns", 0, "center"), 1.0),
        (("table", "columns", 0, "unit"), "months"),
        (("table", "classes"), ["1", "0"]),
        (("model",), {"name": "mlp"}),
        (("arms", 0, "algorithm", "inner_steps"), 3),
        (("episodes", "tasks"), 5),
        (("training", "local_meta_steps"), 2),
        (("training", "local_rate"), 0.06),
        (("training",), {"local_meta_steps": 2, "proximal": 0.1}),
        (("training", "weighting"), "rows"),
    ],
    ids=str,
)
def test_whatever_a_site_acts_on_changes_the_digest(path: Path, value: Any) -> None:
    assert plan_of(read(changed(path, value))).digest != plan_of(read(SMALL)).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [(("title",), "new"), (("training", "rounds"), 9), (("training", "quorum"), 1.0), (("seeds",), [5])],
    ids=str,
)
def test_what_is_no_business_of_a_site_leaves_the_digest(path: Path, value: Any) -> None:
    assert plan_of(read(changed(path, value))).digest == plan_of(read(SMALL)).digest


@pytest.mark.parametrize("name", studies.names())
def test_a_plan_is_read_back_from_its_bytes(name: str) -> None:
    study = studies.find(name)
    for each in study.arms:
        plan = study.plan(each, study.seeds[0])
        assert Plan.from_bytes(plan.canonical()) == plan


PLAN = plan_of(read(SMALL))
VALUES = json.loads(PLAN.canonical())


def dumped(values: Any, **options: Any) -> bytes:
    return json.dumps(values, **({"sort_keys": True, "separators": (",", ":")} | options)).encode()


def test_the_plan_written_by_hand_passes() -> None:
    assert Plan.from_bytes(dumped(VALUES)) == PLAN


NOT_CANONICAL = {
    "spaces": dumped(VALUES, separators=(", ", ": ")),
    "a line end": dumped(VALUES) + b"\n",
    "keys out of order": dumped(dict(reversed(VALUES.items())), sort_keys=False),
    "a default left out": dumped(
        {**VALUES, "table": {k: v for k, v in VALUES["table"].items() if k != "missing"}}
    ),
    "a whole number for a number": dumped({**VALUES, "local_rate": 1}),
    "another spelling of a number": dumped(VALUES).replace(b"0.05", b"5e-2"),
    "a key twice": dumped(VALUES).replace(b'"seed":3', b'"seed":4,"seed":3'),
    "a hyperparameter that is NaN": dumped(
        {**VALUES, "algorithm": {"name": "maml", "inner_rate": float("nan")}}
    ),
    "another encoding": dumped(VALUES).decode().encode("utf-16"),
    "a mark at the front": b"\xef\xbb\xbf" + dumped(VALUES),
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_a_plan_in_another_form_is_refused(name: str) -> None:
    assert NOT_CANONICAL[name] != dumped(VALUES)
    with pytest.raises(StudyError, match=r"not in canonical form|not JSON"):
        Plan.from_bytes(NOT_CANONICAL[name])


NO_PLAN = {
    "nothing": b"",
    "no JSON": b"plan",
    "no UTF-8": b"\xff\xfe\xff",
    "a number": b"3",
    "null": b"null",
    "a text": b'"plan"',
    "an empty list": b"[]",
    "a list": b"[1]",
    "a list of pairs": b'[["study","x"]]',
    "nothing in it": b"{}",
    "deeply nested": b"[" * 100_000,
    "a lone surrogate": dumped({**VALUES, "study": "\ud800"}),
    "a key too many": dumped({**VALUES, "more": 1}),
    "a key too few": dumped({k: v for k, v in VALUES.items() if k != "seed"}),
    "a seed that is a boolean": dumped({**VALUES, "seed": True}),
    "a negative seed": dumped({**VALUES, "seed": -1}),
    "a rate that is infinite": dumped({**VALUES, "local_rate": float("inf")}),
    "no local step": dumped({**VALUES, "local_meta_steps": 0}),
    "a pull away": dumped({**VALUES, "proximal": -0.1}),
}


@pytest.mark.parametrize("name", NO_PLAN)
def test_bytes_that_are_no_plan_are_refused(name: str) -> None:
    with pytest.raises(StudyError):
        Plan.from_bytes(NO_PLAN[name])


@given(data=st.binary(max_size=40))
def test_bytes_of_chance_are_refused(data: bytes) -> None:
    with pytest.raises(StudyError):
        Plan.from_bytes(data)


@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_plan_with_a_changed_byte_is_another_plan_or_none(at: int, value: int) -> None:
    data = bytearray(PLAN.canonical())
    data[at % len(data)] = value
    try:
        found = Plan.from_bytes(bytes(data))
    except StudyError:
        return
    assert found.canonical() == data


# The learner that a plan describes


def test_a_plan_describes_its_learner() -> None:
    learner = plan_of(read(SMALL)).learner()
    assert isinstance(learner, MAML)
    assert (learner.inner_steps, learner.model.outputs, learner.objective.classes) == (2, 1, 2)
    other = plan_of(read(SMALL), "second").learner()
    assert isinstance(other, FineTune)
    assert other.steps == 3


def test_equal_plans_share_their_learner() -> None:
    assert plan_of(read(SMALL)).learner() is plan_of(read(SMALL)).learner()


@pytest.mark.parametrize(
    ("classes", "draw", "ways", "expected"),
    [
        (["a", "b", "c"], "per_class", 2, 2),
        (["a", "b", "c"], "per_class", 3, 3),
        (["a", "b", "c"], "rows", 2, 3),
        ([], "rows", 2, 0),
        ([], "per_class", 2, 0),
    ],
)
def test_a_learner_tells_as_many_classes_apart_as_an_episode_holds(
    classes: list[str], draw: str, ways: int, expected: int
) -> None:
    values = {
        **VALUES,
        "application": "diagnosis" if classes else "regression",
        "table": {**VALUES["table"], "classes": classes},
        "episodes": {**VALUES["episodes"], "draw": draw, "ways": ways},
    }
    assert Plan.from_bytes(dumped(values)).learner().objective.classes == expected


def test_a_learner_has_a_feature_for_each_number_of_the_table() -> None:
    values = changed(("table", "missing"), "indicator")
    values["table"]["columns"].append({"name": "sex", "kind": "categorical", "levels": ["f", "m", "d"]})
    values["arms"][0]["algorithm"] = {"name": "protonet"}
    del values["arms"][1]
    del values["questions"]
    learner = plan_of(read(values)).learner()
    assert isinstance(learner, ProtoNet)
    assert learner.model.features == 2 + 2 + 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"algorithm": {"name": "os.system"}}, "there is no algorithm 'os.system'"),
        ({"model": {"name": "resnet"}}, "there is no model 'resnet'"),
        ({"application": "imaging"}, "there is no application 'imaging'"),
        ({"algorithm": {"name": "maml", "inner_step": 1}}, "unknown key 'inner_step'"),
        ({"algorithm": {"name": "maml", "inner_rate": -1.0}}, "the key 'inner_rate' has a value"),
    ],
    ids=str,
)
def test_a_plan_of_something_that_this_side_lacks_has_no_learner(changes: dict[str, Any], what: str) -> None:
    plan = Plan.from_bytes(dumped({**VALUES, **changes}))
    with pytest.raises(StudyError, match=what):
        plan.learner()
