"""Judge the arms of a study: predictions at hospitals, and from them scores, answers and curves."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clinimeta.common.study import Arm, Evaluation, Study
from clinimeta.common.typing import Params
from clinimeta.simulations.evaluation import Draw, Prediction, draws, predict
from clinimeta.simulations.federation import Federation, Split, splits
from clinimeta.simulations.references import reference
from clinimeta.simulations.results import Answer, Score
from clinimeta.simulations.statistics import (
    NAMED_SITES,
    BySite,
    bootstrap,
    bootstrap_each,
    estimate,
    mean_over,
    point,
    scorable,
)

CURVE_REPEATS = 3
"""Support draws a hospital for a point of the learning curve."""


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


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one evaluation found. `unscored`: why -> which hospitals gave no score."""

    scores: tuple[Score, ...]
    answers: tuple[Answer, ...]
    unscored: Mapping[str, tuple[str, ...]]


def judge(
    study: Study, federation: Federation, trained: Mapping[str, Params], evaluation: Evaluation
) -> Judgement:
    """Every arm and reference in one evaluation; `trained` are the meta-parameters of all units by name."""
    predictions = _predictions(study, federation, trained, evaluation)
    scores: list[Score] = []
    named = evaluation.split in NAMED_SITES and not evaluation.pooled
    for (arm, shots), by_site in predictions.items():
        for score in evaluation.scores:
            known = by_site if evaluation.pooled else scorable(by_site, score)
            each = bootstrap_each(evaluation, known, score) if named else {}
            spread = mean_over(each) if each else bootstrap(evaluation, known, score)
            value = point(evaluation, known, score)
            scores.append(Score(evaluation.name, arm, shots, score, estimate(value, spread), len(known)))
            for site, around in each.items():
                there = estimate(point(evaluation, {site: known[site]}, score), around)
                scores.append(Score(evaluation.name, arm, shots, score, there, 1, site))
    return Judgement(
        tuple(scores),
        _answers(study, evaluation, predictions),
        _unscored(federation, evaluation, predictions, study.arms[0].name),
    )


def curve_point(
    study: Study, federation: Federation, unit: Unit, number: int, params: Params
) -> Mapping[str, float]:
    """Mean AUROC at the unseen hospitals every few rounds, of the unit's arm and of those that it trains."""
    for evaluation in study.evaluations:
        due = evaluation.curve_every and (
            number % evaluation.curve_every == 0 or number == unit.arm.training.rounds
        )
        if evaluation.split != "unseen_sites" or not due:
            continue
        if unit.split not in splits(evaluation, list(federation.sites)):
            continue  # some of the hospitals judged there train here
        small = evaluation.model_copy(update={"shots": (evaluation.curve_shots,), "repeats": CURVE_REPEATS})
        drawn = _draws(study, federation, small, unit.split, unit.seed)
        points = {
            arm.name: point(
                small,
                _by_site(
                    predict(study.plan(arm, unit.seed), params, federation.tables, drawn, federation.device)
                ),
                "auroc",
            )
            for arm in study.arms
            if unit.arm.name in (arm.name, arm.trained_by)
        }
        return {name: value for name, value in points.items() if np.isfinite(value)}
    return {}


def _predictions(
    study: Study, federation: Federation, trained: Mapping[str, Params], evaluation: Evaluation
) -> dict[tuple[str, str], BySite]:
    """(arm or reference, shots) -> hospital -> draws over seeds and repetitions."""
    gathered: dict[str, list[Prediction]] = {arm.name: [] for arm in study.arms}
    gathered |= {name: [] for name in evaluation.references}
    for split in splits(evaluation, list(federation.sites)):
        for seed in study.seeds:
            drawn = _draws(study, federation, evaluation, split, seed)
            for arm in study.arms:
                teacher = study.arm(arm.trained_by) if arm.trained_by else arm
                params = trained[Unit(teacher, seed, split).name]
                made = predict(study.plan(arm, seed), params, federation.tables, drawn, federation.device)
                gathered[arm.name] += made
            for name in evaluation.references:
                training = federation.training(study.table, split.train).tables
                gathered[name] += reference(name)(training, federation.tables, drawn)
    return {
        (name, shots): _by_site([p for p in made if p.shots == shots])
        for name, made in gathered.items()
        for shots in map(str, evaluation.shots)
    }


def _draws(
    study: Study, federation: Federation, evaluation: Evaluation, split: Split, seed: int
) -> list[Draw]:
    classes = len(study.table.classes)
    return [
        draw
        for site in split.judged
        for draw in draws(evaluation, site, federation.tables[site], classes, seed)
    ]


def _by_site(predictions: list[Prediction]) -> BySite:
    """Grouped by hospital; stable, so that equal draws stand at equal places for every arm."""
    grouped: dict[str, list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda p: (p.site, p.shots, p.repeat)):
        grouped.setdefault(prediction.site, []).append(prediction)
    return grouped


def _answers(
    study: Study, evaluation: Evaluation, predictions: Mapping[tuple[str, str], BySite]
) -> tuple[Answer, ...]:
    """The study's questions, each by the paired difference at the hospitals where both arms have a score."""
    answers = []
    for question in study.questions:
        if question.evaluation != evaluation.name:
            continue
        shots, score = str(question.shots), question.score
        pair = [predictions[arm, shots] for arm in (question.arm, question.against)]
        if not evaluation.pooled:
            known = [scorable(by_site, score) for by_site in pair]
            pair = [{site: at[site] for site in at if all(site in k for k in known)} for at in known]
        ours, theirs = (point(evaluation, by_site, score) for by_site in pair)
        spreads = [bootstrap(evaluation, by_site, score) for by_site in pair]
        difference = estimate(ours - theirs, spreads[0] - spreads[1])
        answers.append(Answer(evaluation.name, question.arm, question.against, shots, score, difference))
    return tuple(answers)


def _unscored(
    federation: Federation,
    evaluation: Evaluation,
    predictions: Mapping[tuple[str, str], BySite],
    arm: str,
) -> dict[str, tuple[str, ...]]:
    judged = {s for split in splits(evaluation, list(federation.sites)) for s in split.judged}
    found = {}
    for shots in map(str, evaluation.shots):
        missing = judged - set(predictions[arm, shots])
        if missing:
            reason = (
                f"{evaluation.title or evaluation.name}, k = {shots}: too few rows, or too few of a class"
            )
            found[reason] = tuple(sorted(missing))
    return found
