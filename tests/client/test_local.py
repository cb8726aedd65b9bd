"""A hospital's own adaptation: probabilities that mean what they say, and warnings that show no value."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.client.local import Adapted, adapt
from clinimeta.common.algorithms.base import Uncertain
from clinimeta.common.errors import ClinimetaError, DataError, NumericalError, UserError
from clinimeta.common.protection import Protection
from clinimeta.common.rng import generator
from clinimeta.common.study import Choice, Plan, read_study
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.table import Records, Table, encode
from clinimeta.common.trained_model import TrainedModel
from clinimeta.simulations.evaluation import Draw, predict

STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4] }
episodes = { shots = [2] }
arms = [{ name = "maml", algorithm = { name = "maml", inner_steps = 3 } }]

[table]
target = "sick"
classes = ["no", "yes"]
columns = [
  { name = "age", unit = "years", center = 50.0, scale = 10.0 },
  { name = "sex", kind = "binary" },
  { name = "pain", kind = "categorical", levels = ["none", "some", "much"] },
  { name = "pulse", center = 70.0, scale = 10.0 },
]
"""
SECRET = "4711"
ROWS = Episodes(draw="rows", shots=(2,))


def plan(**changes: Any) -> Plan:
    study = read_study(STUDY, "study.toml")
    return study.plan(study.arms[0], seed=0).model_copy(update=changes)


def table(**changes: Any) -> Any:
    return plan().table.model_copy(update=changes)


def model(temperatures: dict[int, float] | None = None, **changes: Any) -> TrainedModel:
    chosen = plan(**changes)
    return TrainedModel(chosen, chosen.learner().init(generator("trained")), temperatures or {})


def cells(count: int, *key: str | int) -> dict[str, Sequence[str]]:
    rng = generator("patients", *key)
    age = (50 + 10 * torch.randn(count, generator=rng)).round().int().tolist()
    return {
        "age": [str(a) for a in age],
        "sex": [str(i % 2) for i in range(count)],
        "pain": [("none", "some", "much")[i % 3] for i in range(count)],
        "pulse": [f"{70 + 7 * x:.1f}" for x in torch.randn(count, generator=rng).tolist()],
        "sick": ["yes" if i % 2 else "no" for i in range(count)],
    }


def cases(count: int = 6, **changed: Sequence[str]) -> Records:
    return Records("cases.csv", {**cells(count, "cases"), **changed})


def new(count: int = 9, **changed: Sequence[str]) -> Records:
    made = cells(count, "new")
    del made["sick"]
    return Records("new.csv", {**made, **changed})


def odds(adapted: Adapted) -> torch.Tensor:
    """Each row's odds of the second class."""
    return adapted.probabilities[:, 1] / adapted.probabilities[:, 0]


# Probabilities


def test_every_new_row_gets_one_probability_a_class_in_its_place() -> None:
    everyone = adapt(model(), cases(), new())
    assert everyone.probabilities.shape == (9, 2)
    assert torch.allclose(everyone.probabilities.sum(dim=1), torch.ones(9, dtype=torch.float64), rtol=1e-12)
    assert everyone.support_rows == {"no": 3, "yes": 3}
    assert everyone.seconds >= 0
    assert everyone.warnings == ()
    for row in range(9):
        alone = Records("new.csv", {name: [column[row]] for name, column in new().cells.items()})
        assert torch.allclose(adapt(model(), cases(), alone).probabilities[0], everyone.probabilities[row])


def test_the_predictions_are_those_of_the_evaluation_for_the_same_rows() -> None:
    support, query = cells(6, "cases"), cells(9, "new")
    both = {name: [*support[name], *query[name]] for name in support}
    trained = model()
    whole = {"ulm": encode(trained.plan.table, Records("ulm.csv", both))}
    draw = Draw("ulm", "3", 0, torch.arange(6), torch.arange(6, 15))
    shorter = Draw("ulm", "2", 0, torch.arange(4), torch.arange(6, 8))  # so that there is padding
    judged = predict(trained.plan, trained.params, whole, [shorter, draw])
    expected = next(p for p in judged if p.shots == "3").probabilities
    found = adapt(trained, cases(), new()).probabilities
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_adaptation_changes_the_predictions() -> None:
    swapped = ["no" if sick == "yes" else "yes" for sick in cases().cells["sick"]]
    one, other = adapt(model(), cases(), new()), adapt(model(), cases(sick=swapped), new())
    assert not torch.allclose(one.probabilities, other.probabilities, atol=1e-3)


