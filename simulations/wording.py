"""The plain words of results: names of scores, support sizes, numbers, and answers as sentences.

The page and the console both speak through this file, so that they never say different things.
"""

import math
from collections.abc import Iterable

from clinimeta.common.study import Evaluation, Study
from clinimeta.simulations.results import Answer, Estimate, Results

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
"""What stands where there is no number."""

INTERVAL = "95\N{NO-BREAK SPACE}% interval"

_NAMES = {
    "auroc": "AUROC",
    "query_loss": "loss",
    "query_accuracy": "accuracy",
    "query_squared_error": "squared error",
}
_MEANINGS = {
    "auroc": (
        "how well patients with different outcomes are told apart: 0.5 is a coin toss, 1 is perfect; "
        "higher is better"
    ),
    "accuracy": "the share of patients for whom the most likely outcome was the true one; higher is better",
    "calibration_error": (
        "how far the stated certainty is from the share of predictions that were right; lower is better"
    ),
    "query_loss": "one number for how wrong the predictions were and how sure of it; lower is better",
    "query_accuracy": "the share of patients for whom the most likely outcome was the true one",
    "query_squared_error": "the mean squared distance from the true value; lower is better",
}


def printable(text: str) -> str:
    r"""One line of text without control characters: what comes from a file cannot steer a terminal.

    >>> printable("St. Mary\x1b[2J\n Hospital")
    'St. Mary[2J Hospital'
    """
    clean = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c for c in clean if c.isprintable() or c.isspace()).split())


def title_of(name: str, study: Study, results: Results) -> str:
    """What a reader calls an arm or a reference."""
    titles = {**results.arms, **{arm.name: arm.title for arm in study.arms}}
    return printable(titles.get(name) or name)


def score_name(score: str) -> str:
    """A score in words.

    >>> score_name("auroc"), score_name("calibration_error")
    ('AUROC', 'calibration error')
    """
    return _NAMES.get(score) or printable(score.replace("_", " "))


def heading(text: str) -> str:
    """The text with a capital first letter, the rest as it is.

    >>> heading("AUROC at k = 5"), heading("accuracy")
    ('AUROC at k = 5', 'Accuracy')
    """
    return text[:1].upper() + text[1:]


def score_meaning(score: str) -> str:
    """One explanation for people who do not measure models; "" where we have none."""
    return _MEANINGS.get(score, "")


def lower_is_better(score: str) -> bool:
    """Whether small values of a score are good: errors and losses.

    >>> lower_is_better("calibration_error"), lower_is_better("auroc")
    (True, False)
    """
    return score.endswith(("error", "loss"))


def shots_name(shots: str) -> str:
    """A support size as a column heading.

    >>> shots_name("5"), shots_name("half")
    ('k = 5', 'half of the patients')
    """
    return {"half": "half of the patients", "all": "all training patients"}.get(shots, f"k = {shots}")


def shots_words(shots: str, draw: str) -> str:
    """A support size inside a sentence.

    >>> shots_words("1", "per_class"), shots_words("20", "rows"), shots_words("0", "rows")
    ('1 labelled patient of each class', '20 labelled patients', 'no labelled patients')
    """
    if shots in ("half", "all"):
        return f"{'half' if shots == 'half' else 'all'} of a hospital's labelled patients"
    number = "no" if shots == "0" else shots
    people = "patient" if shots == "1" else "patients"
    return f"{number} labelled {people}" + (" of each class" if draw == "per_class" and shots != "0" else "")


def number(value: float, digits: int = 3) -> str:
    """A measured number; an en dash where there is none.

    >>> number(0.87349), number(-0.5, 1), number(float("nan"))
    ('0.873', '\N{MINUS SIGN}0.5', '\N{EN DASH}')
    """
    if not math.isfinite(value):
        return NOTHING
    rounded = f"{abs(value):.{digits}f}" if abs(value) < 1e5 else f"{abs(value):.{digits}g}"
    return MINUS + rounded if value < 0 and float(rounded) else rounded


