"""Meta-SGD (Li, Zhou, Chen, Li; 2017): learn how far to step in every coordinate, too."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.algorithms.step_sizes import check_bound, raw_step_size, step_size
from clinimeta.common.models.base import Model
from clinimeta.common.params import map_params, part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("meta_sgd")
@dataclass(frozen=True, slots=True)
class MetaSGD:
    """Learn initial weights, and one step size for each of them.

    Algorithm 1 of the paper: theta' = theta - alpha * grad L(theta), theta and alpha both learned. It
    differs in three things: several inner steps share the alpha; all coordinates start at
    `initial_rate`; and alpha stays between 0 and `max_rate` (see `step_sizes`).
    Meta-parameters: `weights.NAME`, and `rates.NAME` of the same shape, from which
    alpha = step_size(rates, max_rate).
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(0)] = 5
    initial_rate: Annotated[float, Gt(0)] = 0.1
    max_rate: Annotated[float, Gt(0)] = 0.5
    first_order: bool = False

    def __post_init__(self) -> None:
        """Raise StudyError where the step sizes would have to start beyond their bound."""
        check_bound("meta_sgd", self.initial_rate, self.max_rate)

    @property
    def exact(self) -> bool:
        """Not without the second derivatives."""
        return not self.first_order

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights, and what makes every step size `initial_rate`."""
        weights = self.model.init(rng)
        raw = raw_step_size(self.initial_rate, self.max_rate)
        rates = map_params(lambda w: torch.full_like(w, raw), weights)
        return {**prefixed(weights, "weights"), **prefixed(rates, "rates")}

    def rates(self, params: Params) -> Params:
        """The step sizes alpha, shaped as the weights: from 0 to `max_rate` whatever the outer loop did."""
        return map_params(lambda raw: step_size(raw, self.max_rate), part(params, "rates"))

    def adapt(self, params: Params, support: Examples) -> Params:
        """The fast weights: `inner_steps` with the learned step sizes from the initial weights."""
        return gradient_descent(
            self.model,
            self.objective,
            part(params, "weights"),
            support,
            steps=self.inner_steps,
            rate=self.rates(params),
            first_order=self.first_order,
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the fast weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the fast weights."""
        return query_loss(self, params, episode)
