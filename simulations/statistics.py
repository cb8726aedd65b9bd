"""From predictions to numbers with intervals, by the bootstrap (Efron & Tibshirani 1993, chapter 8).

Where the hospitals judged stand for hospitals to come, hospitals are resampled first and then the
support draws within each. Where the hospitals are what they are (four, all of them named), the draws
and the patients within each are resampled. Two arms are compared on the same resamples. Spreads over few
hospitals are widened by Student's t.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import norm as normal
from scipy.stats import t as student_t

from clinimeta.common.metrics import CLASS_SCORES, SCORES
from clinimeta.common.rng import derive_seed
from clinimeta.common.study import Evaluation
from clinimeta.simulations.evaluation import Prediction
from clinimeta.simulations.results import Estimate

Scorer = Callable[[np.ndarray, np.ndarray], float]
BySite = Mapping[str, Sequence[Prediction]]
"""Hospital -> its draws, over repetitions and training seeds; the same order for every arm."""

Draws = Sequence[Sequence[Prediction]]
Replicate = Callable[[np.random.Generator], float]

DRAWS_RESAMPLED = 4
"""Of a hospital's draws, how many make one replicate; more would only make the interval slower."""

NAMED_SITES = ("own_test_rows", "leave_one_site_out")
"""Splits whose hospitals are a fixed, complete list."""


def point(evaluation: Evaluation, by_site: BySite, score: str) -> float:
    """The score: the mean over hospitals of their mean over draws, or that of the rows pooled."""
    scorer = SCORES[score]
    draws = list(by_site.values())
    if not draws:
        return float("nan")
    if not evaluation.pooled:
        return _mean([_mean([scorer(d.targets, d.probabilities) for d in at_site]) for at_site in draws])
    return _mean([scorer(d.targets, d.probabilities) for d in _pooled_draws(draws)])


def bootstrap(evaluation: Evaluation, by_site: BySite, score: str) -> Float[np.ndarray, " replicates"]:
    """Bootstrap replicates of the score; equal resamples for every arm, so that differences are paired."""
    if not by_site:
        return np.full(evaluation.bootstrap, np.nan)
    if evaluation.split in NAMED_SITES:
        if evaluation.pooled:
            by_site = {"": _pooled_draws(list(by_site.values()))}
        return mean_over(bootstrap_each(evaluation, by_site, score))
    rng = np.random.default_rng(derive_seed("bootstrap", evaluation.name, score))
    draws = list(by_site.values())
    replicate = (_pooled if evaluation.pooled else _hospitals)(draws, SCORES[score])
    replicates = np.array([replicate(rng) for _ in range(evaluation.bootstrap)])
    centre = point(evaluation, by_site, score)
    widened = centre + few_hospitals(len(draws)) * (replicates - centre)
    return np.clip(widened, 0.0, 1.0) if score in CLASS_SCORES else widened


def few_hospitals(count: int) -> float:
    """How much wider than the bootstrap's own the spread over so few hospitals is.

    The percentile bootstrap divides by n instead of n - 1 and knows nothing of Student's t, so alone it is
    too narrow where hospitals are few.

    >>> round(few_hospitals(8), 2), round(few_hospitals(186), 2)
    (1.29, 1.01)
    """
    if count < 2:
        return 1.0
    return float(np.sqrt(count / (count - 1)) * student_t.ppf(0.975, count - 1) / normal.ppf(0.975))


def bootstrap_each(
    evaluation: Evaluation, by_site: BySite, score: str
) -> dict[str, Float[np.ndarray, " replicates"]]:
    """Replicates of each hospital's own score, over its draws (a few at a time) and its patients."""
    return {
        site: _patients(
            draws,
            SCORES[score],
            evaluation.bootstrap,
            np.random.default_rng(derive_seed("bootstrap", evaluation.name, score, site)),
        )
        for site, draws in by_site.items()
    }


def mean_over(each: Mapping[str, Float[np.ndarray, " replicates"]]) -> Float[np.ndarray, " replicates"]:
    """Replicates of the mean over hospitals, which are resampled independently."""
    return np.array([_mean(values) for values in zip(*each.values(), strict=True)])


def estimate(value: float, replicates: Float[np.ndarray, " replicates"]) -> Estimate:
    """The value with the 2.5 and 97.5 percentiles of its replicates."""
    known = replicates[~np.isnan(replicates)]
    if not len(known):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def scorable(by_site: BySite, score: str) -> dict[str, Sequence[Prediction]]:
    """The hospitals at which the score is defined in at least one draw (both classes there, say)."""
    scorer = SCORES[score]
    return {
        site: draws
        for site, draws in by_site.items()
        if any(not np.isnan(scorer(d.targets, d.probabilities)) for d in draws)
    }


def _hospitals(draws: Draws, scorer: Scorer) -> Replicate:
    """Resample hospitals, then the draws within each."""
    values = [np.array([scorer(d.targets, d.probabilities) for d in at_site]) for at_site in draws]

    def replicate(rng: np.random.Generator) -> float:
        chosen = [values[site] for site in rng.integers(len(values), size=len(values))]
        return _mean([_mean(v[rng.integers(len(v), size=len(v))]) for v in chosen])

    return replicate


def _patients(
    draws: Sequence[Prediction], scorer: Scorer, count: int, rng: np.random.Generator
) -> Float[np.ndarray, " replicates"]:
    """Resample the draws and the patients of one hospital, the same people in every draw."""

    def replicate() -> float:
        some = [draws[i] for i in rng.integers(len(draws), size=min(len(draws), DRAWS_RESAMPLED))]
        patients = rng.random(max(len(d.targets) for d in some))
        values = []
        for draw in some:
            rows = (patients[: len(draw.targets)] * len(draw.targets)).astype(int)
            values.append(scorer(draw.targets[rows], draw.probabilities[rows]))
        return _mean(values)

    return np.array([replicate() for _ in range(count)])


def _pooled(draws: Draws, scorer: Scorer) -> Replicate:
    """Resample whole hospitals, and which draw; all their rows make one ranking."""
    repeats = min(len(at_site) for at_site in draws)

    def replicate(rng: np.random.Generator) -> float:
        repeat = int(rng.integers(repeats))
        chosen = [draws[site][repeat] for site in rng.integers(len(draws), size=len(draws))]
        targets = np.concatenate([draw.targets for draw in chosen])
        return scorer(targets, np.concatenate([draw.probabilities for draw in chosen]))

    return replicate


def _pooled_draws(draws: Draws) -> list[Prediction]:
    """The rows of all hospitals together, draw by draw."""
    return [
        Prediction(
            "",
            parts[0].shots,
            parts[0].repeat,
            np.concatenate([p.rows for p in parts]),
            np.concatenate([p.targets for p in parts]),
            np.concatenate([p.probabilities for p in parts]),
        )
        for parts in zip(*draws, strict=False)
    ]


def _mean(values: Sequence[float] | Float[np.ndarray, " values"]) -> float:
    known = [value for value in values if value == value]
    return float(np.mean(known)) if known else float("nan")
