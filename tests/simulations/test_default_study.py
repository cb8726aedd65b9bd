"""The default study: it reads, it fits its generator, and its tuning never saw its hospitals."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from clinimeta.client.site import Site, answer
from clinimeta.common.params import shapes
from clinimeta.common.records import MetaGradient, MetaGradientOrder
from clinimeta.common.rng import generator
from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.schema import Column
from clinimeta.common.tasks.table import encode
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import Limits, aggregate
from clinimeta.server.cohort import sample_cohort
from clinimeta.server.training import begin, step
from clinimeta.simulations import studies
from clinimeta.simulations.benchmarks import tune
from clinimeta.simulations.hospitals import (
    COLUMNS,
    MEASUREMENTS,
    PATIENT,
    TARGET,
    FederationSettings,
    hospital,
)

STUDY = studies.find("default")


def column(name: str) -> Column:
    return next(c for c in STUDY.table.columns if c.name == name)


def test_the_study_round_trips_through_its_file() -> None:
    assert read_study(STUDY.to_toml(), "written again") == STUDY


def test_its_columns_are_exactly_the_generators() -> None:
    assert tuple(c.name for c in STUDY.table.columns) == COLUMNS
    assert (STUDY.table.target, STUDY.table.patient, STUDY.table.classes) == (TARGET, PATIENT, ("0", "1"))
    for measurement in MEASUREMENTS:
        assert column(measurement.name).unit == measurement.unit
    assert column("sex").kind == "binary"
    assert column("dyspnoea_class").levels == ("1", "2", "3", "4")


def test_its_reference_values_put_usual_hospitals_on_a_usual_scale() -> None:
    usual = FederationSettings(coding=0.0, missing=0.0)
    tables = [encode(STUDY.table, hospital(usual, 300, index)) for index in range(10)]
    for number, feature in enumerate(STUDY.table.features[: -len(COLUMNS)]):
        values = np.concatenate([t.rows.inputs["table"][:, number].numpy() for t in tables])
        assert abs(np.median(values)) <= 1, feature
        assert np.quantile(np.abs(values), 0.9) <= 4, feature


def test_its_arms_are_the_comparison_that_it_asks_about() -> None:
    assert [arm.name for arm in STUDY.arms] == ["maml", "protonet", "fedavg", "fedavg-finetuned", "local"]
    assert STUDY.primary == "maml"
    (evaluation,) = STUDY.evaluations
    assert (evaluation.split, evaluation.sites, evaluation.shots) == ("unseen_sites", 8, (1, 5, 10, 20))
    (question,) = STUDY.questions
    assert (question.arm, question.against, question.shots) == ("maml", "fedavg-finetuned", 5)


def test_fedavg_is_fedavg_and_what_is_fine_tuned_is_its_model() -> None:
    fedavg, tuned, local = STUDY.arm("fedavg"), STUDY.arm("fedavg-finetuned"), STUDY.arm("local")
    assert fedavg.algorithm.options["steps"] == 0
    assert fedavg.training.outer.name == "sgd"
    assert fedavg.training.outer.rate == fedavg.training.local_rate  # so that weights are averaged
    assert fedavg.training.weighting == "rows"
    assert (tuned.trained_by, tuned.model) == ("fedavg", fedavg.model)
    assert tuned.algorithm.options["steps"] > 0
    assert (local.training.rounds, local.trained_by) == (0, "")
    assert local.algorithm.options["steps"] > 0


def test_its_tuning_never_saw_its_hospitals() -> None:
    seeds = {*tune.VALIDATION, *tune.CONFIRMATION}
    assert STUDY.data.options["seed"] not in seeds
    assert len(seeds) == len(tune.VALIDATION) + len(tune.CONFIRMATION)


def federated(study: Study, name: str, sites: dict[str, Site], seed: int) -> Params:
    """The same training by orders and answers, as the server does it."""
    arm = study.arm(name)
    plan, optimizer = study.plan(arm, seed), arm.training.outer.build()
    state = begin(plan.learner(), optimizer, seed)
    for number in range(1, arm.training.rounds + 1):
        cohort = sample_cohort(list(sites), arm.training.cohort_size, seed, number)
        order = MetaGradientOrder("nonce", "run", number, plan.canonical(), state.params)
        replies = {site: answer(sites[site], order) for site in cohort}
        usable = {site: reply for site, reply in replies.items() if isinstance(reply, MetaGradient)}
        gradient = aggregate(usable, Limits(1e9, 1e9), state.params).gradient
        assert gradient is not None
        state = step(state, gradient, optimizer)
    return state.params


@pytest.mark.parametrize("name", ["maml", "protonet", "fedavg"])
def test_the_loop_that_tunes_trains_as_the_federation_does(name: str) -> None:
    few: dict[str, Any] = {"training.rounds": 3, "training.cohort_size": 3}
    few |= {"training.outer": {"name": "sgd", "rate": 0.1}}  # Adam makes much of a last digit at first
    arm = tune.with_options(STUDY.arm(name), few)
    study = STUDY.model_copy(update={"arms": (arm,)})
    records = {f"h{i}": hospital(FederationSettings(), 300, i) for i in range(4)}
    tables = {site: encode(STUDY.table, rows) for site, rows in records.items()}
    alone = tune.train(study.plan(arm, 1), arm, tables, 1)
    together = federated(study, name, {site: Site(site, rows) for site, rows in records.items()}, 1)
    assert shapes(alone) == shapes(together)
    for key, tensor in alone.items():
        np.testing.assert_allclose(tensor.numpy(), together[key].numpy(), rtol=1e-4, atol=1e-5)


def test_every_trial_is_an_arm_that_can_be_built() -> None:
    for name in tune.SPACES:
        for options in tune.sample(name, 16):
            arm = tune.with_options(STUDY.arm(name), options)
            assert STUDY.plan(arm, 0).learner().init(generator("any"))
        assert len(tune.sample(name, 16)) == len({str(options) for options in tune.sample(name, 16)})


def test_a_trials_spread_is_between_federations() -> None:
    trial = tune.Trial("tune", "maml", {}, 0.0, 1, 2, {"5": [0.6, 0.8, 0.9, float("nan")]})
    mean, spread = trial.spread("5")
    assert mean == pytest.approx(0.8)
    assert spread == pytest.approx(0.2 / 2**0.5)
    better = dataclasses.replace(trial, scores={"5": [0.7, 0.9, 1.0, float("nan")]})
    assert tune.difference(better, trial, "5")[0] == pytest.approx(0.1)
