"""Do a study: train every arm in every split, judge the arms at hospitals, write the run directory."""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

from clinimeta.client.site import Site
from clinimeta.common.algorithms.engine import engine
from clinimeta.common.params import digest
from clinimeta.common.records import count_range
from clinimeta.common.study import Arm, Plan, Study
from clinimeta.common.trained_model import TrainedModel
from clinimeta.common.typing import Params
from clinimeta.server.app import Job, Outcome
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary, begin
from clinimeta.simulations.federation import Federation, deployment_split, splits
from clinimeta.simulations.judging import Unit, curve_point, judge
from clinimeta.simulations.references import reference
from clinimeta.simulations.results import Results


@runtime_checkable
class Engine(Protocol):
    """Where the ServerApp and the ClientApps run."""

    def __call__(self, job: Job, outcome: Outcome, sites: Mapping[str, Site]) -> None:
        """Run one training over these hospitals, and fill in `outcome`."""
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
        check(self.study, list(self.federation.sites))
        self.run_dir.write_manifest(self._manifest("running"))
        deployed = self.deployed()
        primary = self.study.plan(self.study.arm(self.study.primary), deployed.seed)
        outcome, absent = Outcome(), dict[str, tuple[str, ...]]()
        for unit in self.units():
            calibrated = unit.name == deployed.name and bool(self.study.table.classes)
            done = self._train(unit, calibrate=primary if calibrated else None)
            outcome = done if unit.name == deployed.name else outcome
            absent |= _absent(unit, done)
        model = TrainedModel(primary, self.trained[deployed.name], outcome.temperatures)
        self.run_dir.write_bytes("model.safetensors", model.to_bytes())
        judged = time.monotonic()
        judgements = []
        for evaluation in self.study.evaluations:
            self.observer.judging(evaluation.title or evaluation.name)
            judgements.append(judge(self.study, self.federation, self.trained, evaluation))
        rounds = self.run_dir.rounds()
        seconds = {arm.title: _seconds(rounds, arm) for arm in self.study.arms if not arm.trained_by}
        seconds["evaluation"] = time.monotonic() - judged
        seconds["this call"] = time.monotonic() - started
        results = Results(
            study=self.study.name,
            scores=tuple(score for j in judgements for score in j.scores),
            answers=tuple(answer for j in judgements for answer in j.answers),
            rounds=tuple(rounds),
            arms=self._titles(),
            site_rows=self._site_rows(),
            unscored=absent | {reason: sites for j in judgements for reason, sites in j.unscored.items()},
            seeds=self.study.seeds,
            versions=versions(),
            seconds=seconds,
            command=self.command,
            engines=self._engines(),
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

    def _train(self, unit: Unit, *, calibrate: Plan | None) -> Outcome:
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
            sites=len(unit.split.train),
            calibrate=calibrate,
            curve=lambda number, params: curve_point(self.study, self.federation, unit, number, params),
            notify=self.observer.round,
        )
        training = self.federation.training(self.study.table, unit.split.train)
        self.engine(job, outcome, training.sites)
        assert outcome.state is not None, "an engine returns when the ServerApp is done, or raises"
        self.trained[unit.name] = outcome.state.params
        return outcome

    def _engines(self) -> dict[str, str]:
        used = {
            arm.title: engine(self.study.plan(arm, seed).learner(), self.federation.device)
            for arm in self.study.arms
            for seed in self.study.seeds[:1]
        }
        return {title: text for title, fast in used.items() if (text := fast.describe())}

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


def _absent(unit: Unit, outcome: Outcome) -> dict[str, tuple[str, ...]]:
    """Why -> the hospitals that were to train and never said that they were there."""
    missing = tuple(sorted(set(unit.split.train) - set(outcome.introductions)))
    if not missing or outcome.state is None:
        return {}
    return {f"no part in the training '{unit.name}': never said that they were there": missing}


def check(study: Study, names: Sequence[str]) -> None:
    """Whether the study can be done at these hospitals; asked before anything is written.

    Raises:
        StudyError: too few hospitals for an evaluation, or a reference that does not exist.
    """
    for evaluation in study.evaluations:
        splits(evaluation, names)
        for name in evaluation.references:
            reference(name)


def _seconds(rounds: list[RoundSummary], arm: Arm) -> float:
    return sum(summary.seconds for summary in rounds if summary.arm == arm.name)
