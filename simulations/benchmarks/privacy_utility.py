"""`clinimeta bench privacy-utility`: what a promise to each patient costs in accuracy.

A study's primary arm is trained as the study has it, then in whole numbers under secure aggregation (of
which only the masks are left out: they change no bit) with every task's meta-gradient cut to norm 1 and
one task a patient, for several epsilons, infinity among them, each once with all numbers learning and once
with the last layer only. The start that all trainings begin from is judged, too. All are judged as the
study judges. The promise is to a patient, over the whole training; choosing among these arms by their
scores would not be covered by it.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from clinimeta.common.privacy.promise import Promise
from clinimeta.common.privacy.utility import Setting as Weighed
from clinimeta.common.privacy.utility import expected_utility
from clinimeta.common.rng import generator
from clinimeta.common.secagg.terms import THRESHOLDS
from clinimeta.common.study import Arm, Plan, Question, Study, check
from clinimeta.server.store import RunDir
from clinimeta.server.training import RoundSummary
from clinimeta.simulations import federation, studies
from clinimeta.simulations.batched import BatchedEngine
from clinimeta.simulations.datasets.locate import data_folder
from clinimeta.simulations.protecting import protect
from clinimeta.simulations.results import Answer, Estimate, Results, Score
from clinimeta.simulations.run import Run

EPSILONS = (math.inf, 32.0, 8.0, 2.0)
DELTA, CLIP = 1e-6, 1.0
SEEDS = (0, 1, 2)
PARTS = {"all": "all numbers learn", "head": "the last layer learns"}
UNPROTECTED, NOTHING = "as the study has it", "nothing learns"
"""Above and below: no promise, and the start of every training, which tells nothing of anyone."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A study with its seeds and, if not 0, fewer rounds."""

    study: Study
    seeds: tuple[int, ...] = (0,)
    rounds: int = 0
    epsilons: tuple[float, ...] = EPSILONS


def settings(data: Path | None, *, quick: bool) -> list[Setting]:
    """The default study; eICU, too, where its data are at hand."""
    if quick:
        return [Setting(studies.find("default"), rounds=3, epsilons=(math.inf, 8.0))]
    names = ["default", "eicu"] if data_folder(data) else ["default"]
    return [Setting(studies.find(name), SEEDS) for name in names]


def with_promises(setting: Setting) -> Study:
    """The study with its primary arm unprotected, then in all the ways that are compared.

    Where the model is a head and nothing else, learning the head only is no other way.

    Raises:
        StudyError: the arm cannot promise a patient anything.
    """
    study, plain = setting.study, setting.study.arm(setting.study.primary)
    if setting.rounds:
        plain = plain.model_copy(
            update={"training": plain.training.model_copy(update={"rounds": setting.rounds})}
        )
    parts = [part for part in PARTS if part == "all" or _learns_less(study, plain, part)]
    untrained = plain.model_copy(
        update={
            "name": "untrained",
            "label": NOTHING,
            "training": plain.training.model_copy(update={"rounds": 0}),
        }
    )
    arms = [_arm(plain, part, epsilon) for part in parts for epsilon in setting.epsilons] + [untrained]
    evaluations = [e.model_copy(update={"curve_every": 0, "references": ()}) for e in study.evaluations]
    questions = [
        Question(evaluation=e.name, arm=arm.name, against=plain.name, shots=shots, score=score)
        for e in evaluations
        for arm in arms
        for shots in e.shots
        for score in e.scores
    ]
    changed = study.model_copy(
        update={
            "name": f"privacy-{study.name}",
            "seeds": setting.seeds,
            "arms": (plain, *arms),
            "evaluations": tuple(evaluations),
            "questions": tuple(questions),
            "published": (),
        }
    )
    check(changed, f"study '{study.name}' under promises")
    return changed


