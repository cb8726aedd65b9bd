"""The classifier of Simple CNAPS (Bateni, Goyal, Masrani, Wood, Sigal; CVPR 2020)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.prototypes import class_means, init_prior, membership, require_classes
from clinimeta.common.models.base import Model
from clinimeta.common.params import part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


class Clusters(NamedTuple):
    """Where each class is in the embedding, and its shape: L with L L^T = Q, a covariance."""

    means: Float[Tensor, "classes embedding"]
    factors: Float[Tensor, "classes embedding embedding"]


@ALGORITHMS.register("mahalanobis")
@dataclass(frozen=True, slots=True)
class Mahalanobis:
    """Learn an embedding in which a patient belongs to the nearest class, measured by that class's spread.

    Section 4 of the paper: d_k(x) = (x - mu_k)^T Q_k^-1 (x - mu_k) / 2, Q_k = lambda_k Sigma_k +
    (1 - lambda_k) Sigma + beta I with lambda_k = n_k / (n_k + 1): few rows have the whole task's covariance
    Sigma, many their own. `ridge` is beta. Where it differs: the embedding is the model's, not adapted by
    CNAPS's FiLM layers; and there is an optional prior, as in `protonet`, which moves the means only.
    """

    model: Model
    objective: Objective
    embedding: Annotated[int, Ge(1)] = 16
    ridge: Annotated[float, Gt(0)] = 1.0
    prior_rows: Annotated[float, Ge(0)] = 0.0
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where there are no classes to have a spread."""
        require_classes(self.objective, "Mahalanobis distances to classes")

    @property
    def embedder(self) -> Model:
        """The model, its output widened to the embedding."""
        return dataclasses.replace(self.model, outputs=self.embedding)  # type: ignore[type-var]

    def init(self, rng: torch.Generator) -> Params:
        """The embedder's weights, and the prior means `[classes, embedding]` where there are some."""
        params = dict(prefixed(self.embedder.init(rng), "embedder"))
        if self.prior_rows:
            params["prior"] = init_prior(self.objective.classes, self.embedding, rng)
        return params

    def adapt(self, params: Params, support: Examples) -> Clusters:
        """The classes' means mu_k and Cholesky factors of Q_k."""
        embedded = self.embedder.apply(part(params, "embedder"), support.inputs)
        member = membership(self.objective, support, embedded)
        spread = covariances(embedded, torch.cat([member, support.weights[:, None]], dim=1))
        of_class, of_task = spread[:-1], spread[-1]
        rows = member.sum(dim=0)[:, None, None]
        share = rows / (rows + 1)  # lambda_k
        identity = torch.eye(self.embedding, dtype=embedded.dtype, device=embedded.device)
        shrunk = share * of_class + (1 - share) * of_task + self.ridge * identity
        # Without the check of linalg.cholesky, which looks at values: what diverged stays not a number.
        factors = torch.linalg.cholesky_ex(shrunk).L
        return Clusters(class_means(params, embedded, member, self.prior_rows), factors)

    def predict(self, params: Params, adapted: Clusters, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """Negative half squared Mahalanobis distances -d_k, as the objective's outputs."""
        embedded = self.embedder.apply(part(params, "embedder"), inputs)
        deviations = embedded[None, :, :] - adapted.means[:, None, :]
        whitened = torch.linalg.solve_triangular(adapted.factors, deviations.mT, upper=False)
        return self.objective.from_class_scores(-whitened.square().sum(dim=1).T / 2)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss under the classes' means and covariances."""
        return query_loss(self, params, episode)


def covariances(
    embedded: Float[Tensor, "rows embedding"], member: Float[Tensor, "rows groups"]
) -> Float[Tensor, "groups embedding embedding"]:
    """Each group's sample covariance (divisor n - 1); zero where a group has fewer than two rows."""
    rows = member.sum(dim=0)
    means = member.T @ embedded / rows.clamp(min=1)[:, None]
    deviations = embedded[None, :, :] - means[:, None, :]
    scatter = deviations.mT @ (member.T[:, :, None] * deviations)
    return scatter / (rows - 1).clamp(min=1)[:, None, None]