def interval(estimate: Estimate, digits: int = 3, *, dash: bool = False) -> str:
    """The interval as "low to high", or with a dash where nothing is below zero; "" where there is none.

    >>> interval(Estimate(0.5, 0.4, 0.6), digits=1)
    '0.4 to 0.6'
    """
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    to = "\N{EN DASH}" if dash and estimate.low >= 0 else " to "
    return number(estimate.low, digits) + to + number(estimate.high, digits)


def verdict(answer: Answer) -> str:
    """`Answer.verdict` as a reader means it: an error that fell is better, and NaN is no answer."""
    numbers = (answer.difference.value, answer.difference.low, answer.difference.high)
    if not all(math.isfinite(n) for n in numbers):
        return "not answered"
    turned = {"better": "worse", "worse": "better"} if lower_is_better(answer.score) else {}
    return turned.get(answer.verdict, answer.verdict)


def answer_sentence(answer: Answer, study: Study, results: Results) -> str:
    """The answer as one sentence in plain words, with the difference and its 95 % interval."""
    evaluation = evaluation_of(answer.evaluation, study)
    arm, against = title_of(answer.arm, study, results), title_of(answer.against, study, results)
    at = "at " + shots_words(answer.shots, evaluation.draw if evaluation else "rows")
    score, difference = score_name(answer.score), answer.difference
    range_ = f"{INTERVAL} {interval(difference)}"
    direction = "lower" if difference.value < 0 else "higher"
    by = f"{number(abs(difference.value))} {direction} ({range_})"
    match verdict(answer):
        case "better":
            return f"{arm} beat {against} {at}: its {score} was {by}."
        case "worse":
            return f"{arm} did not beat {against} {at}: it was worse, its {score} was {by}."
        case "not answered":
            return (
                f"Whether {arm} beats {against} {at} could not be answered: too few hospitals could be "
                f"scored for an interval of the difference in {score}."
            )
        case _:
            return (
                f"{arm} did not beat {against} {at}: its {score} was {by}, and as the interval holds zero, "
                "no difference is shown."
            )


def all_answers(study: Study, results: Results) -> tuple[Answer, ...]:
    """The answers, and one of NaN for each question of the study that has none."""
    nan = Estimate(math.nan, math.nan, math.nan)
    asked = [Answer(q.evaluation, q.arm, q.against, str(q.shots), q.score, nan) for q in study.questions]

    def key(answer: Answer) -> tuple[str, ...]:
        return (answer.evaluation, answer.arm, answer.against, answer.shots, answer.score)

    answered = {key(answer) for answer in results.answers}
    return (*results.answers, *(answer for answer in asked if key(answer) not in answered))


def evaluation_of(name: str, study: Study) -> Evaluation | None:
    """The evaluation of that name, if the study has it."""
    return next((e for e in study.evaluations if e.name == name), None)


def evaluation_title(name: str, study: Study) -> str:
    """What a heading calls an evaluation."""
    evaluation = evaluation_of(name, study)
    return printable((evaluation.title if evaluation else "") or name)


def count(n: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> count(1, "hospital"), count(1200, "hospital")
    ('1 hospital', '1,200 hospitals')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def size(n_bytes: float) -> str:
    """Bytes in a unit that a person reads.

    >>> size(999), size(24_500), size(3.2e9)
    ('999 B', '24.5 kB', '3.2 GB')
    """
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in units that a person reads.

    >>> duration(0.26), duration(8.4), duration(75), duration(3725), duration(float("nan"))
    ('0.3 s', '8 s', '1 min 15 s', '1 h 02 min', '\N{EN DASH}')
    """
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers with their runs drawn together.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1\N{EN DASH}3, 7, 9\N{EN DASH}10'
    """
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}\N{EN DASH}{b}" for a, b in runs)
