"""Diagnosis: which of a few classes a patient belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.metrics import Mean
from clinimeta.common.tasks.episode import Examples


@APPLICATIONS.register("diagnosis")
@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Few-shot diagnosis or risk: two classes by one logit, more by softmax, cross-entropy."""

    classes: int

    @property
    def outputs(self) -> int:
        """One logit for two classes, else one a class."""
        return 1 if self.classes == 2 else self.classes

    def loss(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Float[Tensor, ""]:
        """Weighted mean cross-entropy in nats."""
        losses = self._losses(outputs, examples.targets)
        return (losses * examples.weights).sum() / examples.weights.sum().clamp(min=1.0)

    def metrics(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Mapping[str, Mean]:
        """Query loss and accuracy."""
        weights = examples.weights
        correct = self.probabilities(outputs).argmax(dim=-1) == examples.targets
        total = float(weights.sum())
        return {
            "query_loss": Mean(float((self._losses(outputs, examples.targets) * weights).sum()), total),
            "query_accuracy": Mean(float((correct * weights).sum()), total),
        }

    def from_class_scores(self, scores: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows outputs"]:
        """Two scores make one logit: their difference."""
        return scores[:, 1:] - scores[:, :1] if self.classes == 2 else scores

    def probabilities(self, outputs: Float[Tensor, "rows outputs"]) -> Float[Tensor, "rows classes"]:
        """One probability a class, in the order of the study's classes."""
        if self.classes == 2:
            return torch.cat([torch.sigmoid(-outputs), torch.sigmoid(outputs)], dim=-1)
        return torch.softmax(outputs, dim=-1)

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.classes == 2:
            return F.binary_cross_entropy_with_logits(
                outputs.squeeze(-1), targets.to(outputs.dtype), reduction="none"
            )
        return F.cross_entropy(outputs, targets, reduction="none")
