"""Almost no inner loop (Raghu, Raghu, Bengio, Vinyals; ICLR 2020)."""

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


@ALGORITHMS.register("anil")
@dataclass(frozen=True, slots=True)
class ANIL:
    """Learn a body that serves every hospital as it is, and a head from which a few steps suffice.

    MAML whose inner loop moves the last layer only (section 4 of the paper), in training as afterwards;
    the outer loop learns body and head. `first_order` drops the second derivatives.
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
        """The initial body, and the head after `inner_steps` of gradient descent."""
        return gradient_descent(
            self.model,
            self.objective,
            params,
            support,
            steps=self.inner_steps,
            rate=dict.fromkeys(self.model.head, self.inner_rate),
            first_order=self.first_order,
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the initial body and the fast head."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the initial body and the fast head."""
        return query_loss(self, params, episode)
