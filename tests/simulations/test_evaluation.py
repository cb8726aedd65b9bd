"""Every arm is judged on the same rows, and no row is ever both learned from and predicted."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clinimeta.common.rng import generator
from clinimeta.common.study import Choice, Evaluation, Plan, read_study
from clinimeta.common.tasks.episode import examples
from clinimeta.common.tasks.table import Table
from clinimeta.simulations import evaluation as evaluation_module
from clinimeta.simulations.evaluation import Draw, Prediction, draws, merge_halves, predict

STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4] }

[table]
target = "sick"
classes = ["no", "yes"]
columns = [{ name = "age" }, { name = "pulse" }]

[[arms]]
name = "maml"
algorithm = { name = "maml", inner_steps = 2 }

[[arms]]
name = "protonet"
algorithm = { name = "protonet", embedding = 3 }
"""
SEEDS = st.integers(0, 1000)


def plan(arm: str = "maml", **changes: Any) -> Plan:
    study = read_study(STUDY, "study.toml")
    return study.plan(study.arm(arm), seed=0).model_copy(update=changes)


def judged_by(**values: Any) -> Evaluation:
    return Evaluation(**{"name": "e", "shots": (1, 3), "repeats": 2, "split": "leave_one_site_out", **values})


def table_of(targets: list[int], patients: list[int] | None = None, test: list[bool] | None = None) -> Table:
    count = len(targets)
    inputs = torch.randn(count, 2, generator=generator("table", count))
    return Table(
        examples({"table": inputs}, torch.tensor(targets)),
        torch.tensor(list(range(count)) if patients is None else patients),
        torch.tensor([False] * count if test is None else test),
    )


BALANCED = table_of([0, 1] * 10)
HELD_OUT = table_of([0, 1] * 10, test=[i >= 14 for i in range(20)])


def rows(drawn: list[Draw]) -> list[tuple[str, int, list[int], list[int]]]:
    return [(d.shots, d.repeat, d.support.tolist(), d.query.tolist()) for d in drawn]


def people(table: Table, indices: torch.Tensor) -> set[int]:
    return set(table.patients[indices].tolist())


@st.composite
def tables(draw: st.DrawFn) -> Table:
    targets = draw(st.lists(st.integers(0, 1), min_size=1, max_size=16))
    patients = draw(st.lists(st.integers(0, 9), min_size=len(targets), max_size=len(targets)))
    return table_of(targets, patients)


# Draws


@given(tables(), st.sampled_from(["per_class", "rows"]), SEEDS)
def test_nobody_is_both_learned_from_and_predicted(table: Table, draw: Any, seed: int) -> None:
    chosen = judged_by(shots=(0, 1, 3, "half"), draw=draw)
    for drawn in draws(chosen, "ulm", table, 2, seed):
        assert not people(table, drawn.support) & people(table, drawn.query)
        assert len(drawn.query) > 0


@given(tables(), SEEDS)
def test_halves_split_people_and_predict_every_row_once(table: Table, seed: int) -> None:
    drawn = draws(judged_by(shots=("half",), repeats=3), "ulm", table, 2, seed)
    number = len(table.patients.unique())
    assert len(drawn) == (6 if number >= 2 else 0)
    for one, other in zip(drawn[::2], drawn[1::2], strict=True):
        assert one.repeat == other.repeat
        assert torch.equal(one.support, other.query)
        assert torch.equal(one.query, other.support)
        assert sorted([*one.query.tolist(), *other.query.tolist()]) == list(range(len(table)))
        assert abs(len(people(table, one.support)) - len(people(table, other.support))) <= 1


