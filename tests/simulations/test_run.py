"""A study from request to run directory: the same bits every time, whatever failed or stopped on the way."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import tomli_w
import torch

from clinimeta.client.local import adapt
from clinimeta.client.site import Site
from clinimeta.client.sources.csv_files import read_csv
from clinimeta.common.errors import ClinimetaError, DataError, QuorumError, RunDirError, StudyError, UserError
from clinimeta.common.params import digest
from clinimeta.common.rng import generator
from clinimeta.common.study import Study, read_study
from clinimeta.common.tasks.table import Records
from clinimeta.common.trained_model import read_model
from clinimeta.server import store
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary, begin
from clinimeta.simulations.failures import Fault, FaultPlan
from clinimeta.simulations.federation import Federation, encode_site
from clinimeta.simulations.loopback import LoopbackEngine
from clinimeta.simulations.results import Answer, Estimate, Results
from clinimeta.simulations.run import Engine, Run
from clinimeta.simulations.session import Request, simulate

SITES = ("bern", "graz", "lund", "oulu", "pisa", "ulm")
FINE_TUNE = {"name": "fine_tune", "steps": 0}
STUDY: dict[str, Any] = {
    "name": "small",
    "primary": "maml",
    "data": {"name": "csv_folder"},
    "table": {
        "target": "sick",
        "classes": ["no", "yes"],
        "columns": [{"name": "age", "center": 50.0, "scale": 10.0}, {"name": "sex", "kind": "binary"}],
    },
    "model": {"name": "mlp", "hidden": [4]},
    "episodes": {"shots": [1, 2], "query": 3, "tasks": 2},
    "training": {"rounds": 2, "outer": {"name": "adam", "rate": 0.05}},
    "arms": [
        {"name": "maml", "label": "MAML", "algorithm": {"name": "maml", "inner_steps": 1}},
        {
            "name": "fedavg",
            "algorithm": FINE_TUNE,
            "episodes": {"draw": "rows", "shots": [0], "tasks": 1},
            "training": {"rounds": 1, "local_meta_steps": 2, "weighting": "rows"},
        },
        {"name": "tuned", "trained_by": "fedavg", "algorithm": {**FINE_TUNE, "steps": 2}},
        {"name": "local", "algorithm": {**FINE_TUNE, "steps": 2}, "training": {"rounds": 0}},
    ],
    "evaluations": [
        {
            "name": "new",
            "title": "New hospitals",
            "split": "unseen_sites",
            "sites": 2,
            "shots": [1, 2],
            "repeats": 2,
            "references": ["pooled_logistic_regression"],
            "curve_every": 1,
            "curve_shots": 1,
            "bootstrap": 100,
        }
    ],
    "questions": [{"evaluation": "new", "arm": "maml", "against": "local", "shots": 1}],
}
TINY = {"arms": STUDY["arms"][:1], "evaluations": [], "questions": []}
"""One arm and nothing to judge: what a test of the training needs."""


def study(**changes: Any) -> Study:
    return read_study(tomli_w.dumps({**STUDY, **changes}), "study.toml")


def records(name: str, rows: int = 14) -> Records:
    rng = generator("run", name)
    age = (50 + 10 * torch.randn(rows, generator=rng)).round().int().tolist()
    return Records(
        f"{name}.csv",
        {
            "age": [str(a) for a in age],
            "sex": [str(i % 2) for i in range(rows)],
            "sick": ["yes" if (a > 50) != (i % 5 == 0) else "no" for i, a in enumerate(age)],
        },
    )


def federation(chosen: Study, *, test: Mapping[str, tuple[bool, ...]] | None = None) -> Federation:
    sites = {name: Site(name, records(name), (test or {}).get(name)) for name in SITES}
    return Federation(sites, {n: encode_site(chosen.table, s) for n, s in sites.items()}, {}, False)


@dataclass
class Watcher:
    """Remembers what a run told its observer."""

    trainings: list[tuple[str, int, int]] = field(default_factory=list)
    rounds: list[RoundSummary] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)

    def training(self, title: str, rounds: int, done: int) -> None:
        self.trainings.append((title, rounds, done))

    def round(self, summary: RoundSummary) -> None:
        self.rounds.append(summary)

    def judging(self, title: str) -> None:
        self.judged.append(title)


@dataclass
class Done:
    """A run that is over."""

    run: Run
    results: Results
    watcher: Watcher

    @property
    def path(self) -> Path:
        return self.run.run_dir.path

    def manifest(self) -> dict[str, Any]:
        return self.run.run_dir.manifest()


def execute(
    path: Path,
    chosen: Study,
    *,
    engine: Engine | None = None,
    hospitals: Federation | None = None,
    resume: bool = False,
) -> Done:
    run_dir = RunDir.open(path) if resume else RunDir.create(path, chosen.to_toml())
    watcher = Watcher()
    run = Run(
        chosen,
        run_dir,
        hospitals or federation(chosen),
        engine or LoopbackEngine(encode=False),
        watcher,
        command="clinimeta simulate",
    )
    return Done(run, run.execute(), watcher)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The whole study, run once."""
    return execute(tmp_path_factory.mktemp("run") / "out", study())


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def measured(results: Results) -> tuple[Any, ...]:
    """Everything but times."""
    rounds = [{**asdict(summary), "seconds": 0} for summary in results.rounds]
    return results.scores, results.answers, rounds, results.unscored


