"""From predictions to numbers with intervals, by the bootstrap (Efron & Tibshirani 1993, chapter 8).

Where the hospitals judged stand for hospitals to come, hospitals are resampled first and then the
support draws within each. Where the hospitals are what they are (four, all of them named), the draws
and the patients within each are resampled. Two arms are compared on the same resamples.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from clinimeta.common.metrics import SCORES
from clinimeta.common.rng import derive_seed
from clinimeta.common.study import Evaluation
from clinimeta.simulations.evaluation import Prediction
from clinimeta.simulations.results import Estimate

Scorer = Callable[[np.ndarray, np.ndarray], float]
BySite = Mapping[str, Sequence[Prediction]]
"""Hospital -> its draws, over repetitions and training seeds; the same order for every arm."""

NAMED_SITES = ("own_test_rows", "leave_one_site_out")
"""Splits whose hospitals are a fixed, complete list."""


def bootstrap(
    evaluation: Evaluation, by_site: BySite, score: str
) -> tuple[float, Float[np.ndarray, " replicates"]]:
    """The score over all hospitals, and its bootstrap replicates (equal resamples for every arm)."""
    scorer = SCORES[score]
    rng = np.random.default_rng(derive_seed("bootstrap", evaluation.name, score))
    if evaluation.pooled:
        return _pooled(by_site, scorer, evaluation.bootstrap, rng)
    if evaluation.split in NAMED_SITES:
        return _named(by_site, scorer, evaluation.bootstrap, rng)
    return _hospitals(by_site, scorer, evaluation.bootstrap, rng)


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


def _hospitals(
    by_site: BySite, scorer: Scorer, count: int, rng: np.random.Generator
) -> tuple[float, Float[np.ndarray, " replicates"]]:
    values = [np.array([scorer(d.targets, d.probabilities) for d in draws]) for draws in by_site.values()]
    if not values:
        return float("nan"), np.full(count, np.nan)
    replicates = np.empty(count)
    for i in range(count):
        chosen = rng.integers(len(values), size=len(values))
        means = [_mean(values[s][rng.integers(len(values[s]), size=len(values[s]))]) for s in chosen]
        replicates[i] = _mean(np.array(means))
    return _mean(np.array([_mean(v) for v in values])), replicates


def _named(
    by_site: BySite, scorer: Scorer, count: int, rng: np.random.Generator
) -> tuple[float, Float[np.ndarray, " replicates"]]:
    point = [_mean(np.array([scorer(d.targets, d.probabilities) for d in ds])) for ds in by_site.values()]
    replicates = np.empty(count)
    for i in range(count):
        values = []
        for draws in by_site.values():
            draw = draws[rng.integers(len(draws))]
            rows = rng.integers(len(draw.targets), size=len(draw.targets))
            values.append(scorer(draw.targets[rows], draw.probabilities[rows]))
        replicates[i] = _mean(np.array(values))
    return _mean(np.array(point)), replicates


def _pooled(
    by_site: BySite, scorer: Scorer, count: int, rng: np.random.Generator
) -> tuple[float, Float[np.ndarray, " replicates"]]:
    """Rows of all hospitals in one ranking, a draw at a time; whole hospitals are resampled."""
    draws = list(by_site.values())
    if not draws:
        return float("nan"), np.full(count, np.nan)
    repeats = min(len(d) for d in draws)

    def score(sites: Sequence[int], repeat: int) -> float:
        targets = np.concatenate([draws[s][repeat].targets for s in sites])
        probabilities = np.concatenate([draws[s][repeat].probabilities for s in sites])
        return scorer(targets, probabilities)

    point = _mean(np.array([score(range(len(draws)), repeat) for repeat in range(repeats)]))
    replicates = [
        score(rng.integers(len(draws), size=len(draws)).tolist(), int(rng.integers(repeats)))
        for _ in range(count)
    ]
    return point, np.array(replicates)


def _mean(values: Float[np.ndarray, " values"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
