"""Answers in whole numbers, with masks and without, over the loopback grid and all at once."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import rest_slow
from pydantic import ValidationError

from clinimeta.client import site as site_module
from clinimeta.client.budget import Allowance, Budget
from clinimeta.client.site import answer
from clinimeta.common.contributions import columns_of, flatten, sensitivity
from clinimeta.common.errors import GateError, QuorumError, StudyError
from clinimeta.common.params import digest, map_params, norm
from clinimeta.common.protection import Protection
from clinimeta.common.records import (
    CalibrationOrder,
    MaskingOrder,
    MetaGradientOrder,
    Order,
    QuantisedOrder,
    Refusal,
    Reply,
)
from clinimeta.common.rng import generator
from clinimeta.common.secagg.protocol import play
from clinimeta.common.secagg.ring import Contribution
from clinimeta.common.secagg.terms import Terms
from clinimeta.common.study import Arm, Faults, Study, check
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.protected import MaskedRounds
from clinimeta.server.store import RunDir
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine, Together
from clinimeta.simulations.consortium import found
from clinimeta.simulations.loopback import LoopbackEngine
from clinimeta.simulations.protecting import protected

ARMS = ("maml", "protonet", "fedavg")
MOSTLY_MAML = pytest.mark.parametrize("arm", rest_slow(ARMS, ["maml"]))


@pytest.fixture
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    return (RunDir.create(tmp_path_factory.mktemp("run") / "r", "") for _ in range(9))


def small(
    arm: str, answers: str, *, rounds: int = 3, cohort_size: int = 0, **training: object
) -> tuple[Study, Arm]:
    """The default study with nine hospitals, and one of its arms with few rounds."""
    study = studies.find("default")
    chosen = study.arm(arm)
    changes = {"rounds": rounds, "cohort_size": cohort_size, **training}
    chosen = chosen.model_copy(
        update={
            "training": chosen.training.model_copy(update=changes),
            "protection": Protection(answers=answers),  # type: ignore[arg-type]
        }
    )
    return study.model_copy(update={"data": study.data.model_copy(update={"sites": 9})}), chosen


def train(engine: LoopbackEngine | BatchedEngine, study: Study, arm: Arm, folder: RunDir) -> Params:
    outcome, plan = Outcome(), study.plan(arm, 5)
    engine(Job("t", plan, arm.training, folder, sites=9), outcome, federation.load(study, None).sites)
    assert outcome.state is not None
    return outcome.state.params


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("cohort_size", rest_slow([0, 5], [0]))
def test_masked_and_unmasked_whole_numbers_are_equal_to_the_bit(
    arm: str, cohort_size: int, folders: Iterator[RunDir]
) -> None:
    reached, rounds = [], []
    for answers in ("quantised", "masked"):
        folder = next(folders)
        reached.append(train(LoopbackEngine(), *small(arm, answers, cohort_size=cohort_size), folder))
        rounds.append(folder.rounds())
    assert digest(reached[0]) == digest(reached[1])
    for clear, masked in zip(*rounds, strict=True):
        assert (clear.metrics, clear.gradient_norm, clear.accepted) == (
            masked.metrics,
            masked.gradient_norm,
            masked.accepted,
        )


@MOSTLY_MAML
def test_whole_numbers_come_near_the_floats(arm: str, folders: Iterator[RunDir]) -> None:
    outer = {"outer": studies.find("default").arm(arm).training.outer.model_copy(update={"name": "sgd"})}
    plain, whole = (
        train(LoopbackEngine(), *small(arm, answers, **outer), next(folders))
        for answers in ("plain", "quantised")
    )
    assert norm(map_params(torch.sub, plain, whole)) < 1e-4 * norm(plain)


@MOSTLY_MAML
def test_all_at_once_they_are_what_the_grid_carries(arm: str, folders: Iterator[RunDir]) -> None:
    """To one whole number: both round the same, but the floats before differ in their last bits."""
    outer = {"outer": studies.find("default").arm(arm).training.outer.model_copy(update={"name": "sgd"})}
    masked, together = (
        train(engine, *small(arm, "masked", **outer), next(folders))
        for engine in (LoopbackEngine(), BatchedEngine())
    )
    assert norm(map_params(torch.sub, masked, together)) < 1e-6 * norm(masked)


@MOSTLY_MAML
def test_drop_outs_leave_the_sum_of_the_survivors(arm: str, folders: Iterator[RunDir]) -> None:
    study, chosen = small(arm, "masked", rounds=4, attempts=6)
    folder = next(folders)
    train(LoopbackEngine(faults=Faults(silent=0.06, error=0.04)), study, chosen, folder)
    rounds = folder.rounds()
    assert [r.round for r in rounds] == [1, 2, 3, 4]
    assert any(r.accepted < 9 for r in rounds)
    assert all(r.accepted >= 3 for r in rounds)  # `min_cohort`


def test_a_cohort_under_the_promised_minimum_is_refused_before_it_starts() -> None:
    study, chosen = small("maml", "masked", cohort_size=4)
    chosen = chosen.model_copy(update={"protection": Protection(answers="masked", min_cohort=5)})
    arms = tuple(chosen if arm.name == "maml" else arm for arm in study.arms)
    with pytest.raises(StudyError, match="a cohort of 4"):
        check(study.model_copy(update={"arms": arms}))


# --- noise ---


def promising(arm: str, answers: str, epsilon: float, **changes: Any) -> tuple[Study, Arm]:
    """As `small`, private for each patient."""
    study, chosen = small(arm, answers, rounds=2, weighting="tasks")
    protection = Protection(answers=answers, epsilon=epsilon, clip=1.0, **changes)  # type: ignore[arg-type]
    episodes = chosen.episodes.model_copy(update={"tasks_a_patient": 1})
    return study, chosen.model_copy(update={"protection": protection, "episodes": episodes})


@MOSTLY_MAML
def test_with_noise_all_at_once_is_what_the_grid_carries(arm: str, folders: Iterator[RunDir]) -> None:
    masked, together = (
        train(engine, *promising(arm, "masked", 8.0), next(folders))
        for engine in (LoopbackEngine(), BatchedEngine())
    )
    assert norm(map_params(torch.sub, masked, together)) < 1e-4 * norm(masked)


@pytest.mark.parametrize(
    ("answers", "noise", "shares"),
    [
        ("quantised", "shared", 1.0),
        ("masked", "shared", 9 / 7),
        ("quantised", "local", 9.0),
        ("masked", "local", 9.0),
    ],
)
def test_the_noise_in_a_sum_is_as_large_as_promised(
    answers: str, noise: str, shares: float, folders: Iterator[RunDir]
) -> None:
    """Of two runs that differ in their noise only, each number differs by a Gaussian of known size."""
    study, chosen = promising("maml", answers, 8.0, noise=noise)
    plan = study.plan(chosen, 5)
    sites = federation.load(study, None).sites
    hospitals = [Together(Job("t", plan, chosen.training, next(folders)), sites) for _ in range(2)]
    start = plan.learner().init(generator("noise"))
    names = sorted(sites)
    drawn = [h.meta_gradient(1, start, names).aggregate for h in hospitals]
    assert digest(drawn[0].gradient or {}) == digest(drawn[1].gradient or {})
    quiet = plan.model_copy(update={"protection": Protection(answers="quantised", clip=1.0)})
    clean = Together(Job("t", quiet, chosen.training, next(folders)), sites)
    exact = clean.meta_gradient(1, start, names).aggregate
    away = flatten(map_params(lambda a, b: a - b, drawn[0].gradient or {}, exact.gradient or {}))
    z, moved = plan.protection.noise_multiplier, sensitivity(plan)
    assert moved == 2.0  # one task knows of a patient, and goes from one end of the ball to the other
    expected = z * moved * math.sqrt(shares) / (len(names) * plan.episodes.tasks)
    assert float(away.std()) == pytest.approx(expected, rel=0.1)


def test_under_a_promise_no_metric_and_no_count_leaves(folders: Iterator[RunDir]) -> None:
    folder = next(folders)
    study, chosen = promising("maml", "masked", 8.0)
    train(LoopbackEngine(), study, chosen, folder)
    assert [dict(r.metrics) for r in folder.rounds()] == [{}, {}]
    assert [c.name for c in columns_of(study.plan(chosen, 5))] == ["weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": "plain", "epsilon": 1.0}, "epsilon"),
        ({"answers": "masked", "min_cohort": 1}, "hides nothing"),
        ({"answers": "masked", "min_cohort": 3, "colluders": 3}, "honest"),
    ],
)
def test_a_protection_that_protects_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Protection(**changes)


# --- what a site refuses ---


@pytest.mark.parametrize(
    ("answers", "order"),
    [("quantised", "plain"), ("masked", "plain"), ("masked", "quantised"), ("plain", "quantised")],
)
def test_a_site_gives_no_answer_with_less_protection_than_its_plan_says(answers: str, order: str) -> None:
    study, chosen = small("maml", answers)
    plan = study.plan(chosen, 5)
    (site, *_) = federation.load(study, None).sites.values()
    start = plan.learner().init(generator("template"))
    asked = (
        MetaGradientOrder("n", "t", 1, plan.canonical(), start)
        if order == "plain"
        else QuantisedOrder("n", "t", 1, plan.canonical(), 9, start)
    )
    reply = answer(site, asked)
    assert isinstance(reply, Refusal)
    assert reply.code == "not_protected"


@pytest.mark.parametrize("answers", ["quantised", "masked"])
def test_no_temperature_is_measured_of_a_protected_model(answers: str, folders: Iterator[RunDir]) -> None:
    """Losses for each hospital would be in the clear; a site refuses, and a coordinator does not ask."""
    study, chosen = small("maml", answers, rounds=1)
    plan = study.plan(chosen, 5)
    sites = federation.load(study, None).sites
    start = plan.learner().init(generator("template"))
    reply = answer(sites[min(sites)], CalibrationOrder("n", "t", plan.canonical(), start, (1.0,)))
    assert isinstance(reply, Refusal)
    assert reply.code == "not_protected"
    for engine in (LoopbackEngine(), BatchedEngine()):
        outcome = Outcome()
        engine(Job("t", plan, chosen.training, next(folders), sites=9, calibrate=plan), outcome, sites)
        assert outcome.temperatures == {}


def test_a_model_that_another_arm_trained_is_protected_as_that_arm_is() -> None:
    """Else a hospital that approves the adapting arm's plan would approve plain answers with it."""
    study = protected(studies.find("default"), masked=True, epsilon=8.0, delta=1e-6)
    adapting = [arm for arm in study.arms if arm.trained_by and not arm.name.endswith("unprotected")]
    assert adapting
    for arm in adapting:
        teacher = study.plan(study.arm(arm.trained_by), 0)
        assert study.plan(arm, 0).protection == teacher.protection
        assert teacher.protection.noise_multiplier > 0


