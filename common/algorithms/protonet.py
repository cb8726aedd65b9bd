"""Prototypical networks (Snell, Swersky, Zemel; NeurIPS 2017)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.prototypes import (
    class_means,
    cosines,
    init_log_scale,
    init_prior,
    membership,
    require_classes,
    squared_distances,
)
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("protonet")
@dataclass(frozen=True, slots=True)
class ProtoNet:
    """Learn an embedding in which a patient belongs to the class whose mean embedding is nearest.

    Equations 1 and 2 of the paper, by squared Euclidean distance or (its section 3.2) by cosine, which is
    multiplied by a learned scale. Where it differs: with `prior_rows` > 0 a class's prototype is the
    mean over its support rows and that many copies of a meta-learned one (a shrinkage), so that a support
    set without a death still has a prototype of it.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    prior_rows: Annotated[float, Ge(0)] = 0.0
    distance: Literal["euclidean", "cosine"] = "euclidean"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where there are no classes to have prototypes of."""
        require_classes(self.objective, "prototypical networks")

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder, prior prototypes `[classes, embedding]` where there are some, a cosine's scale."""
        params = dict(prefixed(self.embedder.init(rng), "embedder"))
        if self.prior_rows:
            params["prior"] = init_prior(self.objective.classes, self.embedding, rng)
        if self.distance == "cosine":
            params["log_scale"] = init_log_scale()
        return params

    def adapt(self, params: Params, support: Examples) -> Float[Tensor, "classes embedding"]:
        """The prototypes: each class's mean embedding over the support set (eq. 1)."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        member = membership(self.objective, support, embedded)
        return class_means(params, embedded, member, self.prior_rows)

    def predict(
        self, params: Params, adapted: Float[Tensor, "classes embedding"], inputs: Inputs
    ) -> Float[Tensor, "rows outputs"]:
        """Nearness to the prototypes, as the objective's outputs (eq. 2)."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        if self.distance == "cosine":
            scores = params["log_scale"].exp() * cosines(embedded, adapted)
        else:
            scores = -squared_distances(embedded, adapted)
        return self.objective.from_class_scores(scores)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss under the prototypes."""
        return query_loss(self, params, episode)
