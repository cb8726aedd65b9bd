"""MAML++ (Antoniou, Edwards, Storkey; ICLR 2019): "How to train your MAML"."""

from collections.abc import Iterator
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


@ALGORITHMS.register("maml++")
@dataclass(frozen=True, slots=True)
class MAMLPlusPlus:
    """Learn initial weights, and for each layer and each inner step a step size.

    From section 4 of the paper: the step sizes per layer per step (LSLR; a layer is one tensor here), and
    with `multi_step` the multi-step loss (MSL, eq. 4): judged after every inner step, not only after the
    last. The paper moves MSL's weights towards the last step as training goes on; a learner here does
    not know how long it has been trained, so they stay equal. Step sizes stay between 0 and `max_rate`;
    the paper leaves them free, and then some trainings on numbers diverge (docs/results.md).
    Meta-parameters: `weights.NAME`, and `rates.NAME` of shape `[inner_steps]`, from which a layer's step
    sizes are step_size(rates, max_rate).
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(1)] = 5
    initial_rate: Annotated[float, Gt(0)] = 0.1
    max_rate: Annotated[float, Gt(0)] = 0.5
    multi_step: bool = False
    first_order: bool = False

    def __post_init__(self) -> None:
        """Raise StudyError where the step sizes would have to start beyond their bound."""
        check_bound("maml++", self.initial_rate, self.max_rate)

    @property
    def exact(self) -> bool:
        """Not without the second derivatives."""
        return not self.first_order

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights, and what makes every layer's and step's size `initial_rate`."""
        weights = self.model.init(rng)
        raw = raw_step_size(self.initial_rate, self.max_rate)
        rates = map_params(lambda w: w.new_full((self.inner_steps,), raw), weights)
        return {**prefixed(weights, "weights"), **prefixed(rates, "rates")}

    def rates(self, params: Params) -> Params:
        """The step sizes `[inner_steps]` of every layer: from 0 to `max_rate` whatever the outer loop did."""
        return map_params(lambda raw: step_size(raw, self.max_rate), part(params, "rates"))

    def adapt(self, params: Params, support: Examples) -> Params:
        """The fast weights after the last inner step."""
        *_, last = self.path(params, support)
        return last

    def path(self, params: Params, support: Examples) -> Iterator[Params]:
        """The fast weights after every inner step (eq. 2 with the step's own rates)."""
        fast, rates = part(params, "weights"), self.rates(params)
        for step in range(self.inner_steps):
            fast = gradient_descent(
                self.model,
                self.objective,
                fast,
                support,
                steps=1,
                rate={name: of_layer[step] for name, of_layer in rates.items()},
                first_order=self.first_order,
            )
            yield fast

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the fast weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the fast weights, after the last step or averaged over all steps."""
        if not self.multi_step:
            return query_loss(self, params, episode)
        query, losses = episode.query, []
        for fast in self.path(params, episode.support):
            outputs = self.predict(params, fast, query.inputs)
            losses.append(self.objective.loss(outputs, query))
        return MetaLoss(torch.stack(losses).mean(), outputs)