@pytest.mark.parametrize("sites", [0, -1, 10_001, 2**40])
def test_a_sum_over_so_many_sites_is_no_order(sites: int) -> None:
    study, chosen = small("maml", "quantised")
    plan = study.plan(chosen, 5)
    (site, *_) = federation.load(study, None).sites.values()
    start = plan.learner().init(generator("template"))
    reply = answer(site, QuantisedOrder("n", "t", 1, plan.canonical(), sites, start))
    assert isinstance(reply, Refusal)
    assert reply.code == "bad_order"


@pytest.mark.parametrize("answers", ["quantised", "masked"])
def test_a_damaged_answer_in_whole_numbers_is_noticed(answers: str, folders: Iterator[RunDir]) -> None:
    study, chosen = small("maml", answers, rounds=2, attempts=4, quorum=0.1)
    folder = next(folders)
    train(LoopbackEngine(faults=Faults(corrupt=0.08)), study, chosen, folder)
    rounds = folder.rounds()
    assert [r.round for r in rounds] == [1, 2]
    assert sum(r.accepted for r in rounds) < 2 * 9
    assert all(r.accepted + len(r.refused) + len(r.silent) == 9 for r in rounds)
    assert any(r.refused for r in rounds)


def test_a_promise_without_noise_is_no_plan() -> None:
    study, chosen = promising("maml", "quantised", 8.0)
    silent = study.plan(chosen, 5).protection.model_copy(update={"noise_multiplier": 0.0})
    plan = study.plan(chosen, 5).model_copy(update={"protection": silent})
    (site, *_) = federation.load(study, None).sites.values()
    start = plan.learner().init(generator("template"))
    reply = answer(site, QuantisedOrder("n", "t", 1, plan.canonical(), 9, start))
    assert isinstance(reply, Refusal)
    assert reply.code == "bad_plan"


