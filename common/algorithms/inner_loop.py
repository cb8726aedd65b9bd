"""Gradient descent on a support set: the inner loop of every optimization-based learner."""

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
    rate: float,
    first_order: bool = False,
) -> Params:
    """Theta <- theta - rate * grad L(theta; support), `steps` times (Finn et al. 2017, eq. 1).

    With `first_order` the gradient counts as a constant, so that nothing is differentiated twice.
    """

    def loss(weights: Params) -> object:
        return objective.loss(model.apply(weights, support.inputs), support)

    fast = dict(params)
    for _ in range(steps):
        gradient = grad(loss)(fast)
        if first_order:
            gradient = map_params(lambda g: g.detach(), gradient)
        fast = {name: fast[name] - rate * gradient[name] for name in fast}
    return fast
