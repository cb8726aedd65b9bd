import pytest
import torch

from clinimeta.common.errors import QuorumError
from clinimeta.common.params import map_params, norm
from clinimeta.common.study import Study
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine, Together
from clinimeta.simulations.loopback import LoopbackEngine


def small(arm: str, **changes: object) -> Study:
    """The default study with one arm, few hospitals and few rounds."""
    study = studies.find("default")
    chosen = study.arm(arm)
    training = chosen.training.model_copy(update={"rounds": 2, **changes})
    data = study.data.model_copy(update={"sites": 9})
    return study.model_copy(
        update={"arms": (chosen.model_copy(update={"training": training}),), "data": data}
    )


def train(
    engine: LoopbackEngine | BatchedEngine, study: Study, folder: RunDir, *, lean: bool = False
) -> Outcome:
    loaded = federation.load(study, None)
    sites = dict(loaded.sites)
    if lean:
        name = sorted(sites)[3]
        records = sites[name].records
        first = {column: cells[:1] for column, cells in records.cells.items()}
        sites[name] = type(sites[name])(name, type(records)(records.where, first))
    plan, outcome = study.plan(study.arms[0], 5), Outcome()
    job = Job("t", plan, study.arms[0].training, folder, sites=len(sites), calibrate=plan)
    engine(job, outcome, sites)
    return outcome


def relative(left: Params, right: Params) -> float:
    return norm(map_params(lambda a, b: a - b, left, right)) / norm(right)


@pytest.mark.parametrize("arm", ["maml", "protonet", "fedavg"])
@pytest.mark.parametrize("cohort_size", [0, 4])
def test_batched_equals_loopback(
    arm: str, cohort_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = small(arm, cohort_size=cohort_size)
    folders = [RunDir.create(tmp_path_factory.mktemp("run") / "r", study.to_toml()) for _ in range(2)]
    loopback = train(LoopbackEngine(), study, folders[0])
    batched = train(BatchedEngine(), study, folders[1])
    assert loopback.state is not None
    assert batched.state is not None
    assert relative(batched.state.params, loopback.state.params) < 1e-5
    assert batched.temperatures == loopback.temperatures
    assert batched.introductions.keys() == loopback.introductions.keys()
    one, other = (folder.rounds() for folder in folders)
    for left, right in zip(one, other, strict=True):
        assert (left.accepted, left.refused, left.cohort) == (right.accepted, right.refused, right.cohort)
        assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-5)
        assert left.metrics == pytest.approx(right.metrics, rel=1e-5)


@pytest.mark.parametrize("arm", ["maml", "protonet", "fedavg"])
def test_one_round_s_meta_gradient_is_equal_to_rounding(
    arm: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    study = small(arm, rounds=1)
    gradients = []
    for engine in (LoopbackEngine(), BatchedEngine()):
        folder = RunDir.create(tmp_path_factory.mktemp("run") / "r", study.to_toml())
        plain = study.arms[0].training.outer.model_copy(update={"name": "sgd", "rate": 1.0})
        arms = study.arms[0].model_copy(
            update={"training": study.arms[0].training.model_copy(update={"outer": plain})}
        )
        outcome = train(engine, study.model_copy(update={"arms": (arms,)}), folder)
        assert outcome.state is not None
        start = study.plan(study.arms[0], 5).learner()
        from clinimeta.server.training import begin

        before = begin(start, plain.build(), 5).params
        gradients.append(map_params(lambda a, b: a - b, before, outcome.state.params))
    assert relative(gradients[1], gradients[0]) < 1e-6