def test_the_trained_parameters_are_left_alone() -> None:
    trained = model()
    before = {name: tensor.clone() for name, tensor in trained.params.items()}
    adapt(trained, cases(), new())
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.params.items())


# Prevalence


def test_without_a_prevalence_balanced_episodes_assume_a_balanced_mix() -> None:
    support = cases(8, sick=["no"] * 6 + ["yes"] * 2)
    assert adapt(model(), support, new()).assumed == (0.5, 0.5)


def test_without_a_prevalence_episodes_of_rows_assume_the_support_sets_mix() -> None:
    support = cases(8, sick=["no"] * 6 + ["yes"] * 2)
    assert adapt(model(episodes=ROWS), support, new()).assumed == (0.75, 0.25)


@given(st.floats(0.001, 0.999))
def test_the_prevalence_multiplies_the_odds_as_bayes_says(share: float) -> None:
    before, after = adapt(model(), cases(), new()), adapt(model(), cases(), new(), prevalence=(share,))
    assert torch.allclose(odds(after), odds(before) * share / (1 - share), rtol=1e-9)
    assert torch.allclose(after.probabilities.sum(dim=1), torch.ones(9, dtype=torch.float64))
    assert after.assumed == pytest.approx((1 - share, share))


def test_the_prevalence_is_relative_to_what_the_episodes_were() -> None:
    support = cases(8, sick=["no"] * 6 + ["yes"] * 2)
    chosen = model(episodes=ROWS)
    same = adapt(chosen, support, new(), prevalence=(0.75, 0.25))
    assert torch.allclose(same.probabilities, adapt(chosen, support, new()).probabilities, rtol=1e-12)


def test_one_share_stands_for_the_second_of_two_classes() -> None:
    one, both = (adapt(model(), cases(), new(), prevalence=p) for p in ((0.2,), (0.8, 0.2)))
    assert torch.equal(one.probabilities, both.probabilities)
    assert one.assumed == both.assumed == (0.8, 0.2)


THREE = table(classes=("no", "maybe", "yes"))
THREE_WAYS = Episodes(ways=3, shots=(2,))


def test_several_classes_take_all_their_shares() -> None:
    support = cases(6, sick=["no", "maybe", "yes"] * 2)
    chosen = model(table=THREE, episodes=THREE_WAYS)
    before = adapt(chosen, support, new()).probabilities
    after = adapt(chosen, support, new(), prevalence=(0.5, 0.3, 0.2)).probabilities
    expected = before * torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert torch.allclose(after, expected / expected.sum(dim=1, keepdim=True), rtol=1e-12)


@pytest.mark.parametrize(
    "shares",
    [
        (0.0,),
        (1.0,),
        (-0.1,),
        (1.5,),
        (math.nan,),
        (math.inf,),
        (0.5, 0.6),
        (0.3, 0.3, 0.4),
        (math.nan, 0.5),
        (),
    ],
    ids=str,
)
def test_a_prevalence_that_is_no_share_is_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="the prevalence does not fit the study") as caught:
        adapt(model(), cases(), new(), prevalence=shares)
    assert caught.value.where == "--prevalence"
    assert "'yes' between 0 and 1" in caught.value.expected
    assert caught.value.remedy


@pytest.mark.parametrize("shares", [(0.1,), (0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.0)], ids=str)
def test_the_shares_of_several_classes_are_one_each_and_add_up(shares: tuple[float, ...]) -> None:
    support = cases(6, sick=["no", "maybe", "yes"] * 2)
    with pytest.raises(UserError, match="does not fit the study") as caught:
        adapt(model(table=THREE, episodes=THREE_WAYS), support, new(), prevalence=shares)
    assert "3 positive shares" in caught.value.expected
    assert "no, maybe, yes" in caught.value.expected


# Temperature


