"""The baselines in the meta-learners' harness: train one model for all, then maybe fine-tune it.

FedAvg is `steps = 0` with several local steps a round; FedAvg + fine-tuning is the same
meta-parameters with `steps > 0`; local-only training is `steps > 0` from fresh weights.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.models.base import Model
from clinimeta.common.tasks.episode import Episode, Examples, concatenate
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("fine_tune")
@dataclass(frozen=True, slots=True)
class FineTune:
    """Baseline: one model for all hospitals (FedAvg), fine-tuned by gradient steps where `steps` > 0.

    The training loss is the plain one (McMahan et al., AISTATS 2017): it knows nothing of the
    adaptation that may follow.
    """

    model: Model
    objective: Objective
    steps: Annotated[int, Ge(0)] = 0
    rate: Annotated[float, Gt(0)] = 0.1
    exact: ClassVar[bool] = True

    def init(self, rng: torch.Generator) -> Params:
        """The weights."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The weights after `steps` of gradient descent on the support set."""
        return gradient_descent(
            self.model, self.objective, params, support, steps=self.steps, rate=self.rate, first_order=True
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the adapted weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The plain loss over all rows of the episode, adapted to nothing."""
        rows = concatenate(episode.support, episode.query)
        outputs = self.model.apply(params, rows.inputs)
        return MetaLoss(self.objective.loss(outputs, rows), outputs[episode.support.size :])
