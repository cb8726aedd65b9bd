"""FedRep (Collins, Hassani, Mokhtari, Shakkottai; ICML 2021): a shared representation, personal heads."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.errors import StudyError
from clinimeta.common.models.base import Model
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("fedrep")
@dataclass(frozen=True, slots=True)
class FedRep:
    """Baseline: all hospitals learn one body, the model without its last layer; each keeps a head of its own.

    Algorithm 1 of the paper: `head_steps` on the head with the body fixed, then a step on the body with
    that head fixed. Where it differs: sites keep nothing between rounds, so that a hospital's head starts
    from the one that all were given in the beginning, and stays that of no one; and the body's gradient is
    taken on the query set, the head's on the support set.
    """

    model: Model
    objective: Objective
    head_steps: Annotated[int, Ge(1)] = 10
    head_rate: Annotated[float, Gt(0)] = 0.1
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise StudyError where the model is a head and nothing else."""
        if set(self.model.init(generator("template"))) == set(self.model.head):
            raise StudyError(
                "there is no body to share",
                where="algorithm 'fedrep'",
                found="a model of one layer",
                expected="a model with a body below its last layer, such as mlp",
                remedy="choose another model or algorithm",
            )

    def init(self, rng: torch.Generator) -> Params:
        """The body, and the head that every hospital starts from."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The shared body, and the head after `head_steps` of gradient descent on the support set."""
        return gradient_descent(
            self.model,
            self.objective,
            params,
            support,
            steps=self.head_steps,
            rate=dict.fromkeys(self.model.head, self.head_rate),
            first_order=True,
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model of the shared body and the hospital's head."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss as a function of the body alone: the hospital's head is held constant."""
        fitted = self.adapt(map_params(lambda p: p.detach(), params), episode.support)
        weights = {**params, **{name: fitted[name].detach() for name in self.model.head}}
        outputs = self.model.apply(weights, episode.query.inputs)
        return MetaLoss(self.objective.loss(outputs, episode.query), outputs)
