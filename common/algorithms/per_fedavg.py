"""Per-FedAvg (Fallah, Mokhtari, Ozdaglar; NeurIPS 2020): personalised federated learning by MAML."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss, surrogate
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.models.base import Model
from clinimeta.common.params import add, map_params
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective, encode_targets
from clinimeta.common.typing import Inputs, Params


@ALGORITHMS.register("per_fedavg")
@dataclass(frozen=True, slots=True)
class PerFedAvg:
    """Baseline: federated averaging of weights from which one gradient step personalises.

    Algorithm 1 of the paper: a local step goes along (I - alpha H(w; D'')) g, where
    g = grad f(w - alpha grad f(w; D); D'), H is the Hessian of f, and alpha = `inner_rate`. Variant `HF` (its
    section 5) multiplies by H with a difference of gradients, `delta` times g to either side; `FO` leaves H
    out. Of the three batches D is the support set, D' and D'' are halves of the query set. The paper's tau
    local steps are the training's `local_meta_steps`.
    """

    model: Model
    objective: Objective
    inner_rate: Annotated[float, Gt(0)] = 0.1
    variant: Literal["HF", "FO"] = "HF"
    delta: Annotated[float, Gt(0)] = 0.01  # about where rounding in float32 and curvature balance
    exact: ClassVar[bool] = False

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The personal weights: one gradient step on the support set."""
        return gradient_descent(
            self.model, self.objective, params, support, steps=1, rate=self.inner_rate, first_order=True
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the personal weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """Worth the query loss of the personal weights; its gradient is the direction of algorithm 1."""
        w = map_params(lambda p: p.detach(), params)
        first, second = halves(self.objective, episode.query)
        direction = self._gradient(self.adapt(w, episode.support), first)
        if self.variant == "HF":
            ahead, behind = (
                self._gradient(add(w, direction, step), second) for step in (self.delta, -self.delta)
            )
            times_hessian = map_params(lambda a, b: (a - b) / (2 * self.delta), ahead, behind)
            direction = add(direction, times_hessian, -self.inner_rate)
        loss, outputs = query_loss(self, w, episode)
        return MetaLoss(surrogate(loss, params, direction), outputs)

    def _gradient(self, weights: Params, batch: Examples) -> Params:
        """Grad f(weights; batch)."""

        def f(w: Params) -> Float[Tensor, ""]:
            return self.objective.loss(self.model.apply(w, batch.inputs), batch)

        gradient: Params = grad(f)(weights)
        return gradient


def halves(objective: Objective, rows: Examples) -> tuple[Examples, Examples]:
    """Each class's rows in turn (all rows, for a number); padding is in neither half.

    Where that leaves the second half without a row, it is the first one again.
    """
    groups = encode_targets(objective, rows.targets, rows.weights)
    counts = (groups if objective.classes else torch.ones_like(groups)) * (rows.weights > 0)[:, None]
    place = (counts * counts.cumsum(dim=0)).sum(dim=1)  # 1 for the first row that counts, 0 for padding
    first, second = (rows.weights * (place % 2 == odd) for odd in (1, 0))
    second = torch.where(second.sum() > 0, second, first)
    return rows._replace(weights=first), rows._replace(weights=second)
