"""Reptile (Nichol, Achiam, Schulman; 2018): "On first-order meta-learning algorithms"."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss, surrogate
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.models.base import Model
from clinimeta.common.params import map_params
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("reptile")
@dataclass(frozen=True, slots=True)
class Reptile:
    """Train at a hospital for some steps, then move the initial weights towards where that led.

    Algorithm 2 of the paper: the meta-gradient is (theta - phi) / inner_rate (its section 3), with phi
    reached from theta by `inner_steps` on mini-batches. The paper does not split a task; the
    mini-batches here are the episode's two halves in turn, support set first, so that all patients teach
    and a step's gradient meets that of other patients, which is what its section 5.1 lives on.
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(1)] = 5
    inner_rate: Annotated[float, Gt(0)] = 0.1
    exact: ClassVar[bool] = False

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The weights after `inner_steps` of gradient descent on the support set."""
        return self._train(params, support)

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the adapted weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """Worth the query loss after adapting to the support set only; its gradient is Reptile's."""
        theta = map_params(lambda p: p.detach(), params)
        phi = self._train(theta, episode.support, episode.query)
        direction = map_params(lambda start, end: (start - end) / self.inner_rate, theta, phi)
        loss, outputs = query_loss(self, theta, episode)
        return MetaLoss(surrogate(loss, params, direction), outputs)

    def _train(self, weights: Params, *batches: Examples) -> Params:
        for step in range(self.inner_steps):
            weights = gradient_descent(
                self.model,
                self.objective,
                weights,
                batches[step % len(batches)],
                steps=1,
                rate=self.inner_rate,
                first_order=True,
            )
        return weights
