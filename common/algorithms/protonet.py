"""Prototypical networks (Snell, Swersky, Zemel; NeurIPS 2017)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.errors import StudyError
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("protonet")
@dataclass(frozen=True, slots=True)
class ProtoNet:
    """Learn an embedding in which a patient belongs to the class whose mean embedding is nearest.

    Equations 1 and 2 of the paper, squared Euclidean distance. Where it differs: with
    `prior_rows` > 0 a class's prototype is the mean over its support rows and that many copies of a
    meta-learned one (a shrinkage), so that a support set without a death still has a prototype of it.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    prior_rows: Annotated[float, Ge(0)] = 0.0
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where there are no classes to have prototypes of."""
        if self.objective.classes < 2:
            raise StudyError(
                "prototypical networks need classes",
                found="an application whose target is a number",
                remedy="choose another algorithm, such as maml",
            )

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder's weights, and the prior prototypes `[classes, embedding]` where there are some."""
        params = dict(prefixed(self.embedder.init(rng), "embedder"))
        if self.prior_rows:
            draw = torch.randn(self.objective.classes, self.embedding, generator=rng)
            params["prior"] = 0.1 * draw
        return params

    def adapt(self, params: Params, support: Examples) -> Float[Tensor, "classes embedding"]:
        """The prototypes: each class's mean embedding over the support set (eq. 1)."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        # A comparison instead of one_hot, which vmap cannot take; padding has weight 0.
        classes = torch.arange(self.objective.classes, device=embedded.device)
        member = (support.targets[:, None] == classes).to(embedded.dtype) * support.weights[:, None]
        total, rows = member.T @ embedded, member.sum(dim=0)[:, None]
        if self.prior_rows:
            total, rows = total + self.prior_rows * params["prior"], rows + self.prior_rows
        return total / rows

    def predict(
        self, params: Params, adapted: Float[Tensor, "classes embedding"], inputs: Inputs
    ) -> Float[Tensor, "rows outputs"]:
        """Negative squared distances to the prototypes, as the objective's outputs (eq. 2)."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        distances = (embedded[:, None, :] - adapted[None, :, :]).square().sum(dim=-1)
        return self.objective.from_class_scores(-distances)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss under the prototypes."""
        return query_loss(self, params, episode)
