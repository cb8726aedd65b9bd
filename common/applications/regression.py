"""Regression: a number for each patient (a dose, a stay's length)."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.metrics import Mean
from clinimeta.common.tasks.episode import Examples


@APPLICATIONS.register("regression")
@dataclass(frozen=True, slots=True)
class Regression:
    """Few-shot regression of one number, mean squared error."""

    classes: int

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def loss(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Float[Tensor, ""]:
        """Weighted mean squared error, in squared units of the target."""
        errors = (outputs.squeeze(-1) - examples.targets).square()
        return (errors * examples.weights).sum() / examples.weights.sum().clamp(min=1.0)

    def metrics(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Mapping[str, Mean]:
        """The squared error."""
        errors = (outputs.squeeze(-1) - examples.targets).square()
        mean = Mean(float((errors * examples.weights).sum()), float(examples.weights.sum()))
        return {"query_loss": mean, "query_squared_error": mean}

    def from_class_scores(self, scores: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows outputs"]:
        """There are no classes to score."""
        raise TypeError("a regression has no classes; choose a learner that predicts numbers")

    def probabilities(self, outputs: Float[Tensor, "rows outputs"]) -> Float[Tensor, "rows outputs"]:
        """The predicted number."""
        return outputs
