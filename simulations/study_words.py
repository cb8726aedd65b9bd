"""What a study did, in plain words: its methods, who was judged and how, and how intervals were made."""

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.study import Arm, Evaluation, Study
from clinimeta.simulations.results import Results
from clinimeta.simulations.statistics import NAMED_SITES
from clinimeta.simulations.wording import (
    INTERVAL,
    count,
    heading,
    printable,
    score_meaning,
    score_name,
    shots_words,
    title_of,
)

_PLAIN = {
    "maml": (
        "Learns a starting point for a model, chosen so that a short adaptation to a new hospital's few "
        "patients suffices."
    ),
    "protonet": (
        "Learns which patients are alike. A new patient gets the outcome whose known patients are, on "
        "average, the most alike."
    ),
}
"""For readers who train no models; the others are described by their own first sentence."""


def glossary(study: Study, results: Results) -> tuple[tuple[str, str], ...]:
    """The words of the page that need a word: (word, explanation)."""
    scores = dict.fromkeys(score for e in study.evaluations for score in e.scores)
    measured = [(score_name(s), score_meaning(s)) for s in scores if score_meaning(s)]
    words = [
        (
            "k",
            "how many labelled patients (of each class, where it says so: a class is one of the outcomes to "
            "tell apart) a method is given to adapt to a hospital, before it is tested there",
        ),
        *((heading(name), meaning) for name, meaning in measured),
        (
            INTERVAL,
            "how far the number could be off by chance; wide where hospitals or patients are few. An "
            "interval of a difference that holds zero shows no difference",
        ),
    ]
    if results.rounds:
        words.append(
            ("Round", "each hospital asked learns from its own patients and sends back a summary, no record")
        )
    return tuple(words)


def methods(study: Study, results: Results) -> tuple[tuple[str, str, str], ...]:
    """Arms and references: (title, what it does, how it was trained)."""
    arms = (
        (title_of(arm.name, study, results), _what_it_does(arm), _trainingwords(arm, study, results))
        for arm in study.arms
    )
    references = dict.fromkeys(name for e in study.evaluations for name in e.references)
    central = "A reference: what could be had if all records stood in one place."
    others = ((title_of(name, study, results), central, "trained centrally") for name in references)
    return (*arms, *others)


def _what_it_does(arm: Arm) -> str:
    """A sentence on the algorithm; the baselines are one algorithm, so each has its own here."""
    name = arm.algorithm.name
    if name != "fine_tune":
        return _PLAIN.get(name) or printable(ALGORITHMS.summary(name).replace("`", ""))
    options = {**ALGORITHMS.options("fine_tune"), **arm.algorithm.options}
    if options["steps"] == 0:
        return "Baseline: one shared model for all hospitals, used as it is."
    if not arm.trained_by and arm.training.rounds == 0:
        return "Baseline: a model made from nothing but the hospital's own labelled patients."
    return "Baseline: one shared model, fitted further to the hospital's own labelled patients."


def _trainingwords(arm: Arm, study: Study, results: Results) -> str:
    if arm.trained_by:
        return f"adapts what {title_of(arm.trained_by, study, results)} learned"
    if arm.training.rounds == 0:
        return "no training together"
    cohort = arm.training.cohort_size
    asked = f"{cohort} hospitals" if cohort else "all training hospitals"
    return f"{count(arm.training.rounds, 'round')} with {asked}"


def who_was_judged(evaluation: Evaluation) -> str:
    """Which hospitals were tested, and what of them training had seen."""
    match evaluation.split:
        case "unseen_sites":
            return (
                f"{count(evaluation.sites, 'hospital')} took no part in training. Each adapted what the "
                "others had learned to a few of its own patients, and was tested on its other patients."
            )
        case "site_folds":
            return (
                f"The hospitals were put into {evaluation.folds} groups. Each group was tested with what the "
                "other groups had learned, so no hospital was tested with what it had "
                "helped to learn."
            )
        case "leave_one_site_out":
            return (
                "Each hospital in turn took no part in training, adapted what the others had learned to its "
                "own patients, and was tested on its other patients."
            )
        case _:
            return (
                "Every hospital took part in training and was tested on those of its patients that the data "
                "set's own protocol keeps back for testing."
            )


def how_it_was_judged(evaluation: Evaluation) -> str:
    """What k means here, how often it was drawn, and over what a score is a mean."""
    each = " of each class" if evaluation.draw == "per_class" else ""
    text = f"Here k is the number of labelled patients{each} to adapt to."
    if set(map(str, evaluation.shots)) <= {"half", "all"}:
        text = f"The methods adapted to {shots_words(str(evaluation.shots[0]), evaluation.draw)}."
    if evaluation.shots != ("all",):
        text += f" The patients to adapt to were drawn {count(evaluation.repeats, 'time')} at random."
    if evaluation.pooled:
        return text + " The patients of all hospitals were scored together."
    return text + " A score is the mean over hospitals, each counting the same."


def how_intervals_were_made(evaluation: Evaluation) -> str:
    """What was resampled; it says the same as `statistics.bootstrap` does."""
    if evaluation.split in NAMED_SITES:
        method = (
            "two-level bootstrap over draws of the patients to adapt to and over the patients tested; the "
            "hospitals themselves are a fixed list"
        )
    elif evaluation.pooled:
        method = "bootstrap over hospitals (whole ones) and over draws of the patients to adapt to"
    else:
        method = "two-level bootstrap over hospitals and over draws of the patients to adapt to"
    if evaluation.split not in NAMED_SITES:
        method += ", widened by Student's t for the number of hospitals"
    return f"Intervals: 95\N{NO-BREAK SPACE}%, by a {method} ({evaluation.bootstrap:,} resamples)."