# What is trained and judged


def test_each_arm_that_learns_is_trained_once_a_seed(done: Done) -> None:
    names = [unit.name for unit in done.run.units()]
    assert names == ["seed0-first-4-maml", "seed0-first-4-fedavg", "seed0-first-4-local"]
    assert set(done.manifest()["trainings"]) == set(names)
    two = Run(study(seeds=[0, 3]), done.run.run_dir, done.run.federation, done.run.engine, done.watcher)
    assert len(two.units()) == 6


def test_only_those_who_train_are_asked(done: Done) -> None:
    assert {summary.cohort for summary in done.results.rounds} == {4}
    assert all(summary.accepted == 4 for summary in done.results.rounds)
    assert [(s.training, s.round) for s in done.results.rounds] == [
        ("seed0-first-4-maml", 1),
        ("seed0-first-4-maml", 2),
        ("seed0-first-4-fedavg", 1),
    ]


def test_an_arm_without_rounds_keeps_its_fresh_weights(done: Done) -> None:
    plan = done.run.study.plan(done.run.study.arm("local"), 0)
    fresh = begin(plan.learner(), done.run.study.arm("local").training.outer.build(), 0).params
    assert done.manifest()["trainings"]["seed0-first-4-local"] == digest(fresh)
    assert done.manifest()["trainings"]["seed0-first-4-maml"] != digest(fresh)


def test_every_arm_and_reference_is_scored_at_every_size(done: Done) -> None:
    arms = ["maml", "fedavg", "tuned", "local", "pooled_logistic_regression"]
    found = {(s.arm, s.shots, s.score): s for s in done.results.scores}
    assert set(found) == {(a, k, s) for a in arms for k in ("1", "2") for s in ("auroc", "accuracy")}
    for score in found.values():
        assert 0 <= score.estimate.low <= score.estimate.value <= score.estimate.high <= 1
        assert (score.evaluation, score.sites, score.site) == ("new", 2, "")


def test_an_arm_that_is_trained_by_another_judges_with_its_weights(done: Done) -> None:
    untuned = study(arms=[*STUDY["arms"][:2], {**STUDY["arms"][2], "algorithm": FINE_TUNE}, STUDY["arms"][3]])
    again = execute(done.path.parent / "untuned", untuned)
    scores = {(s.arm, s.shots, s.score): s.estimate for s in again.results.scores}
    for (arm, shots, score), found in scores.items():
        if arm == "tuned":  # without a step of its own it is its teacher
            assert found == scores["fedavg", shots, score]
    tuned = {(s.arm, s.shots, s.score): s.estimate for s in done.results.scores}
    assert any(tuned["tuned", *rest] != tuned["fedavg", *rest] for _, *rest in tuned)