def test_a_site_without_a_key_takes_no_part_in_secure_aggregation() -> None:
    study, _ = small("maml", "masked")
    (site, *_) = federation.load(study, None).sites.values()
    reply = answer(site, MaskingOrder("n", "t", 1, b"", (), {}))
    assert isinstance(reply, Refusal)
    assert reply.code == "no_identity"


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_site_refuses_bounds_that_do_not_follow_from_the_plan(factor: float) -> None:
    """With a smaller bound the same noise would hide less."""
    study, chosen = promising("maml", "masked", 8.0)
    plan = study.plan(chosen, 5)
    consortium = found(federation.load(study, None).sites, plan)
    start = plan.learner().init(generator("template"))
    rounds = Bending("t", plan, consortium.roster, date.today, 1, 1, lambda: "n", factor=factor)
    flow = rounds.round(1, start, sorted(consortium.sites))

    def ask(orders: Mapping[str, Order]) -> dict[str, Reply]:
        return {site: answer(consortium.sites[site], order) for site, order in orders.items()}

    with pytest.raises(QuorumError) as ended:
        play(flow, ask)
    assert set(ended.value.missing.values()) == {"masked: refused: not_protected"}


@dataclass(slots=True)
class Bending(MaskedRounds):
    """A coordinator that asks under other bounds than the plan's."""

    factor: float = 1.0

    def _terms(self, params: Params, cohort: Sequence[str]) -> Callable[[int, int], Terms]:
        honest = MaskedRounds._terms(self, params, cohort)

        def bent(number: int, attempt: int) -> Terms:
            terms = honest(number, attempt)
            return replace(terms, bound=self.factor * terms.bound)

        return bent