def measure(
    settings: Sequence[Setting], data: Path | None, notify: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each study, arm, support size and score."""
    return [row for setting in settings for row in _rows(setting, *_run(setting, data, notify))]


def _arm(plain: Arm, part: str, epsilon: float) -> Arm:
    promised = 0.0 if math.isinf(epsilon) else epsilon
    arm = protect(plain, masked=True, epsilon=promised, delta=DELTA, clip=CLIP)
    return arm.model_copy(
        update={
            "name": f"{part}-{epsilon:g}",
            "label": f"{PARTS[part]}, epsilon {epsilon:g}",
            "training": arm.training.model_copy(update={"trainable": part, "weighting": "tasks"}),
            "episodes": arm.episodes.model_copy(update={"tasks_a_patient": 1}),
        }
    )


def _learns_less(study: Study, plain: Arm, part: str) -> bool:
    fewer = plain.model_copy(update={"training": plain.training.model_copy(update={"trainable": part})})
    return _learning(study.plan(fewer, 0)) < _learning(study.plan(plain, 0))


def _learning(plan: Plan) -> int:
    """How many numbers learn."""
    return plan.subspace().size(plan.learner().init(generator("template")))


def _run(setting: Setting, data: Path | None, notify: Callable[[str], None]) -> tuple[Study, Results]:
    study = with_promises(setting)
    loaded = federation.load(study, data)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir.create(Path(folder) / "run", study.to_toml())
        with _quiet():
            return study, Run(study, run_dir, loaded, BatchedEngine(), _Told(notify)).execute()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warning a round where a hospital has too few patients; it has too few in every round."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(**before)


def _rows(setting: Setting, study: Study, results: Results) -> list[dict[str, Any]]:
    arms = {arm.name: arm for arm in study.arms}
    answers = {(a.evaluation, a.arm, a.shots, a.score): a for a in results.answers}
    return [
        {
            "setting": f"{setting.study.name}, k = {score.shots}: {score.score}",
            "study": setting.study.name,
            "evaluation": score.evaluation,
            **_way(study, arms[score.arm]),
            "shots": score.shots,
            "score": score.score,
            **_numbers(score, answers.get((score.evaluation, score.arm, score.shots, score.score))),
            "sites": score.sites,
            "rounds": arms[score.arm].training.rounds,
            "seeds": len(study.seeds),
        }
        for score in results.scores
        if not score.site
    ]


def _way(study: Study, arm: Arm) -> Mapping[str, Any]:
    """How an arm learns; its signal over its noise in a round where every site of the cohort answers."""
    learns, epsilon = PARTS[arm.training.trainable], f"{arm.protection.epsilon or math.inf:g}"
    if arm.name == study.primary:
        learns, epsilon = UNPROTECTED, "none"
    if not arm.training.rounds:
        learns, epsilon = NOTHING, "0"
    learning = _learning(study.plan(arm, study.seeds[0])) if arm.training.rounds else 0
    ratio, multiplier = None, 0.0
    if arm.protection.epsilon and arm.training.cohort_size:
        sites = arm.training.cohort_size
        inflation = math.sqrt(
            sites / THRESHOLDS["two_thirds"](sites)
        )  # enough noise for the fewest survivors
        weighed = Weighed(arm.training.rounds, sites * arm.episodes.tasks, learning, inflation)
        found = expected_utility(Promise(arm.protection.epsilon, arm.protection.delta), weighed)
        ratio, multiplier = found.ratio, found.multiplier
    return {
        "learns": learns,
        "epsilon": epsilon,
        "numbers": learning,
        "noise_multiplier": multiplier,
        "signal_over_noise": ratio,
    }


def _numbers(score: Score, answer: Answer | None) -> Mapping[str, float | None]:
    """The score, and how much it is over the unprotected arm's, with their intervals."""
    less = answer.difference if answer else None
    return {
        **_columns("value", "low", "high", found=score.estimate),
        **_columns("difference", "difference_low", "difference_high", found=less),
    }


def _columns(*names: str, found: Estimate | None) -> Mapping[str, float | None]:
    values = (None, None, None) if found is None else (found.value, found.low, found.high)
    return dict(zip(names, values, strict=True))


@dataclass(frozen=True, slots=True)
class _Told:
    """Says which training is under way."""

    notify: Callable[[str], None]

    def training(self, title: str, rounds: int, done: int) -> None:
        """One line a training."""
        del done
        self.notify(f"{title}: {rounds} rounds")

    def round(self, summary: RoundSummary) -> None:
        """Nothing."""

    def judging(self, title: str) -> None:
        """One line an evaluation."""
        self.notify(f"judging: {title}")
