"""Learning to learn by gradient descent by gradient descent (Andrychowicz et al.; NeurIPS 2016)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLoss, query_loss
from clinimeta.common.models.base import Model, init_linear
from clinimeta.common.params import map_params, part, prefixed
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.tasks.objective import Objective
from clinimeta.common.typing import Inputs, Params

DECAYS = (0.0, 0.5, 0.9)
"""Of the momenta; the first is the gradient itself."""
CLOCKS = (0.5, 0.75)
"""Bases of the time features clock ** step: they run out within the few steps of training."""
RANGE = 3.0
"""The learned magnitude lies between exp(-RANGE) and exp(RANGE)."""
EPSILON = 1e-8


class Memory(NamedTuple):
    """What the optimizer remembers of one tensor: momenta and the sum of squared gradients, all its shape."""

    momenta: tuple[Tensor, ...]
    second: Tensor


@ALGORITHMS.register("learned_optimizer")
@dataclass(frozen=True, slots=True)
class LearnedOptimizer:
    """Learn initial weights, and a small network that makes an update out of every weight's gradients.

    Equation 3 of the paper with the inner loop unrolled in full, differentiated also through the
    gradients, and judged on the query set. The network is an MLP shared over all coordinates (Metz et
    al., ICML 2019, section 2), not an LSTM. What keeps it stable beyond `inner_steps`: it moves along
    preconditioned momenta only (Harrison, Metz, Sohl-Dickstein, NeurIPS 2022), so that it does nothing
    where there is no gradient; mixture and magnitude are bounded; steps shrink as 1/sqrt(t) (with the
    preconditioner, AdaGrad); and late steps look to the MLP like those it was trained on.
    Meta-parameters: `weights.NAME`, and the MLP's as `optimizer.NAME`.
    """

    model: Model
    objective: Objective
    inner_steps: Annotated[int, Ge(0)] = 5
    hidden: Annotated[int, Ge(1)] = 16
    rate: Annotated[float, Gt(0)] = 0.02
    exact: ClassVar[bool] = True

    def init(self, rng: torch.Generator) -> Params:
        """The initial weights, and an MLP that starts near normalised gradient descent of step `rate`."""
        weights = self.model.init(rng)
        features = len(DECAYS) + 1 + len(CLOCKS)
        hidden_weight, hidden_bias = init_linear(features, self.hidden, rng)
        output_weight, _ = init_linear(self.hidden, len(DECAYS) + 1, rng)
        optimizer = {
            "hidden.weight": hidden_weight,
            "hidden.bias": hidden_bias,
            "output.weight": 0.1 * output_weight,
            "output.bias": torch.tensor([1.0] + [0.0] * len(DECAYS)),
        }
        return {**prefixed(weights, "weights"), **prefixed(optimizer, "optimizer")}

    def adapt(self, params: Params, support: Examples) -> Params:
        """The fast weights: `inner_steps` of the learned optimizer on the support set."""

        def loss(weights: Params) -> object:
            return self.objective.loss(self.model.apply(weights, support.inputs), support)

        fast, optimizer = part(params, "weights"), part(params, "optimizer")
        zeros = map_params(torch.zeros_like, fast)
        memory = {name: Memory((z,) * len(DECAYS), z) for name, z in zeros.items()}
        for step in range(self.inner_steps):
            gradient = grad(loss)(fast)
            memory = {name: _remember(memory[name], gradient[name]) for name in fast}
            fast = {name: w - self._update(optimizer, w, memory[name], step) for name, w in fast.items()}
        return fast

    def predict(self, params: Params, adapted: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The model under the fast weights."""
        return self.model.apply(adapted, inputs)

    def meta_loss(self, params: Params, episode: Episode) -> MetaLoss:
        """The query loss of the fast weights."""
        return query_loss(self, params, episode)

    def _update(self, optimizer: Params, weight: Tensor, memory: Memory, step: int) -> Tensor:
        """`rate` * d * exp(m) / sqrt(t); for each coordinate the MLP says how d mixes the momenta, and m."""
        t = step + 1
        precondition = torch.rsqrt(memory.second / t + EPSILON)
        pairs = zip(memory.momenta, DECAYS, strict=True)
        momenta = torch.stack([m * precondition / (1 - decay**t) for m, decay in pairs], dim=-1)
        size = weight * torch.rsqrt(weight.square().mean() + EPSILON)
        others = [size, *(torch.full_like(weight, clock**step) for clock in CLOCKS)]
        features = torch.cat([momenta, torch.stack(others, dim=-1)], dim=-1)
        hidden = torch.tanh(features @ optimizer["hidden.weight"] + optimizer["hidden.bias"])
        output = hidden @ optimizer["output.weight"] + optimizer["output.bias"]
        direction = (torch.tanh(output[..., :-1]) * momenta).sum(dim=-1)
        magnitude = torch.exp(RANGE * torch.tanh(output[..., -1] / RANGE))
        return self.rate / math.sqrt(t) * magnitude * direction


def _remember(memory: Memory, gradient: Tensor) -> Memory:
    """The momenta decay; squares add up, half the coordinate's own and half the tensor's mean.

    With the mean, a coordinate whose gradient happens to be near zero is not blown up by the division,
    nor is the derivative.
    """
    momenta = tuple(d * m + (1 - d) * gradient for d, m in zip(DECAYS, memory.momenta, strict=True))
    square = gradient.square()
    return Memory(momenta, memory.second + 0.5 * (square + square.mean()))