def test_the_question_is_answered_by_the_paired_difference(done: Done) -> None:
    (answer,) = done.results.answers
    scores = {(s.arm, s.shots, s.score): s.estimate.value for s in done.results.scores}
    assert (answer.arm, answer.against, answer.shots, answer.score) == ("maml", "local", "1", "auroc")
    expected = scores["maml", "1", "auroc"] - scores["local", "1", "auroc"]
    assert answer.difference.value == pytest.approx(expected, abs=1e-12)
    assert answer.difference.low <= expected <= answer.difference.high


def test_each_question_is_answered_by_its_own_evaluation(tmp_path: Path) -> None:
    other = {**STUDY["evaluations"][0], "name": "other", "shots": [2], "references": []}
    questions = [
        {"evaluation": "other", "arm": "local", "against": "local", "shots": 2},
        {"evaluation": "new", "arm": "local", "against": "local", "shots": 1},
    ]
    chosen = study(
        arms=STUDY["arms"][3:],
        primary="local",
        evaluations=[{**STUDY["evaluations"][0], "references": []}, other],
        questions=questions,
    )
    answers = execute(tmp_path / "out", chosen).results.answers
    assert [(a.evaluation, a.shots) for a in answers] == [("new", "1"), ("other", "2")]


def test_an_arm_against_itself_shows_no_difference(tmp_path: Path) -> None:
    questions = [{"evaluation": "new", "arm": "local", "against": "local", "shots": 1}]
    chosen = study(arms=STUDY["arms"][3:], primary="local", questions=questions)
    (answer,) = execute(tmp_path / "out", chosen).results.answers
    assert (answer.difference.low, answer.difference.value, answer.difference.high) == (0.0, 0.0, 0.0)
    assert answer.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
    ],
)
def test_an_answer_is_what_its_interval_allows(low: float, high: float, verdict: str) -> None:
    answer = Answer("e", "a", "b", "5", "auroc", Estimate((low + high) / 2, low, high))
    assert answer.verdict == verdict


def test_the_learning_curve_has_a_point_every_so_many_rounds_and_at_the_end(
    tmp_path: Path, done: Done
) -> None:
    for summary in done.results.rounds:
        assert set(summary.curve) == ({"maml"} if summary.arm == "maml" else {"fedavg", "tuned"})
        assert all(0 <= value <= 1 for value in summary.curve.values())
    every_third = {**STUDY["evaluations"][0], "curve_every": 3, "references": []}
    arms = [{**STUDY["arms"][0], "training": {"rounds": 4}}]
    longer = execute(tmp_path / "out", study(arms=arms, evaluations=[every_third], questions=[]))
    assert [s.round for s in longer.results.rounds if s.curve] == [3, 4]


def test_a_curve_is_of_hospitals_that_did_not_train(tmp_path: Path) -> None:
    everyone = {"name": "own", "split": "leave_one_site_out", "shots": [1], "repeats": 1, "bootstrap": 100}
    own = {**everyone, "split": "own_test_rows", "shots": ["all"]}
    chosen = study(arms=STUDY["arms"][:1], evaluations=[STUDY["evaluations"][0], own], questions=[])
    test = {name: tuple(i >= 10 for i in range(14)) for name in SITES}
    finished = execute(tmp_path / "out", chosen, hospitals=federation(chosen, test=test))
    curves = {s.training: s.curve for s in finished.results.rounds}
    assert curves["seed0-first-4-maml"]
    assert curves["seed0-all-maml"] == {}


