"""What a task optimises and reports: the interface that applications implement and learners use."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clinimeta.common.metrics import Mean
from clinimeta.common.tasks.episode import Examples


@runtime_checkable
class Objective(Protocol):
    """The loss and the metrics of one kind of task."""

    @property
    def outputs(self) -> int:
        """Width of a model's output: 1 for two classes or a number, else the number of classes."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes; 0 where the target is a number."""
        ...

    def loss(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Float[Tensor, ""]:
        """The weighted mean loss; padding has weight 0."""
        ...

    def metrics(self, outputs: Float[Tensor, "rows outputs"], examples: Examples) -> Mapping[str, Mean]:
        """Aggregates over the rows, named in `metrics.ALLOWED`."""
        ...

    def from_class_scores(self, scores: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows outputs"]:
        """Turn one score a class (a negative distance, say) into outputs."""
        ...

    def probabilities(self, outputs: Float[Tensor, "rows outputs"]) -> Float[Tensor, "rows columns"]:
        """What the outputs mean to a user: one probability a class, or the predicted number itself."""
        ...


def target_width(objective: Objective) -> int:
    """How many numbers a target is encoded as: one a class, or the number itself."""
    return max(objective.classes, 1)


def encode_targets(
    objective: Objective, targets: Shaped[Tensor, " rows"], like: Tensor
) -> Float[Tensor, "rows columns"]:
    """One column a class, 1 in the row's own; or the number. In the dtype of `like`; works under `vmap`."""
    if not objective.classes:
        return targets[:, None].to(like.dtype)
    classes = torch.arange(objective.classes, device=targets.device)
    return (targets[:, None] == classes).to(like.dtype)
