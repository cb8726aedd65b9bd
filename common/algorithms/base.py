"""The interface of a meta-learner: pure functions of its meta-parameters.

The federation does not care which learner it carries: it moves a gradient of `Params`, whatever they
are (initial weights, an embedding, a generator, step sizes).
"""

from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.models.base import Model
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params

A = TypeVar("A")
"""What a learner makes of a support set: fast weights, prototypes, generated weights."""


class MetaLoss(NamedTuple):
    """A task's meta-loss, and the query outputs it was taken on (for the metrics)."""

    loss: Float[Tensor, ""]
    outputs: Float[Tensor, "query outputs"]


@runtime_checkable
class MetaLearner(Protocol[A]):
    """Adapts to a task from its support set. Every method is pure and works under `vmap` and `grad`."""

    @property
    def model(self) -> Model:
        """The network that the learner adapts or embeds with."""
        ...

    @property
    def objective(self) -> Objective:
        """What its tasks optimise."""
        ...

    @property
    def exact(self) -> bool:
        """Whether its meta-gradient is the derivative of its meta-loss.

        False where the published update is another direction: first-order variants, Reptile, implicit
        gradients. Such a learner returns `surrogate(...)`, and its own tests hold it to its definition.
        """
        ...

    def init(self, rng: torch.Generator) -> Params:
        """Fresh meta-parameters, all of them, in one flat mapping."""
        ...

    def adapt(self, params: Params, support: Examples) -> A:
        """The inner loop: what the learner makes of a support set (run by the site)."""
        ...

    def predict(self, params: Params, adapted: A, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """Outputs for new rows after adaptation."""
        ...

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """What the outer loop minimises; its gradient in `params` is the meta-gradient."""
        ...


@runtime_checkable
class Uncertain(Protocol):
    """A learner that also says how far off a predicted number may be."""

    def spread(self, params: Params, adapted: Any, inputs: Inputs) -> Float[Tensor, " rows"]:
        """The standard deviation of each row's prediction, in units of the target; numbers only."""
        ...


def query_loss(learner: MetaLearner[A], params: Params, episode: Episode) -> MetaLoss:
    """The usual meta-loss: adapt on the support set, be judged on the query set."""
    adapted = learner.adapt(params, episode.support)
    outputs = learner.predict(params, adapted, episode.query.inputs)
    return MetaLoss(learner.objective.loss(outputs, episode.query), outputs)


def surrogate(value: Float[Tensor, ""], params: Params, direction: Params) -> Float[Tensor, ""]:
    """A loss that is worth `value` and whose gradient in `params` is `direction`, both held constant."""
    slope = sum(((params[n] - params[n].detach()) * direction[n].detach()).sum() for n in params)
    return value.detach() + slope
