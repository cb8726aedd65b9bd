"""Learned step sizes that stay between 0 and a bound, whatever the outer loop does to them.

Over several inner steps free step sizes diverge, and so do bounded ones of either sign: a step up the loss
grows exponentially.
"""

import math

import torch
from torch import Tensor

from clinimeta.common.errors import StudyError

SPEED = 10.0
"""How much faster than a weight a step size's logit moves: with 1, Adam at 1e-3 needs thousands of steps."""


def step_size(raw: Tensor, largest: float) -> Tensor:
    """The step sizes that the meta-parameters `raw` stand for: largest * sigmoid(SPEED * raw)."""
    return largest * torch.sigmoid(SPEED * raw)


def raw_step_size(size: float, largest: float) -> float:
    """What stands for a step size between 0 and `largest`."""
    return -math.log(largest / size - 1) / SPEED


def check_bound(algorithm: str, initial_rate: float, max_rate: float) -> None:
    """Raise StudyError where the step sizes would have to start beyond their bound."""
    if initial_rate >= max_rate:
        raise StudyError(
            "the step sizes would start beyond their bound",
            where=f"algorithm '{algorithm}'",
            found=f"initial_rate = {initial_rate}, max_rate = {max_rate}",
            expected="`initial_rate` below `max_rate`",
            remedy="change one of them",
        )
