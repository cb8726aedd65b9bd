"""Membership inference in its strongest form: was this task in the sum that was released?

The attacker knows the task, every other task's clipped meta-gradient, the clip and the noise, and sees the
release; the likelihood ratio of the two Gaussians is then a projection on the task's own gradient.
"""

from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.typing import Params


def score(released: Params, others: Params, canary: Params) -> float:
    """How much of the canary is left without what the attacker knows: 1 if in, 0 if out, but for noise."""
    rest = map_params(lambda r, o: r - o, released, others)
    dot = sum(float((rest[n].double() * canary[n].double()).sum()) for n in canary)
    return dot / sum(float((canary[n].double() ** 2).sum()) for n in canary)


def area_under_curve(inside: Tensor, outside: Tensor) -> float:
    """The chance that a score with the canary is over one without it; ties count half."""
    over = inside[:, None] - outside[None, :]
    return float((over > 0).double().mean() + 0.5 * (over == 0).double().mean())