def test_the_temperature_divides_the_log_odds() -> None:
    plain, cooled = adapt(model(), cases(), new()), adapt(model({3: 4.0}), cases(), new())
    assert (plain.temperature, cooled.temperature) == (1.0, 4.0)
    assert torch.allclose(odds(cooled).log(), odds(plain).log() / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("episodes", "sick", "expected"),
    [
        (plan().episodes, ["no", "yes", "yes", "yes"], 5.0),  # the smallest class has 1 row
        (plan().episodes, ["no", "no", "no", "yes", "yes", "yes"], 3.0),
        (ROWS, ["no", "yes", "yes"], 3.0),  # 3 rows in all
    ],
)
def test_the_temperature_is_that_of_the_support_sets_size(
    episodes: Episodes, sick: list[str], expected: float
) -> None:
    chosen = model({1: 5.0, 3: 3.0}, episodes=episodes)
    assert adapt(chosen, cases(len(sick), sick=sick), new()).temperature == expected


# A class that the support set lacks


@pytest.mark.parametrize(("sick", "absent"), [("no", "yes"), ("yes", "no")])
def test_a_missing_class_is_an_error_where_no_task_of_the_training_lacked_one(sick: str, absent: str) -> None:
    with pytest.raises(DataError, match="does not have every class") as caught:
        adapt(model(), cases(sick=[sick] * 6), new())
    assert caught.value.where == "cases.csv, column 'sick'"
    assert caught.value.found == f"6 of class '{sick}', none of '{absent}'"
    assert caught.value.expected
    assert caught.value.remedy


def test_a_missing_class_is_a_warning_where_the_training_had_such_tasks() -> None:
    adapted = adapt(model(episodes=ROWS), cases(sick=["no"] * 6), new())
    assert adapted.warnings == ("the support set has no row of class 'yes'",)
    assert adapted.support_rows == {"no": 6, "yes": 0}
    assert adapted.assumed == (1.0, 0.0)


def test_without_a_class_there_is_no_prevalence_to_shift_from() -> None:
    with pytest.raises(UserError, match="the prevalence cannot be used") as caught:
        adapt(model(episodes=ROWS), cases(sick=["no"] * 6), new(), prevalence=(0.1,))
    assert caught.value.where == "cases.csv"
    assert caught.value.remedy


def test_a_learner_that_needs_every_class_says_so_whatever_the_episodes() -> None:
    chosen = model(episodes=ROWS, algorithm=Choice(name="protonet"))
    with pytest.raises(DataError, match="does not have every class"):
        adapt(chosen, cases(sick=["no"] * 6), new())


def test_a_prior_stands_in_for_a_class_without_a_row() -> None:
    chosen = model(episodes=ROWS, algorithm=Choice(name="protonet", prior_rows=1.0))
    assert torch.isfinite(adapt(chosen, cases(sick=["no"] * 6), new()).probabilities).all()


def test_predictions_that_are_not_finite_are_an_error() -> None:
    wild = model(algorithm=Choice(name="maml", inner_steps=9, inner_rate=3e38))
    with pytest.raises(NumericalError, match="no finite numbers"):
        adapt(wild, cases(), new())


# Units


def test_values_in_another_unit_are_noticed_and_not_shown() -> None:
    months = [SECRET] * 5 + ["600"] * 4
    adapted = adapt(model(), cases(), new(age=months))
    assert len(adapted.warnings) == 1
    assert "new.csv" in adapted.warnings[0]
    assert "'age'" in adapted.warnings[0]
    assert "the study expects years" in adapted.warnings[0]
    assert SECRET not in adapted.warnings[0]


def test_a_column_without_a_unit_is_named_all_the_same() -> None:
    (warning,) = adapt(model(), cases(), new(pulse=[SECRET] * 9)).warnings
    assert "'pulse'" in warning
    assert "expects" not in warning
    assert SECRET not in warning


def test_the_labelled_rows_are_looked_at_too() -> None:
    (warning,) = adapt(model(), cases(age=[SECRET] * 6), new()).warnings
    assert "cases.csv" in warning
    assert "'age'" in warning
    assert SECRET not in warning


def test_a_few_odd_values_are_no_other_unit() -> None:
    assert adapt(model(), cases(), new(age=[SECRET] * 4 + ["50"] * 5)).warnings == ()


def test_a_column_without_a_value_has_no_unit() -> None:
    chosen = model(table=table(missing="indicator"))
    assert adapt(chosen, cases(), new(age=[""] * 9)).warnings == ()


# A table that lacks a column


