"""Do a study: train every arm in every split, judge the arms at hospitals, write the run directory."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clinimeta.common.params import digest
from clinimeta.common.records import count_range
from clinimeta.common.study import Arm, Evaluation, Study
from clinimeta.common.trained_model import TrainedModel
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary, begin
from clinimeta.simulations.evaluation import Draw, Prediction, draws, predict
from clinimeta.simulations.federation import Federation, Split, deployment_split, splits
from clinimeta.simulations.references import reference
from clinimeta.simulations.results import Answer, Results, Score
from clinimeta.simulations.statistics import NAMED_SITES, BySite, bootstrap, estimate, point, scorable

CURVE_REPEATS = 3
"""Support draws a hospital for a point of the learning curve."""


@runtime_checkable
class Engine(Protocol):
    """Where the ServerApp and the ClientApps run."""

    def __call__(self, job: Job, outcome: Outcome, train: tuple[str, ...]) -> None:
        """Run one training over the hospitals named, and fill in `outcome`."""
        ...


@runtime_checkable
class Observer(Protocol):
    """Who watches a run: the console, or nobody."""

    def training(self, title: str, rounds: int, done: int) -> None:
        """A training begins, or goes on after `done` rounds."""
        ...

    def round(self, summary: RoundSummary) -> None:
        """A round is over."""
        ...

    def judging(self, title: str) -> None:
        """An evaluation begins."""
        ...


@dataclass(frozen=True, slots=True)
class Unit:
    """One training: an arm, by a seed, in a split."""

    arm: Arm
    seed: int
    split: Split

    @property
    def name(self) -> str:
        """Its folder in the run directory."""
        return f"seed{self.seed}-{self.split.name}-{self.arm.name}"


@dataclass(slots=True)
class Run:
    """A study under way; `trained` are the meta-parameters of the units that are done."""

    study: Study
    run_dir: RunDir
    federation: Federation
    engine: Engine
    observer: Observer
    command: str = ""
    trained: dict[str, Params] = field(default_factory=dict)

    def execute(self) -> Results:
        """Train, judge, and write everything; picks up where an earlier attempt stopped.

        Raises:
            QuorumError: a round's quorum was not reached.
            NumericalError: a training left the finite numbers.
        """
        started = time.monotonic()
        self.run_dir.write_manifest(self._manifest("running"))
        deployed = self.deployed()
        outcome = Outcome()
        for unit in self.units():
            done = self._train(unit, calibrate=unit.name == deployed.name)
            outcome = done if unit.name == deployed.name else outcome
        primary = self.study.plan(self.study.arm(self.study.primary), deployed.seed)
        model = TrainedModel(primary, self.trained[deployed.name], outcome.temperatures)
        self.run_dir.write_bytes("model.safetensors", model.to_bytes())
        judged = time.monotonic()
        scores, answers, unscored = self._judge()
        rounds = self.run_dir.rounds()
        seconds = {arm.title: _seconds(rounds, arm) for arm in self.study.arms if not arm.trained_by}
        seconds["evaluation"] = time.monotonic() - judged
        seconds["this call"] = time.monotonic() - started
        results = Results(
            study=self.study.name,
            scores=tuple(scores),
            answers=tuple(answers),
            rounds=tuple(rounds),
            arms=self._titles(),
            site_rows=self._site_rows(),
            unscored=unscored,
            seeds=self.study.seeds,
            versions=versions(),
            seconds=seconds,
            command=self.command,
        )
        self.run_dir.write_text("results.json", results.to_json() + "\n")
        self.run_dir.write_manifest(
            self._manifest("finished")
            | {
                "trainings": {name: digest(params) for name, params in sorted(self.trained.items())},
                "model": {
                    "arm": deployed.arm.name,
                    "seed": deployed.seed,
                    "trained_on": deployed.split.name,
                    "temperatures": {str(k): t for k, t in outcome.temperatures.items()},
                },
            }
        )
        return results

    def units(self) -> list[Unit]:
        """Every training that the study needs, each once, in a fixed order."""
        found: dict[str, Unit] = {}
        for evaluation in self.study.evaluations:
            for split in splits(evaluation, list(self.federation.sites)):
                for seed in self.study.seeds:
                    for arm in self.study.arms:
                        if not arm.trained_by:
                            unit = Unit(arm, seed, split)
                            found.setdefault(unit.name, unit)
        deployed = self.deployed()
        found.setdefault(deployed.name, deployed)
        return list(found.values())

    def deployed(self) -> Unit:
        """The training whose model a new hospital adapts."""
        primary = self.study.arm(self.study.primary)
        arm = self.study.arm(primary.trained_by) if primary.trained_by else primary
        split = deployment_split(self.study, list(self.federation.sites))
        return Unit(arm, self.study.seeds[0], split)

    def _train(self, unit: Unit, *, calibrate: bool) -> Outcome:
        plan, outcome = self.study.plan(unit.arm, unit.seed), Outcome()
        if unit.arm.training.rounds == 0:
            state = begin(plan.learner(), unit.arm.training.outer.build(), unit.seed)
            self.trained[unit.name] = state.params
            return outcome
        latest = self.run_dir.latest(unit.name, plan.digest)
        done = latest.round if latest else 0
        if latest and done == unit.arm.training.rounds and not calibrate:
            self.trained[unit.name] = latest.params
            return outcome
        self.observer.training(f"{unit.arm.title} · {unit.name}", unit.arm.training.rounds, done)
        job = Job(
            unit.name,
            plan,
            unit.arm.training,
            self.run_dir,
            calibrate=calibrate,
            curve=lambda number, params: self._curve(unit, number, params),
            notify=self.observer.round,
        )
        self.engine(job, outcome, unit.split.train)
        assert outcome.state is not None, "an engine returns when the ServerApp is done, or raises"
        self.trained[unit.name] = outcome.state.params
        return outcome

    def _curve(self, unit: Unit, number: int, params: Params) -> Mapping[str, float]:
        """Mean AUROC at the unseen hospitals now and then, of the arm and of those that it trains."""
        for evaluation in self.study.evaluations:
            if evaluation.split != "unseen_sites" or not evaluation.curve_every:
                continue
            if number % evaluation.curve_every and number != unit.arm.training.rounds:
                continue
            small = replace_shots(evaluation)
            drawn = self._draws(small, unit.split, unit.seed, repeats=CURVE_REPEATS)
            points = {}
            for arm in self.study.arms:
                if unit.arm.name in (arm.name, arm.trained_by):
                    made = predict(self.study.plan(arm, unit.seed), params, dict(self.federation.tables), drawn)
                    points[arm.name] = point(small, _by_site(made), "auroc")
            return {name: value for name, value in points.items() if np.isfinite(value)}
        return {}

    def _draws(
        self, evaluation: Evaluation, split: Split, seed: int, *, repeats: int | None = None
    ) -> list[Draw]:
        classes = len(self.study.table.classes)
        return [
            draw
            for site in split.judged
            for draw in draws(
                evaluation, site, self.federation.tables[site], classes, seed, repeats=repeats
            )
        ]

    def _judge(self) -> tuple[list[Score], list[Answer], dict[str, tuple[str, ...]]]:
        scores: list[Score] = []
        answers: list[Answer] = []
        unscored: dict[str, tuple[str, ...]] = {}
        for evaluation in self.study.evaluations:
            self.observer.judging(evaluation.title or evaluation.name)
            predictions = self._predictions(evaluation)
            replicates: dict[tuple[str, str, str], Any] = {}
            for arm, shots, score in (
                (arm, shots, score)
                for arm in [*(a.name for a in self.study.arms), *evaluation.references]
                for shots in map(str, evaluation.shots)
                for score in evaluation.scores
            ):
                by_site = predictions.get((arm, shots), {})
                known = by_site if evaluation.pooled else scorable(by_site, score)
                value, spread = point(evaluation, known, score), bootstrap(evaluation, known, score)
                replicates[arm, shots, score] = value, spread
                scores.append(
                    Score(evaluation.name, arm, shots, score, estimate(value, spread), len(known))
                )
                if evaluation.split in NAMED_SITES:
                    for site, drawn in known.items():
                        alone = {site: drawn}
                        there = estimate(
                            point(evaluation, alone, score), bootstrap(evaluation, alone, score)
                        )
                        scores.append(Score(evaluation.name, arm, shots, score, there, 1, site))
            answers += _answers(self.study, evaluation, replicates)
            unscored |= self._unscored(evaluation, predictions)
        return scores, answers, unscored

    def _predictions(self, evaluation: Evaluation) -> dict[tuple[str, str], BySite]:
        """(arm or reference, shots) -> hospital -> draws over seeds and repetitions."""
        gathered: dict[str, list[Prediction]] = {}
        tables = dict(self.federation.tables)
        for split in splits(evaluation, list(self.federation.sites)):
            for seed in self.study.seeds:
                drawn = self._draws(evaluation, split, seed)
                for arm in self.study.arms:
                    teacher = self.study.arm(arm.trained_by) if arm.trained_by else arm
                    params = self.trained[Unit(teacher, seed, split).name]
                    made = predict(self.study.plan(arm, seed), params, tables, drawn)
                    gathered.setdefault(arm.name, []).extend(made)
                for name in evaluation.references:
                    made = reference(name)(tables, split.train, drawn)
                    gathered.setdefault(name, []).extend(made)
        return {
            (name, shots): _by_site([p for p in made if p.shots == shots])
            for name, made in gathered.items()
            for shots in map(str, evaluation.shots)
        }

    def _unscored(
        self, evaluation: Evaluation, predictions: Mapping[tuple[str, str], BySite]
    ) -> dict[str, tuple[str, ...]]:
        """Why -> which hospitals gave no score in an evaluation, by support size."""
        judged = {s for split in splits(evaluation, list(self.federation.sites)) for s in split.judged}
        first = self.study.arms[0].name
        found = {}
        for shots in map(str, evaluation.shots):
            missing = judged - set(predictions.get((first, shots), {}))
            if missing:
                reason = f"{evaluation.title or evaluation.name}, k = {shots}: too few rows of a class"
                found[reason] = tuple(sorted(missing))
        return found

    def _titles(self) -> dict[str, str]:
        titles = {arm.name: arm.title for arm in self.study.arms}
        for evaluation in self.study.evaluations:
            titles |= {name: name.replace("_", " ") for name in evaluation.references}
        return titles

    def _site_rows(self) -> dict[str, str]:
        ranges = {name: count_range(len(site.records)) for name, site in self.federation.sites.items()}
        return {name: f"{low}-{high}" for name, (low, high) in ranges.items()}

    def _manifest(self, status: str) -> dict[str, Any]:
        return {
            "status": status,
            "study": self.study.name,
            "versions": versions(),
            "seeds": list(self.study.seeds),
            "data_sha256": dict(self.federation.files),
            "site_rows": self._site_rows(),
            "command": self.command,
        }


def versions() -> dict[str, str]:
    """What a result depends on besides the study and the data."""
    packages = ("clinimeta", "flwr", "torch", "numpy", "scikit-learn", "safetensors")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def replace_shots(evaluation: Evaluation) -> Evaluation:
    """The evaluation at its learning curve's one support size."""
    return evaluation.model_copy(update={"shots": (evaluation.curve_shots,)})


def _by_site(predictions: list[Prediction]) -> BySite:
    """Grouped by hospital; stable, so that equal draws stand at equal places for every arm."""
    grouped: dict[str, list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda p: (p.site, p.shots, p.repeat)):
        grouped.setdefault(prediction.site, []).append(prediction)
    return grouped


def _answers(
    study: Study, evaluation: Evaluation, replicates: Mapping[tuple[str, str, str], Any]
) -> list[Answer]:
    answers = []
    for question in study.questions:
        key = (question.arm, str(question.shots), question.score)
        other = (question.against, str(question.shots), question.score)
        if question.evaluation == evaluation.name and key in replicates and other in replicates:
            (value, spread), (base, base_spread) = replicates[key], replicates[other]
            answers.append(
                Answer(
                    evaluation.name,
                    question.arm,
                    question.against,
                    str(question.shots),
                    question.score,
                    estimate(value - base, spread - base_spread),
                )
            )
    return answers


def _seconds(rounds: list[RoundSummary], arm: Arm) -> float:
    return sum(summary.seconds for summary in rounds if summary.arm == arm.name)


