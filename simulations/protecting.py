"""A study with its trainings protected, and its primary arm once more without, to see what that costs."""

from clinimeta.common.protection import Protection
from clinimeta.common.settings import parse
from clinimeta.common.study import Arm, Question, Study, check

TWIN = "unprotected"
CLIP, CLIP_WITH_NOISE = 10.0, 1.0
"""Norms that a task's meta-gradient is cut to where nobody says: hardly ever, and often."""


def protected(study: Study, *, masked: bool, epsilon: float, delta: float, clip: float = 0.0) -> Study:
    """The study with every arm that is trained together under secure aggregation, noise, or both.

    Under a promise a task's patients are its own, and hospitals count alike, since how many rows one has is
    private. The primary arm's twin stays as the study has it; a question compares the two.

    Raises:
        StudyError: the protection does not fit an arm.
    """
    twins = {arm.name: _twin(arm) for arm in _teacher_and(study, study.primary)}
    arms = [protect(arm, masked=masked, epsilon=epsilon, delta=delta, clip=clip) for arm in study.arms]
    questions = [
        Question(
            evaluation=asked.name,
            arm=twins[study.primary].name,
            against=study.primary,
            shots=asked.shots[-1],
            score=asked.scores[0],
        )
        for asked in study.evaluations
    ]
    changed = study.model_copy(
        update={"arms": (*arms, *twins.values()), "questions": (*study.questions, *questions)}
    )
    check(changed, f"study '{study.name}', protected")
    return changed


def protect(arm: Arm, *, masked: bool, epsilon: float, delta: float, clip: float) -> Arm:
    """One arm under secure aggregation, noise, or both, as `protected` says."""
    if arm.trained_by or not arm.training.rounds:
        return arm
    chosen = {
        "answers": "masked" if masked else "quantised",
        "clip": clip or (CLIP_WITH_NOISE if epsilon else CLIP),
        "min_cohort": arm.protection.min_cohort,
        "epsilon": epsilon,
        "delta": delta,
    }
    protection = parse(Protection, chosen, f"the protection asked for, arm '{arm.name}'")
    if not epsilon:
        return arm.model_copy(update={"protection": protection})
    one_step = arm.training.local_meta_steps == 1
    episodes = arm.episodes.model_copy(
        update={"tasks_a_patient": (arm.episodes.tasks_a_patient or 1) if one_step else 0}
    )
    training = arm.training.model_copy(update={"weighting": "tasks"})
    return arm.model_copy(update={"protection": protection, "episodes": episodes, "training": training})


def _teacher_and(study: Study, name: str) -> list[Arm]:
    arm = study.arm(name)
    return [study.arm(arm.trained_by), arm] if arm.trained_by else [arm]


def _twin(arm: Arm) -> Arm:
    return arm.model_copy(
        update={
            "name": f"{arm.name}-{TWIN}",
            "label": f"{arm.title}, {TWIN}",
            "trained_by": f"{arm.trained_by}-{TWIN}" if arm.trained_by else "",
        }
    )
