"""How an update is protected before it leaves: each task's meta-gradient clipped, then noise on their sum.

`Mechanism` is the seam: swap `gaussian` for the project's own noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.typing import Params

Mechanism = Callable[[Params, float, torch.Generator], Params]
"""(sum of clipped meta-gradients, sensitivity, randomness) -> what is released."""


def gaussian(z: float) -> Mechanism:
    """Independent Gaussian noise of standard deviation `z` times the sensitivity on every entry."""

    def add(total: Params, sensitivity: float, rng: torch.Generator) -> Params:
        return map_params(lambda g: g + z * sensitivity * torch.randn(g.shape, generator=rng), total)

    return add


def no_noise(total: Params, _sensitivity: float, _rng: torch.Generator) -> Params:
    """Protection off."""
    return total


def norms(gradients: Params) -> Tensor:
    """Each task's Euclidean norm, `[tasks]`."""
    return torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)


def clipped(gradients: Params, clip: float) -> Params:
    """Every task's meta-gradient shortened to `clip` where it is longer; `[tasks, ...]` as before."""
    factors = (clip / norms(gradients)).clamp(max=1.0)
    return map_params(lambda g: g * factors.reshape(-1, *[1] * (g.dim() - 1)), gradients)


def release(gradients: Params, clip: float, mechanism: Mechanism, rng: torch.Generator) -> Params:
    """The sum of the clipped meta-gradients of `[tasks, ...]`, after `mechanism`."""
    return mechanism(map_params(lambda g: g.sum(dim=0), clipped(gradients, clip)), clip, rng)
