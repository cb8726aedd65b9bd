from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from marks import rest_slow

from clinimeta.client.site import Site
from clinimeta.common.errors import QuorumError, StudyError
from clinimeta.common.params import map_params, norm
from clinimeta.common.rng import generator
from clinimeta.common.safeguards import AggregationSettings
from clinimeta.common.study import Arm, Study
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.server.training import begin
from clinimeta.simulations import batched, federation, studies
from clinimeta.simulations.batched import BatchedEngine, Together
from clinimeta.simulations.loopback import LoopbackEngine

ARMS = ("maml", "protonet", "fedavg")
MEDIAN = AggregationSettings(rule="median")
RULES = (
    MEDIAN,
    AggregationSettings(rule="norm_clipped_mean"),
    AggregationSettings(rule="trimmed_mean", trim=0.2),
    AggregationSettings(rule="multi_krum", bad_sites=3),
)


@pytest.fixture
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    return (RunDir.create(tmp_path_factory.mktemp("run") / "r", "") for _ in range(9))


def small(arm: str, **changes: object) -> tuple[Study, Arm]:
    """The default study with nine hospitals, and one of its arms with few rounds."""
    study = studies.find("default")
    chosen = study.arm(arm)
    training = chosen.training.model_copy(update={"rounds": 2, **changes})
    study = study.model_copy(update={"data": study.data.model_copy(update={"sites": 9})})
    return study, chosen.model_copy(update={"training": training})


def job_of(study: Study, arm: Arm, folder: RunDir) -> Job:
    plan = study.plan(arm, 5)
    return Job("t", plan, arm.training, folder, sites=9, calibrate=plan)


def train(engine: LoopbackEngine | BatchedEngine, study: Study, arm: Arm, folder: RunDir) -> Outcome:
    outcome = Outcome()
    engine(job_of(study, arm, folder), outcome, federation.load(study, None).sites)
    return outcome


def reached(outcome: Outcome) -> Params:
    assert outcome.state is not None
    return outcome.state.params


def relative(left: Params, right: Params) -> float:
    return norm(map_params(lambda a, b: a - b, left, right)) / norm(right)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("cohort_size", rest_slow([0, 4], [4]))
def test_batched_equals_loopback(arm: str, cohort_size: int, folders: Iterator[RunDir]) -> None:
    study, chosen = small(arm, cohort_size=cohort_size)
    one, other = next(folders), next(folders)
    loopback = train(LoopbackEngine(), study, chosen, one)
    together = train(BatchedEngine(), study, chosen, other)
    assert relative(reached(together), reached(loopback)) < 1e-5
    assert together.temperatures == loopback.temperatures
    assert together.introductions.keys() == loopback.introductions.keys()
    for left, right in zip(one.rounds(), other.rounds(), strict=True):
        assert (left.accepted, left.refused, left.cohort) == (right.accepted, right.refused, right.cohort)
        assert left.gradient_norm == pytest.approx(right.gradient_norm, rel=1e-5)
        assert left.metrics == pytest.approx(right.metrics, rel=1e-5)


