"""How an update is protected before it leaves, by the project's own clipping and noise."""

from collections.abc import Callable

import torch
from torch import Tensor

from clinimeta.common.contributions import flatten, unflatten
from clinimeta.common.params import map_params
from clinimeta.common.privacy.clipping import clip_tasks
from clinimeta.common.privacy.discrete_gaussian import discrete_gaussian
from clinimeta.common.privacy.noise import Noise
from clinimeta.common.typing import Params

SCALE = 1e6
"""Whole numbers in one clipping bound."""
Mechanism = Callable[[Params, float, torch.Generator], Params]
"""(sum of clipped meta-gradients, sensitivity, randomness) -> what is released."""


def gaussian(z: float) -> Mechanism:
    """The coordinator's discrete Gaussian noise of multiplier `z` (0: none), from a key drawn of `rng`."""
    if z == 0:
        return no_noise

    def add(total: Params, sensitivity: float, rng: torch.Generator) -> Params:
        noise = Noise(z, sensitivity, SCALE / sensitivity, "central")
        key = bytes(torch.randint(256, (32,), generator=rng).tolist())
        size = sum(g.numel() for g in total.values())
        drawn = discrete_gaussian(key, noise.sigma, size) / noise.scale
        return unflatten(flatten(total) + drawn, total)

    return add


def no_noise(total: Params, _sensitivity: float, _rng: torch.Generator) -> Params:
    """Protection off."""
    return total


def norms(gradients: Params) -> Tensor:
    """Each task's Euclidean norm, `[tasks]`."""
    return torch.stack([g.reshape(len(g), -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)


def clipped(gradients: Params, clip: float) -> Params:
    """Every task's meta-gradient shortened to `clip` where it is longer; `[tasks, ...]` as before."""
    return map_params(lambda g, cut: cut.to(g.dtype), gradients, clip_tasks(gradients, clip))


def release(gradients: Params, clip: float, mechanism: Mechanism, rng: torch.Generator) -> Params:
    """The sum of the clipped meta-gradients of `[tasks, ...]`, after `mechanism`."""
    return mechanism(map_params(lambda g: g.sum(dim=0), clipped(gradients, clip)), clip, rng)
