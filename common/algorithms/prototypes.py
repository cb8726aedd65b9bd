"""What the metric-based learners share: who belongs to a class, where a class is, how near a row is to it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.errors import StudyError
from clinimeta.common.tasks.episode import Examples
from clinimeta.common.tasks.objective import Objective, encode_targets
from clinimeta.common.typing import Params

INITIAL_SCALE = 8.0
"""By what a cosine is multiplied at first; learned (Gidaris and Komodakis, CVPR 2018, begin at 10)."""
EPSILON = 1e-8
"""Added to a squared length, so that a row embedded at 0 (padding, say) has a direction and a gradient."""


def require_classes(objective: Objective, learner: str) -> None:
    """Raise StudyError where there are no classes to tell apart; `learner` in the plural."""
    if objective.classes < 2:
        raise StudyError(
            f"{learner} need classes",
            found="an application whose target is a number",
            remedy="choose another algorithm, such as maml",
        )


def init_prior(groups: int, embedding: int, rng: torch.Generator) -> Float[Tensor, "groups embedding"]:
    """Fresh prior embeddings, one a group: near one another, so that the data soon decide."""
    return 0.1 * torch.randn(groups, embedding, generator=rng)


def init_log_scale(scale: float = INITIAL_SCALE) -> Float[Tensor, ""]:
    """The logarithm of what a similarity is multiplied by before a softmax: the scale stays positive."""
    return torch.tensor(math.log(scale))


def membership(
    objective: Objective, support: Examples, like: Float[Tensor, "rows embedding"]
) -> Float[Tensor, "rows classes"]:
    """A row's weight in the column of its class, 0 elsewhere; in the dtype of `like`."""
    return encode_targets(objective, support.targets, like) * support.weights[:, None]


def class_means(
    params: Params,
    embedded: Float[Tensor, "rows embedding"],
    member: Float[Tensor, "rows classes"],
    prior_rows: float,
) -> Float[Tensor, "classes embedding"]:
    """Each class's mean embedding over its rows and `prior_rows` copies of its `params["prior"]`.

    Without either it is not a number: a class that nothing is known of has no place.
    """
    total, rows = member.T @ embedded, member.sum(dim=0)[:, None]
    if prior_rows:
        total, rows = total + prior_rows * params["prior"], rows + prior_rows
    return total / rows


def squared_distances(
    rows: Float[Tensor, "rows embedding"], points: Float[Tensor, "points embedding"]
) -> Float[Tensor, "rows points"]:
    """Squared Euclidean distances of all pairs.

    >>> squared_distances(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
    tensor([[25.]])
    """
    return (rows[:, None, :] - points[None, :, :]).square().sum(dim=-1)


def cosines(
    rows: Float[Tensor, "rows embedding"], points: Float[Tensor, "points embedding"]
) -> Float[Tensor, "rows points"]:
    """Cosine similarities of all pairs; 0 with a row or a point at 0.

    >>> cosines(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([[5.0, 0.0]])).flatten()
    tensor([0., 1., 0.])
    """

    def direction(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + EPSILON)

    return direction(rows) @ direction(points).T
