"""Gradient descent on a support set: the inner loop of every optimization-based learner."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import grad

from clinimeta.common.models.base import Model
from clinimeta.common.params import map_params
from clinimeta.common.tasks.episode import Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Params


def gradient_descent(
    model: Model,
    objective: Objective,
    params: Params,
    support: Examples,
    *,
    steps: int,
    rate: float | Mapping[str, float | Tensor],
    first_order: bool = False,
    pull: float = 0.0,
) -> Params:
    """Theta <- theta - rate * grad L(theta; support), `steps` times (Finn et al. 2017, eq. 1).

    `rate` is one step size for all weights, or name -> step size (a number, or a tensor that broadcasts
    to the weight): weights without one stay as they are. With `first_order` the gradient counts as a
    constant, so that nothing is differentiated twice. `pull` > 0 adds pull/2 |theta - params|^2 to L.
    """
    rates = rate if isinstance(rate, Mapping) else dict.fromkeys(params, rate)

    def loss(weights: Params) -> object:
        return objective.loss(model.apply({**params, **weights}, support.inputs), support)

    fast = {name: p for name, p in params.items() if name in rates}
    for _ in range(steps):
        gradient = grad(loss)(fast)
        if first_order:
            gradient = map_params(lambda g: g.detach(), gradient)
        if pull:
            gradient = {name: gradient[name] + pull * (fast[name] - params[name]) for name in fast}
        fast = {name: _step(fast[name], rates[name], gradient[name]) for name in fast}
    return {**params, **fast}


def _step(weight: Tensor, rate: float | Tensor, gradient: Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return weight - rate * gradient
    return torch.add(weight, gradient, alpha=-rate)  # one operation, and one fewer to differentiate
