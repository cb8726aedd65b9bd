"""Answers in whole numbers, with masks and without, over the loopback grid and all at once."""

from collections.abc import Iterator

import pytest
import torch

from clinimeta.common.errors import StudyError
from clinimeta.common.params import digest, map_params, norm
from clinimeta.common.protection import Protection
from clinimeta.common.study import Arm, Faults, Study
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine
from clinimeta.simulations.loopback import LoopbackEngine

ARMS = ("maml", "protonet", "fedavg")


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
@pytest.mark.parametrize("cohort_size", [0, 5])
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


@pytest.mark.parametrize("arm", ARMS)
def test_whole_numbers_come_near_the_floats(arm: str, folders: Iterator[RunDir]) -> None:
    outer = {"outer": studies.find("default").arm(arm).training.outer.model_copy(update={"name": "sgd"})}
    plain, whole = (
        train(LoopbackEngine(), *small(arm, answers, **outer), next(folders))
        for answers in ("plain", "quantised")
    )
    assert norm(map_params(torch.sub, plain, whole)) < 1e-4 * norm(plain)


@pytest.mark.parametrize("arm", ARMS)
def test_all_at_once_they_are_what_the_grid_carries(arm: str, folders: Iterator[RunDir]) -> None:
    """To one whole number: both round the same, but the floats before differ in their last bits."""
    outer = {"outer": studies.find("default").arm(arm).training.outer.model_copy(update={"name": "sgd"})}
    masked, together = (
        train(engine, *small(arm, "masked", **outer), next(folders))
        for engine in (LoopbackEngine(), BatchedEngine())
    )
    assert norm(map_params(torch.sub, masked, together)) < 1e-6 * norm(masked)


@pytest.mark.parametrize("arm", ARMS)
def test_drop_outs_leave_the_sum_of_the_survivors(arm: str, folders: Iterator[RunDir]) -> None:
    study, chosen = small(arm, "masked", rounds=4, attempts=6)
    folder = next(folders)
    train(LoopbackEngine(faults=Faults(silent=0.06, error=0.04)), study, chosen, folder)
    rounds = folder.rounds()
    assert [r.round for r in rounds] == [1, 2, 3, 4]
    assert any(r.accepted < 9 for r in rounds)
    assert all(r.accepted >= 5 for r in rounds)  # the threshold of the six that once advertised


def test_hospitals_refuse_a_cohort_under_their_own_minimum(folders: Iterator[RunDir]) -> None:
    study, chosen = small("maml", "masked", cohort_size=4, attempts=2)
    chosen = chosen.model_copy(update={"protection": Protection(answers="masked", min_cohort=5)})
    with pytest.raises(StudyError, match="cohort"):
        train(LoopbackEngine(), study, chosen, next(folders))