def test_hospitals_that_are_named_are_scored_one_by_one(tmp_path: Path) -> None:
    own = {
        "name": "own",
        "split": "own_test_rows",
        "shots": ["all"],
        "bootstrap": 100,
        "scores": ["accuracy"],
    }
    chosen = study(arms=STUDY["arms"][3:], primary="local", evaluations=[own], questions=[])
    test = {name: tuple(i >= 10 for i in range(14)) for name in SITES if name != "ulm"}
    finished = execute(tmp_path / "out", chosen, hospitals=federation(chosen, test=test))
    by_site = {s.site: s for s in finished.results.scores}
    assert set(by_site) == {"", *SITES} - {"ulm"}
    assert by_site[""].sites == 5
    each = [s.estimate.value for site, s in by_site.items() if site]
    assert by_site[""].estimate.value == pytest.approx(sum(each) / 5)
    (missing,) = finished.results.unscored.values()
    assert missing == ("ulm",)


def test_pooled_hospitals_are_scored_together_only(tmp_path: Path) -> None:
    folds = {
        "name": "folds",
        "split": "site_folds",
        "folds": 2,
        "shots": [0, "half"],
        "draw": "rows",
        "repeats": 1,
        "pooled": True,
        "scores": ["auroc"],
        "bootstrap": 100,
    }
    chosen = study(arms=STUDY["arms"][3:], primary="local", evaluations=[folds], questions=[])
    finished = execute(tmp_path / "out", chosen)
    assert [(s.shots, s.sites, s.site) for s in finished.results.scores] == [("0", 6, ""), ("half", 6, "")]


def test_hospitals_that_are_too_small_are_named_with_the_size(tmp_path: Path) -> None:
    large = {**STUDY["evaluations"][0], "shots": [1, 500], "references": []}
    chosen = study(arms=STUDY["arms"][3:], primary="local", evaluations=[large], questions=[])
    finished = execute(tmp_path / "out", chosen)
    ((why, names),) = finished.results.unscored.items()
    assert "New hospitals" in why
    assert "500" in why
    assert names == ("pisa", "ulm")
    (nothing,) = [s for s in finished.results.scores if s.shots == "500" and s.score == "auroc"]
    assert math.isnan(nothing.estimate.value)
    assert nothing.sites == 0


def test_the_observer_hears_of_everything_in_order(done: Done) -> None:
    assert done.watcher.trainings == [
        ("MAML · seed0-first-4-maml", 2, 0),
        ("fedavg · seed0-first-4-fedavg", 1, 0),
    ]
    assert tuple(done.watcher.rounds) == done.results.rounds
    assert done.watcher.judged == ["New hospitals"]


# What is deployed


def test_the_model_is_the_primary_arms_and_adapts(done: Done) -> None:
    model = read_model(done.path)
    assert model.plan == done.run.study.plan(done.run.study.arm("maml"), 0)
    assert digest(model.params) == done.manifest()["trainings"]["seed0-first-4-maml"]
    assert set(model.temperatures) == {1, 2}
    assert done.manifest()["model"] == {
        "arm": "maml",
        "seed": 0,
        "trained_on": "first-4",
        "temperatures": {str(shots): t for shots, t in model.temperatures.items()},
    }
    adapted = adapt(model, records("here"), records("there"))
    assert torch.allclose(adapted.probabilities.sum(dim=1), torch.ones(14, dtype=torch.float64))


def test_a_primary_arm_that_is_trained_by_another_is_calibrated_as_itself(tmp_path: Path) -> None:
    finished = execute(tmp_path / "out", study(primary="tuned", evaluations=[], questions=[]))
    model = read_model(finished.path)
    assert model.plan.arm == "tuned"
    assert digest(model.params) == finished.manifest()["trainings"]["seed0-all-fedavg"]
    assert set(model.temperatures) == set(model.plan.episodes.shots) == {1, 2}


def test_a_primary_arm_that_never_learned_is_its_fresh_weights(tmp_path: Path) -> None:
    finished = execute(tmp_path / "out", study(primary="local", evaluations=[], questions=[]))
    assert finished.results.rounds == ()
    assert digest(read_model(finished.path).params) == finished.manifest()["trainings"]["seed0-all-local"]