@pytest.mark.parametrize(
    "rule",
    rest_slow(RULES, [MEDIAN]),
    ids=lambda rule: rule.rule,
)
def test_batched_equals_loopback_under_a_robust_rule(
    rule: AggregationSettings, folders: Iterator[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "CHUNK_TASKS", 8)
    study, chosen = small("maml", aggregation=rule)
    one, other, plain = next(folders), next(folders), next(folders)
    loopback = reached(train(LoopbackEngine(), study, chosen, one))
    assert relative(reached(train(BatchedEngine(), study, chosen, other)), loopback) < 1e-5
    mean = reached(train(BatchedEngine(), study, small("maml")[1], plain))
    assert relative(mean, loopback) > 1e-4
    for left, right in zip(one.rounds(), other.rounds(), strict=True):
        assert (left.accepted, left.refused) == (right.accepted, right.refused)
        assert left.metrics == pytest.approx(right.metrics, rel=1e-5)


@pytest.mark.parametrize("engine", [LoopbackEngine(), BatchedEngine()], ids=lambda e: type(e).__name__)
def test_too_few_hospitals_for_a_rule_are_an_error_before_anybody_is_asked(
    engine: LoopbackEngine | BatchedEngine, folders: Iterator[RunDir]
) -> None:
    study, chosen = small("maml", aggregation=AggregationSettings(rule="multi_krum", bad_sites=4))
    with pytest.raises(StudyError, match="cannot work with so few hospitals") as caught:
        train(engine, study, chosen, next(folders))
    assert (caught.value.found, caught.value.expected) == ("9 in a round", "11 or more")


@pytest.mark.parametrize("arm", ARMS)
def test_a_round_s_meta_gradient_is_equal_to_rounding(arm: str, folders: Iterator[RunDir]) -> None:
    study, chosen = small(arm, rounds=1)
    plain = chosen.training.outer.model_copy(update={"name": "sgd", "rate": 1.0})
    training = chosen.training.model_copy(update={"outer": plain})
    chosen = chosen.model_copy(update={"training": training})
    before = begin(study.plan(chosen, 5).learner(), plain.build(), 5).params
    engines = (LoopbackEngine(), BatchedEngine())
    steps = [
        map_params(lambda a, b: a - b, before, reached(train(engine, study, chosen, next(folders))))
        for engine in engines
    ]
    assert relative(steps[1], steps[0]) < 1e-6


def test_the_size_of_a_chunk_changes_rounding_only(
    folders: Iterator[RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, chosen = small("maml")
    whole = reached(train(BatchedEngine(), study, chosen, next(folders)))
    monkeypatch.setattr(batched, "CHUNK_TASKS", 8)
    assert relative(reached(train(BatchedEngine(), study, chosen, next(folders))), whole) < 1e-5


def hospitals(study: Study, *, without_rows: int = 0) -> dict[str, Site]:
    """The study's, the first few left with a single row."""
    sites = dict(federation.load(study, None).sites)
    for name in sorted(sites)[:without_rows]:
        records = sites[name].records
        first = {column: cells[:1] for column, cells in records.cells.items()}
        sites[name] = replace(sites[name], records=replace(records, cells=first))
    return sites


def ask(job: Job, sites: Mapping[str, Site]) -> tuple[Together, Params]:
    return Together(job, sites), job.plan.learner().init(generator("x"))


def test_who_cannot_answer_is_named_and_the_others_count(folders: Iterator[RunDir]) -> None:
    study, arm = small("maml")
    together, params = ask(job_of(study, arm, next(folders)), hospitals(study, without_rows=2))
    found = together.meta_gradient(1, params, together.sites).aggregate
    assert found.refused == dict.fromkeys(together.sites[:2], "refused: too_few_rows")
    assert found.accepted == tuple(together.sites[2:])


def test_too_few_answers_end_the_round(folders: Iterator[RunDir]) -> None:
    study, arm = small("maml")
    together, params = ask(job_of(study, arm, next(folders)), hospitals(study, without_rows=6))
    with pytest.raises(QuorumError, match="too_few_rows"):
        together.meta_gradient(1, params, together.sites)


def test_too_few_answers_for_a_rule_end_the_round(folders: Iterator[RunDir]) -> None:
    study, arm = small("maml", aggregation=AggregationSettings(rule="multi_krum", bad_sites=2))
    together, params = ask(job_of(study, arm, next(folders)), hospitals(study, without_rows=3))
    with pytest.raises(QuorumError, match="6 usable answers, 7 needed"):
        together.meta_gradient(1, params, together.sites)


def test_an_outsized_answer_is_left_out_of_the_sum(folders: Iterator[RunDir]) -> None:
    study, arm = small("maml", max_norm_ratio=1.2)
    together, params = ask(job_of(study, arm, next(folders)), hospitals(study))
    found = together.meta_gradient(1, params, together.sites).aggregate
    assert found.refused
    assert all("times the cohort's median" in why for why in found.refused.values())
    rest = together.meta_gradient(1, params, found.accepted)
    without, _ = ask(replace(job_of(study, small("maml")[1], next(folders))), hospitals(study))
    alone = without.meta_gradient(1, params, found.accepted).aggregate
    assert found.gradient is not None
    assert alone.gradient is not None
    assert rest.silent == ()
    assert all(torch.equal(found.gradient[n], alone.gradient[n]) for n in params)
    assert found.weight == alone.weight
