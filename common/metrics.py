"""What is measured: means that add up over sites, and scores of predictions.

Only the names in `ALLOWED` may leave a site, each as a sum and a weight, never per patient.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

ALLOWED = frozenset({"query_loss", "query_accuracy", "query_squared_error"})
"""The aggregate metrics that a site may send with its meta-gradient."""


class Mean(NamedTuple):
    """A mean that can be merged: the sum of the values and the sum of their weights."""

    total: float
    weight: float

    @property
    def value(self) -> float:
        """The mean; NaN over nothing."""
        return self.total / self.weight if self.weight else float("nan")


def merge(left: Mapping[str, Mean], right: Mapping[str, Mean]) -> dict[str, Mean]:
    """Add two sets of means, name by name; `{}` is the zero.

    >>> merge({"query_loss": Mean(3.0, 2.0)}, {"query_loss": Mean(1.0, 2.0)})["query_loss"].value
    1.0
    """
    zero = Mean(0.0, 0.0)
    return {
        name: Mean(*(a + b for a, b in zip(left.get(name, zero), right.get(name, zero), strict=True)))
        for name in sorted({*left, *right})
    }


def auroc(targets: Int[np.ndarray, " rows"], probabilities: Float[np.ndarray, "rows classes"]) -> float:
    """Area under the ROC curve (one-vs-one mean beyond two classes); NaN where a class is absent."""
    classes = probabilities.shape[1]
    if len(np.unique(targets)) < classes or not np.isfinite(probabilities).all():
        return float("nan")
    if classes == 2:  # Mann-Whitney by ranks: what a bootstrap calls a hundred thousand times
        positive = targets == 1
        hits = int(positive.sum())
        ranks = rankdata(probabilities[:, 1])[positive].sum()
        return float((ranks - hits * (hits + 1) / 2) / (hits * (len(targets) - hits)))
    return float(roc_auc_score(targets, probabilities, multi_class="ovo", labels=np.arange(classes)))


def accuracy(targets: Int[np.ndarray, " rows"], probabilities: Float[np.ndarray, "rows classes"]) -> float:
    """Share of rows whose most probable class is the true one (threshold 0.5 for two classes).

    >>> accuracy(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))  # doctest: +ELLIPSIS
    0.66...
    """
    if not np.isfinite(probabilities).all():
        return float("nan")
    return float((probabilities.argmax(axis=1) == targets).mean())


def calibration_error(
    targets: Int[np.ndarray, " rows"], probabilities: Float[np.ndarray, "rows classes"], bins: int = 10
) -> float:
    """Expected calibration error of the top class, equal-width bins (Guo et al., ICML 2017, eq. 3)."""
    if not np.isfinite(probabilities).all():
        return float("nan")
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(correct[inside].mean()) - float(confidence[inside].mean())) * float(inside.mean())
        for inside in (bin_of == b for b in range(bins))
        if inside.any()
    ]
    return float(sum(gaps))


def absolute_error(targets: Float[np.ndarray, " rows"], predicted: Float[np.ndarray, "rows 1"]) -> float:
    """Mean absolute error, in units of the target.

    >>> absolute_error(np.array([1.0, 2.0]), np.array([[1.5], [1.0]]))
    0.75
    """
    error = float(np.abs(predicted[:, 0] - targets).mean())
    return error if np.isfinite(error) else float("nan")


CLASS_SCORES = {"auroc": auroc, "accuracy": accuracy, "calibration_error": calibration_error}
NUMBER_SCORES = {"absolute_error": absolute_error}
SCORES: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {**CLASS_SCORES, **NUMBER_SCORES}
"""The scores that a study's evaluation can ask for, by name: of classes, and of a number."""