# What is written


def test_the_manifest_says_what_the_result_depends_on(done: Done) -> None:
    manifest = done.manifest()
    assert manifest["status"] == "finished"
    assert manifest["seeds"] == [0]
    assert manifest["command"] == done.results.command == "clinimeta simulate"
    assert manifest["site_rows"] == dict.fromkeys(SITES, "10-19")  # a range: there are 14
    assert {"python", "torch", "flwr", "clinimeta"} <= set(manifest["versions"])


def test_the_results_on_disk_are_the_results(done: Done) -> None:
    written = json.loads((done.path / "results.json").read_text())
    assert written == json.loads(done.results.to_json())
    assert [s["estimate"]["value"] for s in written["scores"]] == [
        s.estimate.value for s in done.results.scores
    ]
    assert done.results.arms["maml"] == "MAML"
    assert done.results.arms["pooled_logistic_regression"] == "pooled logistic regression"
    assert {"MAML", "fedavg", "local", "evaluation", "this call"} == set(done.results.seconds)


def test_a_score_that_is_not_known_is_null_in_json(done: Done) -> None:
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    results = replace(done.results, answers=(Answer("e", "a", "b", "5", "auroc", nothing),))
    text = results.to_json()
    assert "NaN" not in text
    assert json.loads(text)["answers"][0]["difference"] == {"value": None, "low": None, "high": None}


def test_the_rounds_on_disk_are_the_rounds(done: Done) -> None:
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["training"], line["round"]) for line in lines] == [
        (s.training, s.round) for s in done.results.rounds
    ]
    assert all(line["bytes_down"] > 0 and line["bytes_up"] > 0 for line in lines)


# The same bits


def test_the_same_seed_gives_the_same_bits(tmp_path: Path, done: Done) -> None:
    again = execute(tmp_path / "out", study())
    assert again.manifest()["trainings"] == done.manifest()["trainings"]
    assert (again.path / "model.safetensors").read_bytes() == (done.path / "model.safetensors").read_bytes()
    assert measured(again.results) == measured(done.results)


def test_another_seed_gives_others(tmp_path: Path) -> None:
    one, other = (execute(tmp_path / str(s), study(**TINY, seeds=[s])) for s in (0, 1))
    assert {*one.manifest()["trainings"].values()}.isdisjoint(other.manifest()["trainings"].values())


def test_the_wire_encoding_changes_no_bit(tmp_path: Path) -> None:
    plain, encoded = (
        execute(tmp_path / str(encode), study(**TINY), engine=LoopbackEngine(encode=encode))
        for encode in (False, True)
    )
    assert plain.manifest()["trainings"] == encoded.manifest()["trainings"]
    assert measured(plain.results) == measured(encoded.results)
    model = "model.safetensors"
    assert (plain.path / model).read_bytes() == (encoded.path / model).read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    finished = execute(tmp_path / "out", study())
    names = ("model.safetensors", "metrics.jsonl", "study.toml", "manifest.json")
    before = {name: (finished.path / name).read_bytes() for name in names}
    again = execute(tmp_path / "out", study(), resume=True)
    assert {name: (again.path / name).read_bytes() for name in names} == before
    assert measured(again.results) == measured(finished.results)
    assert again.watcher.rounds == []


@dataclass
class StopsAfter:
    """An engine whose process is stopped after so many rounds in all."""

    left: int
    inner: Engine = field(default_factory=lambda: LoopbackEngine(encode=False))

    def __call__(self, job: Job, outcome: Outcome, sites: Mapping[str, Site]) -> None:
        def stop(summary: RoundSummary) -> None:
            job.notify(summary)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        self.inner(replace(job, notify=stop), outcome, sites)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_stopped_run_goes_on_to_the_same_bits(rounds: int, tmp_path: Path, done: Done) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path / "out", study(), engine=StopsAfter(rounds))
    assert RunDir.open(tmp_path / "out").manifest()["status"] == "running"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    again = execute(tmp_path / "out", study(), resume=True)
    assert again.manifest()["trainings"] == done.manifest()["trainings"]
    assert (again.path / "model.safetensors").read_bytes() == (done.path / "model.safetensors").read_bytes()
    assert measured(again.results) == measured(done.results)
    assert len(again.watcher.rounds) == 3 - rounds


