"""Meta-learning with implicit gradients (Rajeswaran, Finn, Kakade, Levine; NeurIPS 2019)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, vjp

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, surrogate
from clinimeta.common.algorithms.inner_loop import gradient_descent
from clinimeta.common.models.base import Model
from clinimeta.common.params import map_params
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params

Vector = Float[Tensor, " weights"]


@ALGORITHMS.register("imaml")
@dataclass(frozen=True, slots=True)
class IMAML:
    """Learn initial weights near which every hospital's best weights lie; the way there does not matter.

    Algorithms 1 and 2 of the paper. `strength` is its lambda: the inner loop minimises the support loss
    plus strength/2 |phi - theta|^2 (eq. 3), so that the meta-gradient needs its end only (lemma 1). It is
    as good as the inner loop is converged, and means nothing where the support loss curves down more
    steeply than `strength`.
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(0)] = 16
    inner_rate: Annotated[float, Gt(0)] = 0.1
    strength: Annotated[float, Gt(0)] = 1.0
    cg_steps: Annotated[int, Ge(1)] = 5
    exact: ClassVar[bool] = False

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights."""
        return self.model.init(rng)

    def adapt(self, params: Params, support: Examples) -> Params:
        """The fast weights: `inner_steps` of gradient descent on the regularised support loss."""
        return gradient_descent(
            self.model,
            self.objective,
            params,
            support,
            steps=self.inner_steps,
            rate=self.inner_rate,
            pull=self.strength,
        )

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the fast weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """Worth the query loss of the fast weights phi; its gradient is (I + H/lambda)^-1 of that in phi.

        H is the support loss's Hessian at phi, never formed: the pull-back of its gradient multiplies by it.
        """
        theta = map_params(lambda p: p.detach(), params)
        phi = ravel(self.adapt(theta, episode.support)).detach()

        def loss_at(weights: Vector, rows: Examples) -> tuple[Tensor, MetaLoss]:
            outputs = self.model.apply(unravel(weights, theta), rows.inputs)
            loss = self.objective.loss(outputs, rows)
            return loss, MetaLoss(loss, outputs)

        v, judged = grad(loss_at, has_aux=True)(phi, episode.query)
        times_hessian = vjp(lambda w: grad(loss_at, has_aux=True)(w, episode.support)[0], phi)[1]
        direction = conjugate_gradient(
            lambda x: x + times_hessian(x)[0] / self.strength, v, steps=self.cg_steps
        )
        return MetaLoss(surrogate(judged.loss, params, unravel(direction, theta)), judged.outputs)


def conjugate_gradient(multiply: Callable[[Vector], Vector], b: Vector, *, steps: int) -> Vector:
    """Solve A x = b for a symmetric A, `steps` times at most (Nocedal & Wright 2006, algorithms 5.2 and 7.1).

    It stands still once solved, and before a direction in which A is not positive; x is then what was
    reached, or b if that was the first.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = residual @ residual
    going: Bool[Tensor, ""] = torch.ones_like(square, dtype=torch.bool)
    for step in range(steps):
        image = multiply(direction)
        curvature = direction @ image
        going = going & (curvature > 0)
        length = _where(going, square, curvature)
        x = x + length * direction if step else torch.where(going, length, 1.0) * direction
        residual = residual - length * image
        before, square = square, residual @ residual
        direction = residual + _where(before > 0, square, before) * direction
    return x


def _where(condition: Bool[Tensor, ""], above: Float[Tensor, ""], below: Float[Tensor, ""]) -> Tensor:
    """The quotient where the condition holds, else 0; never a division by 0."""
    return torch.where(condition, above / torch.where(condition, below, 1.0), 0.0)


def ravel(params: Params) -> Vector:
    """All entries in one vector, in order of name."""
    return torch.cat([params[name].flatten() for name in sorted(params)])


def unravel(vector: Vector, like: Params) -> Params:
    """The inverse of `ravel`: names and shapes as in `like`."""
    names = sorted(like)
    pieces = dict(zip(names, torch.split(vector, [like[name].numel() for name in names]), strict=True))
    return {name: pieces[name].view_as(p) for name, p in like.items()}
