"""Part of the meta-parameters learns, over messages as in one batch; the rest stays to the bit."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from marks import rest_slow

from clinimeta.client.meta_gradients import meta_gradients
from clinimeta.client.site import Site
from clinimeta.common.errors import StudyError
from clinimeta.common.params import digest, map_params, norm, shapes
from clinimeta.common.plan import Plan
from clinimeta.common.records import MetaGradient, MetaGradientOrder
from clinimeta.common.study import Arm, Study, read_study
from clinimeta.common.typing import Params
from clinimeta.server.aggregation import check
from clinimeta.server.app import Job, Outcome, limits
from clinimeta.server.store import RunDir
from clinimeta.server.training import begin
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine, Together
from clinimeta.simulations.loopback import LoopbackEngine

HEAD = {"trainable": "head"}
LOW_RANK = {"trainable": "low_rank", "rank": 4}
PARTS = pytest.mark.parametrize("part", [HEAD, LOW_RANK], ids=["head", "low rank"])
ARMS = pytest.mark.parametrize("arm", rest_slow(["maml", "protonet", "fedavg"], ["maml"]))


def small(arm: str, **changes: object) -> tuple[Study, Arm]:
    """The default study with six hospitals, and one of its arms with few rounds."""
    study = studies.find("default")
    chosen = study.arm(arm)
    training = chosen.training.model_copy(update={"rounds": 2, "cohort_size": 0, **changes})
    study = study.model_copy(update={"data": study.data.model_copy(update={"sites": 6})})
    return study, chosen.model_copy(update={"training": training})


@cache
def _sites() -> Mapping[str, Site]:
    return federation.load(small("maml")[0], None).sites


def sites_of(study: Study) -> Mapping[str, Site]:
    """Six hospitals, the same for all arms."""
    assert study.data == small("maml")[0].data
    return _sites()


def job_of(study: Study, arm: Arm, folder: Path) -> Job:
    run_dir = RunDir.open(folder) if folder.exists() else RunDir.create(folder, "")
    return Job("t", study.plan(arm, 5), arm.training, run_dir, sites=6)


def train(engine: LoopbackEngine | BatchedEngine, study: Study, arm: Arm, folder: Path) -> Params:
    outcome = Outcome()
    engine(job_of(study, arm, folder), outcome, sites_of(study))
    assert outcome.state is not None
    return outcome.state.params


def before(study: Study, arm: Arm) -> Params:
    return begin(study.plan(arm, 5).learner(), arm.training.outer.build(), 5).params


def answers(plan: Plan, study: Study, params: Params) -> dict[str, MetaGradient]:
    order = MetaGradientOrder("", "t", 1, plan.canonical(), params)
    tables = {name: site.table(plan.table) for name, site in sites_of(study).items()}
    replies = meta_gradients(plan, order, tables)
    return {site: reply for site, reply in replies.items() if isinstance(reply, MetaGradient)}


def relative(left: Params, right: Params) -> float:
    return norm(map_params(lambda a, b: a - b, left, right)) / norm(right)


@PARTS
@ARMS
def test_batched_equals_loopback(part: dict[str, object], arm: str, tmp_path: Path) -> None:
    study, chosen = small(arm, **part)
    start = before(study, chosen)
    loopback = train(LoopbackEngine(), study, chosen, tmp_path / "a")
    together = train(BatchedEngine(), study, chosen, tmp_path / "b")
    assert relative(loopback, start) > 1e-4
    assert relative(together, loopback) < 1e-5


@ARMS
def test_only_the_head_moves(arm: str, tmp_path: Path) -> None:
    study, chosen = small(arm, **HEAD)
    start, end = before(study, chosen), train(LoopbackEngine(), study, chosen, tmp_path / "a")
    head = study.plan(chosen, 5).subspace().names
    assert head is not None
    for name in start:
        assert torch.equal(start[name], end[name]) == (name not in head)


@ARMS
def test_weights_move_in_their_low_rank_only(arm: str, tmp_path: Path) -> None:
    study, chosen = small(arm, **LOW_RANK)
    start, end = before(study, chosen), train(LoopbackEngine(), study, chosen, tmp_path / "a")
    bases = study.plan(chosen, 5).subspace().bases
    assert bases
    for name, base in bases.items():
        change = (end[name] - start[name]).double()
        assert float(change.norm()) > 0
        assert float((change - base @ (base.T @ change)).norm()) < 1e-5 * float(change.norm())


@PARTS
@pytest.mark.parametrize("arm", ["maml", "protonet"])
def test_a_site_sends_its_projected_meta_gradient(part: dict[str, object], arm: str) -> None:
    (study, plain), (_, chosen) = small(arm), small(arm, **part)
    plan, start = study.plan(chosen, 5), before(study, chosen)
    full, sent = answers(study.plan(plain, 5), study, start), answers(plan, study, start)
    assert full.keys() == sent.keys()
    for site in full:
        expected = plan.subspace().project(full[site].gradient)
        assert shapes(sent[site].gradient) == shapes(expected) == shapes(plan.subspace().at(start))
        assert relative(sent[site].gradient, expected) < 1e-5
        if part is HEAD:
            assert digest(sent[site].gradient) == digest(expected)


@PARTS
def test_a_full_meta_gradient_is_refused(part: dict[str, object], tmp_path: Path) -> None:
    (study, plain), (_, chosen) = small("maml"), small("maml", **part)
    job, start = job_of(study, chosen, tmp_path / "a"), before(study, chosen)
    order = MetaGradientOrder("", "t", 1, job.plan.canonical(), start)
    like = job.plan.subspace().at(start)
    for reply in answers(study.plan(plain, 5), study, start).values():
        assert check(reply, reply.site, order, limits(job), like) == "wrong names or shapes"
    for reply in answers(job.plan, study, start).values():
        assert check(reply, reply.site, order, limits(job), like) is None


@PARTS
def test_a_resumed_training_ends_the_same(part: dict[str, object], tmp_path: Path) -> None:
    study, long = small("maml", rounds=3, **part)
    short = long.model_copy(update={"training": long.training.model_copy(update={"rounds": 1})})
    whole = train(BatchedEngine(), study, long, tmp_path / "whole")
    train(BatchedEngine(), study, short, tmp_path / "halves")
    assert digest(train(BatchedEngine(), study, long, tmp_path / "halves")) == digest(whole)


@PARTS
@pytest.mark.parametrize("arm", rest_slow(["maml", "protonet"], ["protonet"]))
def test_training_a_part_helps(part: dict[str, object], arm: str, tmp_path: Path) -> None:
    study, chosen = small(arm, rounds=25, **part)
    job = job_of(study, chosen, tmp_path / "a")
    together = Together(job, sites_of(study))
    outcome = Outcome()
    BatchedEngine()(job, outcome, sites_of(study))
    assert outcome.state is not None

    def loss(params: Params) -> float:
        rounds = [together.meta_gradient(number, params, together.sites) for number in range(1000, 1004)]
        return sum(r.aggregate.metrics["query_loss"].value for r in rounds) / len(rounds)

    assert loss(outcome.state.params) < loss(before(study, chosen)) - 0.01


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ('{ trainable = "low_rank" }', "a rank over 0"),
        ("{ rank = 3 }", "a rank over 0"),
        ('{ trainable = "body" }', "'all', 'head' or 'low_rank'"),
    ],
)
def test_what_makes_no_sense_is_named(training: str, expected: str) -> None:
    with pytest.raises(StudyError) as refused:
        read_study(STUDY.replace("{ rounds = 1 }", training), "mine.toml")
    assert expected in str(refused.value)


def test_a_plan_says_why_it_cannot_promise_anything() -> None:
    study, arm = small("fedavg")
    (reasons, table) = study.plan(arm, 0).unpromised(), study.table.model_copy(update={"normalise": "site"})
    assert [r.split()[0] for r in reasons] == ["tasks_a_patient", "local_meta_steps", "weighting"]
    plan = study.plan(arm, 0).model_copy(update={"table": table})
    assert plan.unpromised()[-1].startswith("normalise")
    study, arm = small("maml")
    bounded = arm.model_copy(update={"episodes": arm.episodes.model_copy(update={"tasks_a_patient": 1})})
    assert study.plan(bounded, 0).unpromised() == ()


def test_a_bounded_patient_and_several_local_steps_do_not_go_together() -> None:
    text = STUDY.replace("{ rounds = 1 }", "{ local_meta_steps = 2 }").replace(
        "shots = [1]", "shots = [1], tasks_a_patient = 1"
    )
    with pytest.raises(StudyError, match="tasks_a_patient"):
        read_study(text, "mine.toml")


def test_bounded_patients_train_the_same_in_both_engines(tmp_path: Path) -> None:
    study, arm = small("maml")
    arm = arm.model_copy(update={"episodes": arm.episodes.model_copy(update={"tasks_a_patient": 1})})
    loopback = train(LoopbackEngine(), study, arm, tmp_path / "a")
    assert relative(train(BatchedEngine(), study, arm, tmp_path / "b"), loopback) < 1e-5


STUDY = """
name = "small"
primary = "maml"
data = { name = "csv_folder" }
model = { name = "mlp", hidden = [4] }
episodes = { shots = [1] }
training = { rounds = 1 }
table = { target = "sick", classes = ["no", "yes"], columns = [{ name = "age" }] }
arms = [{ name = "maml", algorithm = { name = "maml" } }]
"""