# What goes wrong


Faults = Mapping[tuple[str, int], Fault]
"""(site, number of the order) -> what happens to it; order 1 is the introduction."""


def with_faults(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    monkeypatch.setattr(FaultPlan, "fault", lambda _self, site, order: faults.get((site, order)))


def test_every_fault_is_named_in_the_round_that_it_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {
        ("oulu", 2): Fault.SILENT,
        ("ulm", 2): Fault.ERROR,
        ("lund", 3): Fault.SLOW,
        ("pisa", 3): Fault.CORRUPT,
    }
    with_faults(monkeypatch, faults)
    finished = execute(tmp_path / "out", study(**TINY, training={"rounds": 3, "attempts": 1}))
    first, second, third = finished.results.rounds
    assert (first.accepted, first.silent, set(first.refused)) == (4, ("oulu",), {"ulm"})
    assert first.refused["ulm"].startswith("Flower error")
    assert (second.accepted, second.silent, set(second.refused)) == (4, ("lund",), {"pisa"})
    assert second.refused["pisa"]
    assert (third.accepted, third.silent, third.refused) == (6, (), {})


def test_a_hospital_that_never_introduced_itself_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_faults(monkeypatch, {("ulm", 1): Fault.SILENT})
    finished = execute(tmp_path / "out", study(**TINY))
    assert [summary.accepted for summary in finished.results.rounds] == [5, 5]
    said = {name: value for name, value in asdict(finished.results).items() if name != "site_rows"}
    assert "ulm" in json.dumps(said, default=str)


def test_without_a_quorum_there_is_no_model(tmp_path: Path) -> None:
    engine = LoopbackEngine(encode=False, faults=study(faults={"silent": 1.0}).faults)
    with pytest.raises(QuorumError):
        execute(tmp_path / "out", study(**TINY), engine=engine)
    assert RunDir.open(tmp_path / "out").manifest()["status"] == "running"
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_checkpoint_of_another_study_is_not_gone_on_with(tmp_path: Path) -> None:
    execute(tmp_path / "out", study(**TINY))
    other = study(**TINY, model={"name": "mlp", "hidden": [5]})
    with pytest.raises(RunDirError, match="belongs to another plan"):
        execute(tmp_path / "out", other, resume=True)


def test_an_unknown_reference_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no reference 'pooled'"):
        execute(tmp_path / "out", study(evaluations=[{**STUDY["evaluations"][0], "references": ["pooled"]}]))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


# A whole session, as the command line asks for it


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six hospitals' tables, and a small study file beside it; the current folder is empty."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in SITES:
        rows = records(name).cells
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([list(rows), *zip(*rows.values(), strict=True)])
    (tmp_path / "mine.toml").write_text(study(**TINY).to_toml())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def whole_study(beside: Path, **changes: Any) -> None:
    """The study with all its arms and its evaluation instead of the small one."""
    (beside.parent / "mine.toml").write_text(tomli_w.dumps({**STUDY, **changes}))


def request(data: Path, **values: Any) -> Request:
    made = {"study": str(data.parent / "mine.toml"), "data": data, "given": True, "encode": False}
    return Request(**{**made, **values})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_directory_holds_what_is_promised_and_nothing_else(data: Path) -> None:
    whole_study(data)
    results = simulate(request(data, argv=("simulate", "my study.toml")))
    checkpoints = {"maml/round-00001", "maml/round-00002", "fedavg/round-00001"}
    assert files(Path("runs/small")) == {
        "study.toml",
        "manifest.json",
        "metrics.jsonl",
        "model.safetensors",
        "results.json",
        "report.html",
        "events.jsonl",
        *(f"trainings/seed0-first-4-{name}.safetensors" for name in checkpoints),
    }
    assert read_study(Path("runs/small/study.toml").read_text(), "study.toml") == study()
    assert results.command == "clinimeta simulate 'my study.toml'"
    assert sorted(json.loads(Path("runs/small/manifest.json").read_text())["data_sha256"]) == [
        f"{name}.csv" for name in SITES
    ]


def test_every_file_of_a_run_directory_is_described(data: Path) -> None:
    simulate(request(data))
    described = {
        line.split()[0].split("/")[0] for line in (store.__doc__ or "").splitlines() if "   " in line
    }
    assert {path.split("/")[0] for path in files(Path("runs/small"))} <= described


def test_what_a_person_sees_goes_to_stderr(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_study(data, arms=STUDY["arms"][:1], questions=[])
    simulate(request(data))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "MAML" in printed.err
    assert "New hospitals" in printed.err
    assert "report: runs/small/report.html" in printed.err


def test_sites_that_are_missing_are_counted_on_the_way(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_study(data, **TINY, faults={"silent": 0.4}, training={"rounds": 2, "quorum": 0.01})
    results = simulate(request(data))
    assert any(summary.silent for summary in results.rounds)
    assert "sites missing" in capsys.readouterr().err
    events = [json.loads(line) for line in Path("runs/small/events.jsonl").read_text().splitlines()]
    assert any(set(event.get("silent", ())) & set(SITES) for event in events)


def test_runs_of_the_same_study_are_numbered(data: Path) -> None:
    for _ in range(3):
        simulate(request(data, rounds=0))
    Path("runs/small-4").mkdir()
    simulate(request(data, rounds=0))
    assert {path.name for path in Path("runs").iterdir()} == {"small", "small-2", "small-3", "small-4"}
    assert Path("runs/small-4/results.json").is_file()


def test_rounds_and_seeds_can_be_given_instead_of_the_studys(data: Path) -> None:
    whole_study(data, arms=STUDY["arms"][:1], questions=[])
    results = simulate(request(data, rounds=1, seeds=(4, 5), out=Path("mine")))
    assert results.seeds == (4, 5)
    trained = {(summary.training, summary.round) for summary in results.rounds}
    assert trained == {(f"seed{seed}-first-4-maml", 1) for seed in (4, 5)}
    assert read_study(Path("mine/study.toml").read_text(), "").seeds == (4, 5)


def test_a_run_is_resumed_by_its_folder_alone(data: Path) -> None:
    first = simulate(request(data))
    before = Path("runs/small/model.safetensors").read_bytes()
    again = simulate(Request(resume=Path("runs/small"), data=data, encode=False))
    assert measured(again) == measured(first)
    assert Path("runs/small/model.safetensors").read_bytes() == before


def test_a_run_that_was_stopped_before_its_manifest_is_resumed(data: Path) -> None:
    RunDir.create(Path("mine"), study().to_toml())
    assert simulate(Request(resume=Path("mine"), data=data, encode=False)).scores


def test_other_data_do_not_go_on_with_a_run(data: Path) -> None:
    simulate(request(data))
    before = files(Path("runs/small"))
    model = Path("runs/small/model.safetensors").read_bytes()
    with (data / "ulm.csv").open("a") as file:
        file.write("70,1,yes\n")
    with pytest.raises(RunDirError, match="not those that the run began with") as caught:
        simulate(Request(resume=Path("runs/small"), data=data))
    assert "ulm.csv" in caught.value.found
    assert "bern.csv" not in caught.value.found
    assert files(Path("runs/small")) == before
    assert Path("runs/small/model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    "values",
    [{"given": True}, {"out": Path("other")}, {"rounds": 3}, {"seeds": (1,)}],
    ids=lambda v: next(iter(v)),
)
def test_a_resumed_run_goes_on_as_it_was(data: Path, values: dict[str, Any]) -> None:
    RunDir.create(Path("mine"), study().to_toml())
    with pytest.raises(RunDirError, match="goes on as it was") as caught:
        simulate(Request(resume=Path("mine"), data=data, **values))
    assert caught.value.remedy


Spoil = Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]


def no_such_study(data: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"study": str(data / "nosuch.toml")}


def a_bad_cell(data: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    (data / "ulm.csv").write_text("age,sex,sick\nold,1,yes\n")
    return {}


def too_few_hospitals(data: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    whole_study(data)
    for name in SITES[2:]:
        (data / f"{name}.csv").unlink()
    return {}


def an_unknown_reference(data: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    whole_study(data, evaluations=[{**STUDY["evaluations"][0], "references": ["pooled"]}])
    return {}


def ray_that_is_not_there(_: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    return {"engine": "ray"}


def ray_with_faults(data: Path, _: pytest.MonkeyPatch) -> dict[str, Any]:
    whole_study(data, faults={"silent": 0.5})
    return {"engine": "ray"}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (no_such_study, StudyError),
        (a_bad_cell, DataError),
        (too_few_hospitals, StudyError),
        (an_unknown_reference, StudyError),
        (ray_that_is_not_there, UserError),
        (ray_with_faults, StudyError),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    data: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, kind: type[ClinimetaError]
) -> None:
    values = spoil(data, monkeypatch)
    with pytest.raises(kind):
        simulate(request(data, **values))
    assert files(Path()) == set()


def test_another_engine_gets_the_study_and_the_data_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def engine(study_toml: str, folder: Path) -> Engine:
        asked.append((study_toml, folder))
        return LoopbackEngine(encode=False)

    monkeypatch.setattr("clinimeta.simulations.ray_engine.require_ray", lambda: None)
    monkeypatch.setattr("clinimeta.simulations.session.RayEngine", engine)
    simulate(replace(request(data, engine="ray"), data=Path("../data")))
    assert asked == [(study(**TINY).to_toml(), data)]  # whole: a worker has its own current folder


INVENTED: dict[str, Any] = {
    **TINY,
    "data": {"name": "synthetic", "sites": 3},
    "training": {"rounds": 1},
    "episodes": {"draw": "rows", "shots": [2], "tasks": 1},
}
INVENTED_TABLE: dict[str, Any] = {
    "target": "diagnosis",
    "classes": ["0", "1"],
    "patient": "patient_id",
    "columns": [{"name": "age", "center": 60.0, "scale": 15.0}, {"name": "sex", "kind": "binary"}],
}


def test_an_invented_federation_comes_with_an_example_to_adapt(data: Path) -> None:
    whole_study(data, **INVENTED, table=INVENTED_TABLE)
    simulate(request(data))
    cases, new = (read_csv(Path(f"runs/small/example/{name}.csv")) for name in ("cases", "new"))
    assert sorted(cases.cells["diagnosis"]) == ["0"] * 5 + ["1"] * 5
    assert "diagnosis" not in new.cells
    assert adapt(read_model(Path("runs/small")), cases, new).probabilities.shape == (len(new), 2)
    assert not set(cases.cells["patient_id"]) & set(new.cells["patient_id"])


@pytest.mark.parametrize(
    "changes",
    [
        {"table": {**INVENTED_TABLE, "classes": ["0", "1", "2"]}},
        {
            "table": {**INVENTED_TABLE, "target": "age", "classes": [], "columns": [{"name": "sex"}]},
            "application": "regression",
        },
    ],
    ids=["a class that nobody has", "numbers"],
)
def test_a_run_ends_well_whatever_an_example_of_it_can_be(data: Path, changes: dict[str, Any]) -> None:
    whole_study(data, **INVENTED, **changes)
    simulate(request(data))
    assert RunDir.open(Path("runs/small")).manifest()["status"] == "finished"
    assert Path("runs/small/report.html").is_file()


def test_real_patients_are_never_copied_into_a_run(data: Path) -> None:
    simulate(request(data, rounds=0))
    assert not Path("runs/small/example").exists()