def masked(**changes: Any) -> TrainedModel:
    """A model of a study in which `pulse` may be missing."""
    columns = tuple(c.model_copy(update={"optional": c.name == "pulse"}) for c in plan().table.columns)
    return model(
        table=table(missing="mask", columns=columns, **changes),
        model=Choice(name="set_encoder", width=4),
        algorithm=Choice(name="protonet"),
    )


def without(rows: Records, column: str) -> Records:
    return replace(rows, cells={name: cells for name, cells in rows.cells.items() if name != column})


@pytest.mark.parametrize("normalise", ["study", "site"])
def test_a_hospital_may_lack_an_optional_column(normalise: str) -> None:
    chosen = masked(normalise=normalise)
    lacking = adapt(chosen, without(cases(), "pulse"), without(new(), "pulse"))
    empty = adapt(chosen, cases(pulse=[""] * 6), new(pulse=["NA"] * 9))
    assert torch.equal(lacking.probabilities, empty.probabilities)
    assert torch.isfinite(lacking.probabilities).all()
    assert not torch.allclose(adapt(chosen, cases(), new()).probabilities, lacking.probabilities, atol=1e-3)


def test_a_table_that_lacks_an_optional_column_is_named() -> None:
    adapted = adapt(masked(), cases(), without(new(), "pulse"))
    assert adapted.warnings == ("new.csv lacks the optional column 'pulse'",)
    assert adapt(masked(), cases(), new()).warnings == ()


def test_an_absent_value_is_left_out_and_not_taken_for_the_columns_center() -> None:
    centers = adapt(masked(), cases(pulse=["70"] * 6), new(pulse=["70"] * 9))
    lacking = adapt(masked(), without(cases(), "pulse"), without(new(), "pulse"))
    assert not torch.allclose(centers.probabilities, lacking.probabilities, atol=1e-3)


def test_a_column_that_is_not_optional_is_still_needed() -> None:
    with pytest.raises(DataError, match="the column 'age' is missing"):
        adapt(masked(), without(cases(), "age"), new())


def test_a_masked_evaluation_and_an_adaptation_agree() -> None:
    trained = masked()
    support, query = cells(6, "cases"), cells(9, "new")
    both = {name: [*support[name], *query[name]] for name in support}
    both["age"] = ["", *both["age"][1:14], "?"]
    whole = {"ulm": encode(trained.plan.table, without(Records("ulm.csv", both), "pulse"))}
    shorter = Draw("ulm", "2", 0, torch.arange(4), torch.arange(6, 8))  # so that there is padding
    draw = Draw("ulm", "3", 0, torch.arange(6), torch.arange(6, 15))
    judged = predict(trained.plan, trained.params, whole, [shorter, draw])
    expected = next(p for p in judged if p.shots == "3").probabilities
    found = adapt(
        trained, without(cases(age=both["age"][:6]), "pulse"), without(new(age=both["age"][6:]), "pulse")
    )
    np.testing.assert_allclose(found.probabilities.numpy(), expected, rtol=0, atol=1e-6)


# A study that standardises by the hospital's own rows


def test_a_hospital_may_standardise_by_all_the_rows_it_gives() -> None:
    chosen = model(table=table(normalise="site"))
    adapted = adapt(chosen, cases(), new())
    assert "15" in adapted.warnings[0]
    known = {n: [*cases().cells[n], *column] for n, column in new().cells.items()}
    together = encode(chosen.plan.table, Records("both.csv", {**known, "sick": ["no"] * 15}))
    targets = torch.tensor([int(sick == "yes") for sick in cases().cells["sick"]] + [0] * 9)
    rows = together.rows._replace(targets=targets)
    draw = Draw("ulm", "3", 0, torch.arange(6), torch.arange(6, 15))
    whole = {"ulm": Table(rows, together.patients, together.test)}
    (expected,) = predict(chosen.plan, chosen.params, whole, [draw])
    np.testing.assert_allclose(adapted.probabilities.numpy(), expected.probabilities, rtol=0, atol=1e-6)


def test_the_unit_does_not_matter_to_such_a_study() -> None:
    chosen = model(table=table(normalise="site"))
    months = {
        "cases": [f"{12 * int(age)}" for age in cases().cells["age"]],
        "new": [f"{12 * int(age)}" for age in new().cells["age"]],
    }
    years, other = (
        adapt(chosen, cases(), new()),
        adapt(chosen, cases(age=months["cases"]), new(age=months["new"])),
    )
    assert torch.allclose(years.probabilities, other.probabilities, atol=1e-5)
    assert len(other.warnings) == 1


