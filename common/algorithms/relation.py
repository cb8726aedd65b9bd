"""Relation networks (Sung, Yang, Zhang, Xiang, Torr, Hospedales; CVPR 2018)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.perceptron import init_perceptron, perceptron
from clinimeta.common.algorithms.prototypes import class_means, init_prior, membership, require_classes
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params

LEAST_SPREAD = 0.01
"""Classes that are nearer one another than this are not drawn apart: between them is noise."""


@ALGORITHMS.register("relation")
@dataclass(frozen=True, slots=True)
class RelationNet:
    """Learn an embedding and, instead of a distance in it, how much a patient belongs with a class.

    Equation 1 of the paper: r = g(C(f(class), f(query))), C puts the two side by side and g, the relation
    module, is a perceptron with `hidden` units. Where it differs: a class's embedding is the mean
    over its support rows instead of the sum, so that it does not grow with the shots; both sides are
    centred and scaled by the task's class embeddings, in place of the module's batch normalisation,
    without which a small g does not begin to learn; r is a score for the objective's cross-entropy instead
    of a number in [0, 1] for a squared error (its eq. 2); and there is an optional prior, as in `protonet`.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 32
    hidden: Annotated[int, Ge(1)] = 32
    prior_rows: Annotated[float, Ge(0)] = 0.0
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where there are no classes to relate to."""
        require_classes(self.objective, "relation networks")

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder f, the relation module g, and prior class embeddings where there are some."""
        params = {
            **prefixed(self.embedder.init(rng), "embedder"),
            **init_perceptron("relation", (2 * self.embedding, self.hidden, 1), rng),
        }
        if self.prior_rows:
            params["prior"] = init_prior(self.objective.classes, self.embedding, rng)
        return params

    def adapt(self, params: Params, support: Examples) -> Float[Tensor, "classes embedding"]:
        """The class embeddings: each class's mean over the support set."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        member = membership(self.objective, support, embedded)
        return class_means(params, embedded, member, self.prior_rows)

    def predict(
        self, params: Params, adapted: Float[Tensor, "classes embedding"], inputs: Inputs
    ) -> Float[Tensor, "rows outputs"]:
        """The relation scores (eq. 1), as the objective's outputs."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        center = adapted.mean(dim=0)
        scale = torch.rsqrt((adapted - center).square().mean() + LEAST_SPREAD**2)
        classes, rows = (adapted - center) * scale, (embedded - center) * scale
        shape = (len(rows), *classes.shape)
        pairs = torch.cat([classes[None, :, :].expand(shape), rows[:, None, :].expand(shape)], dim=-1)
        # One long matrix, so that weights that differ by task are not repeated for every row.
        scores = perceptron(params, "relation", pairs.flatten(0, 1)).reshape(shape[:2])
        return self.objective.from_class_scores(scores)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the relation scores."""
        return query_loss(self, params, episode)