def test_a_site_asks_its_budget_before_it_answers(tmp_path: Path, folders: Iterator[RunDir]) -> None:
    study, chosen = promising("maml", "masked", 8.0)
    plan, sites = study.plan(chosen, 5), federation.load(study, None).sites
    (tmp_path / "state").mkdir(mode=0o700)
    poor = Budget.create(tmp_path / "state" / "budget.sqlite", Allowance(6.0, 1e-6))
    first = min(sites)
    sites = {**sites, first: replace(sites[first], budget=poor)}
    folder = next(folders)
    LoopbackEngine()(Job("t", plan, chosen.training, folder, sites=9), Outcome(), sites)
    one, two = folder.rounds()
    assert one.accepted == 9
    assert (two.accepted, two.refused) == (8, {first: "masked: refused: budget_spent"})
    assert [entry.answer.round for entry in poor.history()] == [1]
    assert 0 < poor.spent() < 6.0


def test_fewer_hospitals_than_a_sum_may_be_opened_over_are_named(folders: Iterator[RunDir]) -> None:
    study, chosen = small("maml", "masked")
    chosen = chosen.model_copy(update={"protection": Protection(answers="masked", min_cohort=10)})
    with pytest.raises(StudyError, match="so few hospitals"):
        train(LoopbackEngine(), study, chosen, next(folders))


@pytest.mark.parametrize("epsilon", [0.0, 8.0])
def test_a_sum_that_honest_sites_cannot_make_stops_the_training(
    epsilon: float, monkeypatch: pytest.MonkeyPatch, folders: Iterator[RunDir]
) -> None:
    """A site that does not cut its answer; under masks nobody sees that it was this one."""
    study, chosen = promising("maml", "masked", epsilon) if epsilon else small("maml", "masked")
    honest = site_module.contributed

    def bad(*arguments: Any) -> Contribution:
        added = honest(*arguments)
        if arguments[2] != "hospital-03":
            return added
        signs = np.where(np.arange(len(added.vector)) % 2, 1.0, -1.0)
        return replace(added, vector=chosen.protection.clip * plan.episodes.tasks * signs)

    plan = study.plan(chosen, 5)
    train(LoopbackEngine(), study, chosen, next(folders))
    monkeypatch.setattr(site_module, "contributed", bad)
    with pytest.raises(GateError, match="one of them sends damage"):
        train(LoopbackEngine(), study, chosen, next(folders))