def test_a_support_set_has_the_size_asked_for_and_every_other_row_is_predicted() -> None:
    for drawn in draws(judged_by(shots=(1, 3)), "ulm", BALANCED, 2, 0):
        size = int(drawn.shots)
        targets = BALANCED.rows.targets[drawn.support].tolist()
        assert (targets.count(0), targets.count(1)) == (size, size)
        assert sorted([*drawn.support.tolist(), *drawn.query.tolist()]) == list(range(20))
    (one, _) = draws(judged_by(shots=(5,), draw="rows"), "ulm", BALANCED, 2, 0)
    assert (len(one.support), len(one.query)) == (5, 15)


def test_sizes_that_a_hospital_cannot_give_are_left_out() -> None:
    drawn = draws(judged_by(shots=(2, 9, 10, 50)), "ulm", BALANCED, 2, 0)
    assert {d.shots for d in drawn} == {"2", "9"}


def test_a_single_person_is_no_hospital_to_halve() -> None:
    assert draws(judged_by(shots=("half",)), "ulm", table_of([0, 1], [3, 3]), 2, 0) == []


def test_the_same_question_draws_the_same_rows() -> None:
    chosen = judged_by(shots=(1, 3, "half"))
    assert rows(draws(chosen, "ulm", BALANCED, 2, 4)) == rows(draws(chosen, "ulm", BALANCED, 2, 4))


@pytest.mark.parametrize(
    ("other", "site", "seed"),
    [(judged_by(), "ulm", 5), (judged_by(), "bonn", 4), (judged_by(name="another"), "ulm", 4)],
    ids=["seed", "hospital", "evaluation"],
)
def test_another_question_draws_others(other: Evaluation, site: str, seed: int) -> None:
    assert rows(draws(judged_by(), "ulm", BALANCED, 2, 4)) != rows(draws(other, site, BALANCED, 2, seed))


def test_repetitions_draw_anew_and_do_not_depend_on_their_number() -> None:
    few, many = (rows(draws(judged_by(shots=(3,), repeats=n), "ulm", BALANCED, 2, 0)) for n in (2, 5))
    assert many[:2] == few
    assert len({str(draw[2]) for draw in many}) == 5


# Rows that the data set's own protocol keeps back


@pytest.mark.parametrize("split", ["own_test_rows", "leave_one_site_out"])
def test_kept_back_rows_are_predicted_and_never_learned_from(split: Any) -> None:
    drawn = draws(judged_by(split=split, shots=(1, 3, "all")), "ulm", HELD_OUT, 2, 0)
    assert [d.shots for d in drawn] == ["1", "1", "3", "3", "all"]
    for one in drawn:
        assert one.query.tolist() == list(range(14, 20))
        assert max(one.support.tolist()) < 14
    assert drawn[-1].support.tolist() == list(range(14))


def test_all_rows_make_one_draw_however_often_asked() -> None:
    assert len(draws(judged_by(shots=("all",), repeats=7), "ulm", HELD_OUT, 2, 0)) == 1


@pytest.mark.parametrize("test", [[False] * 4, [True] * 4])
def test_all_rows_need_both_kinds(test: list[bool]) -> None:
    assert draws(judged_by(shots=("all",)), "ulm", table_of([0, 1, 0, 1], test=test), 2, 0) == []


@pytest.mark.parametrize("shots", [0, 1, "half", "all"])
@pytest.mark.parametrize("table", [BALANCED, HELD_OUT], ids=["nothing kept back", "six rows kept back"])
def test_a_hospital_that_trained_is_judged_on_rows_that_did_not(table: Table, shots: Any) -> None:
    drawn = draws(judged_by(split="own_test_rows", shots=(shots,)), "ulm", table, 2, 0)
    assert all(bool(table.test[one.query].all()) for one in drawn)


# Predictions


def alone(chosen: Plan, params: Any, table: Table, drawn: Draw) -> np.ndarray:
    """One draw adapted by itself, without a batch and without padding."""
    learner = chosen.learner()
    with torch.no_grad():
        adapted = learner.adapt(params, table.rows.take(drawn.support))
        outputs = learner.predict(params, adapted, table.rows.take(drawn.query).inputs)
        return learner.objective.probabilities(outputs).double().numpy()


