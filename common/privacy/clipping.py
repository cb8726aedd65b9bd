"""Bound what one task can do to a sum, and what rounding adds to that bound.

All tasks of all sites at once: one norm and one factor a task, never a loop over tasks.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.typing import Params

_SAFE = 1e-12
"""A clipped task ends this much (relatively) below the bound, so that float64 rounding never passes it."""


def clip_factors(gradients: Params, bound: float) -> Float[Tensor, " tasks"]:
    """What each task's meta-gradient is multiplied by so that its norm is at most `bound`; float64.

    `gradients` have a leading axis of tasks. A task whose norm is not finite gets 0: it does not count,
    since refusing to answer would tell that it is there.

    Raises:
        ValueError: `bound` is not positive and finite, or there is no tensor.
    """
    if not (bound > 0 and math.isfinite(bound)):
        raise ValueError(f"the clipping bound is {bound}, expected over 0")
    if not gradients:
        raise ValueError("there is no meta-gradient to clip")
    flat = [gradients[name].reshape(len(gradients[name]), -1) for name in sorted(gradients)]
    each = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in flat]
    norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
    factors = (bound * (1 - _SAFE) / norms).clamp(max=1.0)  # 0 / 0 does not come up: bound / 0 is infinite
    return torch.where(torch.isfinite(norms), factors, 0.0)


def clip_tasks(gradients: Params, bound: float) -> Params:
    """Each task's meta-gradient cut down to norm `bound`; the same shapes `[tasks, ...]`, in float64.

    To be added up site by site. A task that is not finite becomes zeros.

    Raises:
        ValueError: as `clip_factors`.
    """
    factors = clip_factors(gradients, bound)

    def clipped(g: Tensor) -> Tensor:
        factor = factors.reshape(-1, *[1] * (g.dim() - 1))
        return torch.where(factor == 0, 0.0, g.double() * factor)

    return map_params(clipped, gradients)


def clipped_sum(gradients: Params, bound: float) -> Params:
    """The sum over tasks of the clipped meta-gradients, in float64: what one site has to say.

    Raises:
        ValueError: as `clip_factors`.
    """
    factors = clip_factors(gradients, bound)
    if not bool(factors.all()):  # NaN times 0 is NaN: a task that is not finite goes out here
        kept = torch.nonzero(factors).squeeze(-1)
        factors, gradients = factors[kept], map_params(lambda g: g[kept], gradients)

    def total(g: Tensor) -> Tensor:
        summed: Tensor = torch.tensordot(factors, g.double(), dims=1)
        return summed

    return map_params(total, gradients)


def with_rounding(sensitivity: float, size: int, scale: float) -> float:
    """The L2 sensitivity of a vector once it is multiplied by `scale` and rounded stochastically.

    Rounding is floor(scale x + u) with u uniform in [0, 1) for each of the `size` coordinates. Take any two
    neighbours x and x' and the same u for both: since floor(a + u) - floor(b + u) is less than 1 away from
    a - b, the two rounded vectors differ by less than scale |x - x'| + sqrt(size) in L2. That is
    `sensitivity + sqrt(size) / scale` in units of the vector. u does not depend on the data, so what is
    private for every u is private. Holds for the one site that a patient is at.

    Raises:
        ValueError: something is not positive.

    >>> with_rounding(1.0, size=10_000, scale=1e6)
    1.0001
    """
    if not (sensitivity > 0 and size >= 1 and scale > 0):
        raise ValueError(f"sensitivity {sensitivity}, size {size} and scale {scale} must be positive")
    return sensitivity + math.sqrt(size) / scale
