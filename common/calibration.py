"""Probabilities that mean what they say: a temperature, and the hospital's own prevalence.

A learner adapted on a handful of patients is too sure of itself. The hospitals that train measure,
on query sets after adaptation, how the log loss changes when outputs are divided by each of a few
temperatures; the coordinator sees only these sums, and the best temperature for each size of support
set travels with the model (temperature scaling, Guo et al., ICML 2017, section 4.2, federated).
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

TEMPERATURES = (0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
"""The grid; dense near 1, where a good learner ends."""


def choose_temperature(losses: Sequence[float]) -> float:
    """The grid's temperature of least summed log loss; of several, the one nearest to 1.

    >>> choose_temperature([3.0, 2.5] + [9.0] * 13)
    0.35
    """
    ranked = zip(losses, TEMPERATURES, strict=True)
    return min(ranked, key=lambda pair: (pair[0], abs(math.log(pair[1]))))[1]


def temperature_for(by_shots: Mapping[int, float], shots: float) -> float:
    """The temperature for a support set of `shots` (a class): linear in log(1 + shots) between the known.

    >>> temperature_for({1: 2.0, 20: 1.0}, 1), temperature_for({1: 2.0, 20: 1.0}, 50)
    (2.0, 1.0)
    """
    if not by_shots:
        return 1.0
    known = sorted(by_shots.items())
    if shots <= known[0][0]:
        return known[0][1]
    for (low, t_low), (high, t_high) in itertools.pairwise(known):
        if shots <= high:
            share = (math.log1p(shots) - math.log1p(low)) / (math.log1p(high) - math.log1p(low))
            return t_low + share * (t_high - t_low)
    return known[-1][1]


def shift_prevalence(
    probabilities: Float[Tensor, "rows classes"],
    assumed: Float[Tensor, " classes"],
    actual: Float[Tensor, " classes"],
) -> Float[Tensor, "rows classes"]:
    """Bayes' rule for a changed class mix (Saerens, Latinne, Decaestecker; Neural Computation 2002, eq. 2.4).

    >>> import torch
    >>> even, rare = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    >>> [round(p, 3) for p in shift_prevalence(even[None], even, rare)[0].tolist()]
    [0.9, 0.1]
    """
    shifted = probabilities * (actual / assumed)
    return shifted / shifted.sum(dim=-1, keepdim=True)