SMALL = table_of([0, 1, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("arm", ["maml", "protonet"])
@pytest.mark.parametrize("chunk", [1, 3, 128])
def test_many_draws_at_once_are_predicted_as_each_alone(
    arm: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_module, "CHUNK", chunk)
    chosen, both = plan(arm), {"ulm": BALANCED, "bonn": SMALL}
    params = chosen.learner().init(generator("params"))
    drawn = [d for site, table in both.items() for d in draws(judged_by(), site, table, 2, 0)]
    made = {(p.site, p.shots, p.repeat): p for p in predict(chosen, params, both, drawn)}
    assert len(made) == len(drawn) == 6  # three of a class leave none at the small hospital
    for one in drawn:
        found = made[one.site, one.shots, one.repeat]
        assert found.rows.tolist() == one.query.tolist()
        assert found.targets.tolist() == both[one.site].rows.targets[one.query].tolist()
        expected = alone(chosen, params, both[one.site], one)
        np.testing.assert_allclose(found.probabilities, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_every_arm_is_judged_on_the_same_rows() -> None:
    drawn = draws(judged_by(shots=(1, 3, "half")), "ulm", BALANCED, 2, 0)
    seen = []
    for arm in ("maml", "protonet"):
        chosen = plan(arm)
        made = predict(chosen, chosen.learner().init(generator("params")), {"ulm": BALANCED}, drawn)
        seen.append([(p.shots, p.repeat, p.rows.tolist(), p.targets.tolist()) for p in made])
    assert sorted(seen[0]) == sorted(seen[1])


def test_two_halves_are_one_prediction_of_every_row_in_order() -> None:
    chosen = plan()
    params = chosen.learner().init(generator("params"))
    drawn = draws(judged_by(shots=("half",)), "ulm", SMALL, 2, 0)
    made = predict(chosen, params, {"ulm": SMALL}, drawn)
    assert [p.repeat for p in made] == [0, 1]
    for prediction in made:
        assert prediction.rows.tolist() == list(range(7))
        assert prediction.targets.tolist() == SMALL.rows.targets.tolist()
    for one in drawn:
        (whole,) = (p for p in made if p.repeat == one.repeat)
        expected = alone(chosen, params, SMALL, one)
        np.testing.assert_allclose(whole.probabilities[one.query.numpy()], expected, rtol=0, atol=1e-6)


def test_nothing_to_draw_is_nothing_to_predict() -> None:
    assert predict(plan(), plan().learner().init(generator("params")), {}, []) == []


def test_three_classes_have_three_probabilities() -> None:
    table = table_of([0, 1, 2] * 4)
    base = plan()
    chosen = base.model_copy(
        update={
            "table": base.table.model_copy(update={"classes": ("a", "b", "c")}),
            "episodes": base.episodes.model_copy(update={"ways": 3}),
            "model": Choice(name="linear"),
        }
    )
    drawn = draws(judged_by(shots=(1,)), "ulm", table, 3, 0)
    made = predict(chosen, chosen.learner().init(generator("params")), {"ulm": table}, drawn)
    assert made[0].probabilities.shape == (9, 3)
    np.testing.assert_allclose(made[0].probabilities.sum(axis=1), 1, rtol=1e-6)


def test_merging_leaves_other_draws_apart() -> None:
    def one(site: str, shots: str, repeat: int, row: int) -> Prediction:
        at = np.array([row])
        return Prediction(site, shots, repeat, at, at % 2, np.array([[0.25, 0.75]]))

    apart = [
        one("ulm", "half", 0, 3),
        one("ulm", "half", 1, 3),
        one("ulm", "1", 0, 3),
        one("bonn", "half", 0, 3),
    ]
    assert len(merge_halves(apart)) == 4
    (merged,) = merge_halves([one("ulm", "half", 0, 3), one("ulm", "half", 0, 1)])
    assert merged.rows.tolist() == [1, 3]
