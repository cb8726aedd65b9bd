"""What protects a training's answers, in words for the report."""

from clinimeta.common.contributions import sensitivity
from clinimeta.common.rng import generator
from clinimeta.common.study import Arm, Study
from clinimeta.simulations.training_view import PlainTable
from clinimeta.simulations.wording import number, printable

SEEN = {
    "plain": "each hospital's own answer",
    "quantised": "each hospital's own answer, in whole numbers",
    "masked": "the sum over hospitals only",
}


def protection_table(study: Study) -> PlainTable | None:
    """An arm a row; None where no arm is protected."""
    trained = [arm for arm in study.arms if arm.training.rounds and not arm.trained_by]
    if not any(arm.protection.in_whole_numbers for arm in trained):
        return None
    columns = (
        "Method",
        "The coordinator sees",
        "A task is cut to",
        "Promise to each patient",
        "Noise",
        "Noise over signal in a round",
    )
    note = (
        "Noise is a multiple of what one patient can change. Noise over signal compares that of the mean "
        "meta-gradient, at least, with the largest that a task may have: over 1, one round says little. "
        "What protection costs in scores is the difference to the unprotected arm above."
    )
    rows = tuple(_row(study, arm) for arm in trained)
    return PlainTable("How answers are protected", columns, rows, note)


def _row(study: Study, arm: Arm) -> tuple[str, ...]:
    protection, plan = arm.promised, study.plan(arm, study.seeds[0])
    if not protection.in_whole_numbers:
        return (printable(arm.title), SEEN["plain"], "not cut", "none", "none", "")
    cut = f"norm {number(protection.clip)}"
    if not protection.noise_multiplier:
        return (printable(arm.title), SEEN[protection.answers], cut, "none", "none", "")
    sites = arm.training.cohort_size
    promise = f"epsilon {number(protection.epsilon)}, delta {protection.delta:g}, over all rounds"
    noise = f"{number(protection.noise_multiplier)} times"
    learns = plan.subspace().size(plan.learner().init(generator("template")))
    ratio = ""
    if sites:
        spread = protection.noise_multiplier * sensitivity(plan) * learns**0.5
        ratio = number(spread / (sites * plan.episodes.tasks) / protection.clip)
    return (printable(arm.title), SEEN[protection.answers], cut, promise, noise, ratio)
