"""Model-agnostic meta-learning (Finn, Abbeel, Levine; ICML 2017)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.models.base import Model
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("maml")
@dataclass(frozen=True, slots=True)
class MAML:
    """Learn initial weights from which a few gradient steps on a new hospital's patients suffice.

    Algorithm 2 of the paper. `first_order` drops the second derivatives (its section 5.2).
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(0)] = 5
    inner_rate: Annotated[float, Gt(0)] = 0.1
    first_order: bool = False

    @property
    def exact(self) -> bool:
        """Not without the second derivatives."""
        return not self.first_order

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The fast weights: `inner_steps` of gradient descent from the initial weights."""
        return gradient_descent(
            self.model,
            self.objective,
            params,
            support,
            steps=self.inner_steps,
            rate=self.inner_rate,
            first_order=self.first_order,
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the fast weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the fast weights."""
        return query_loss(self, params, episode)
