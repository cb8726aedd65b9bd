"""Who takes part in a round: a function of the seed and the round, so that a restart asks the same sites."""

from collections.abc import Sequence

import torch

from clinimeta.common.rng import generator


def sample_cohort(sites: Sequence[str], size: int, seed: int, round_number: int) -> list[str]:
    """`size` of the sites without replacement, sorted; all of them where `size` is 0 or too large.

    >>> sample_cohort(["a", "b", "c"], 2, seed=1, round_number=4) == sample_cohort(["c", "b", "a"], 2, 1, 4)
    True
    """
    names = sorted(sites)
    if not 0 < size < len(names):
        return names
    order = torch.randperm(len(names), generator=generator("cohort", seed, round_number))
    return sorted(names[i] for i in order[:size].tolist())