# A study whose target is a number


def regression() -> TrainedModel:
    return model(table=table(classes=()), application="regression", episodes=ROWS)


def test_a_number_is_predicted_as_it_is() -> None:
    doses = [f"{10 * i}" for i in range(6)]
    trained = regression()
    adapted = adapt(trained, cases(sick=doses), new())
    learner = trained.plan.learner()
    rows = encode(trained.plan.table, cases(sick=doses)).rows
    query = encode(trained.plan.table, new(sick=["0"] * 9)).rows
    with torch.no_grad():
        expected = learner.predict(trained.params, learner.adapt(trained.params, rows), query.inputs)
    assert adapted.probabilities.shape == (9, 1)
    assert torch.allclose(adapted.probabilities.float(), expected, rtol=1e-5)
    assert (adapted.assumed, adapted.support_rows, adapted.temperature) == ((), {"rows": 6}, 1.0)


def test_a_learner_that_knows_how_sure_it_is_says_so_for_a_number() -> None:
    chosen = Choice(name="neural_process")
    trained = model(table=table(classes=()), application="regression", episodes=ROWS, algorithm=chosen)
    doses = cases(sick=[f"{10 * i}" for i in range(6)])
    learner = trained.plan.learner()
    assert isinstance(learner, Uncertain)
    query = encode(trained.plan.table, new(sick=["0"] * 9)).rows.inputs
    with torch.no_grad():
        fitted = learner.adapt(trained.params, encode(trained.plan.table, doses).rows)
        expected = learner.spread(trained.params, fitted, query).double()
    adapted = adapt(trained, doses, new())
    assert adapted.spread is not None
    assert torch.allclose(adapted.spread, expected, rtol=1e-5)
    assert bool((adapted.spread > 0).all())
    assert adapt(model(algorithm=chosen), cases(), new()).spread is None  # probabilities speak for themselves
    assert adapt(regression(), doses, new()).spread is None


def test_a_number_without_a_finite_spread_is_an_error() -> None:
    trained = model(
        table=table(classes=()),
        application="regression",
        episodes=ROWS,
        algorithm=Choice(name="neural_process"),
    )
    bias = trained.params["decoder.2.bias"]
    broken = replace(
        trained, params={**trained.params, "decoder.2.bias": bias * torch.tensor([1, torch.nan])}
    )
    with pytest.raises(NumericalError, match="no finite numbers"):
        adapt(broken, cases(sick=["1"] * 6), new())


def test_a_number_has_no_prevalence() -> None:
    with pytest.raises(UserError, match="prevalence") as caught:
        adapt(regression(), cases(sick=["1"] * 6), new(), prevalence=(0.1,))
    assert caught.value.where == "--prevalence"


# What does not fit


def test_a_support_set_without_the_target_is_refused() -> None:
    with pytest.raises(DataError, match="the column 'sick' is missing") as caught:
        adapt(model(), new(), new())
    assert caught.value.where == "new.csv"


@pytest.mark.parametrize("where", ["cases.csv", "new.csv"])
def test_either_table_must_have_the_studys_columns(where: str) -> None:
    tables = (without(rows, "pulse") if rows.where == where else rows for rows in (cases(), new()))
    with pytest.raises(DataError, match="'pulse'") as caught:
        adapt(model(), *tables)
    assert caught.value.where == where


def test_a_model_of_fewer_ways_than_classes_is_not_used_on_all_of_them() -> None:
    support = cases(6, sick=["no", "maybe", "yes"] * 2)
    with pytest.raises(ClinimetaError):
        adapt(model(table=THREE, episodes=Episodes(ways=2, shots=(2,))), support, new())


def test_a_model_without_temperatures_because_answers_were_protected_says_so() -> None:
    chosen = model()
    protected = chosen.plan.model_copy(update={"protection": Protection(answers="masked")})
    (warning,) = adapt(replace(chosen, plan=protected), cases(), new()).warnings
    assert "without temperatures" in warning
    assert adapt(replace(chosen, plan=protected, temperatures={1: 2.0}), cases(), new()).warnings == ()
