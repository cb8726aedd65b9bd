"""Robust aggregation: combine a cohort's updates so that a minority of bad sites cannot steer the result.

Every rule is a pure function of stacked updates, `[sites, ...]` on every tensor, each a mean over the
site's own tasks, and counts each site once. Sums are taken in float64. Measured against attacks in
tests/server/test_robust.py.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from clinimeta.common.params import map_params
from clinimeta.common.safeguards import AggregationSettings
from clinimeta.common.typing import Params

BLOCK = 1 << 14
"""Entries that a coordinate-wise rule sorts at a time: a block of many sites' float64 stays in the cache."""


def norm_clipped_mean(updates: Params, *, clip: float = 0.0) -> Params:
    """The mean of the updates, each shortened to `clip` where it is longer (0: to the median of the norms).

    Norm thresholding (Sun et al., "Can you really backdoor federated learning?", 2019). A bad site pulls no
    stronger than an honest one, but in whatever direction it likes.
    """
    sizes = torch.linalg.vector_norm(torch.stack([_norms(updates[n]) for n in sorted(updates)]), dim=0)
    bound = clip or statistics.median(sizes.tolist())
    factors = torch.where(sizes > bound, bound / sizes, torch.ones_like(sizes))
    return map_params(lambda u: _mean(u, factors, len(factors)), updates)


def trimmed_mean(updates: Params, *, cut: int) -> Params:
    """Entry by entry the mean without the `cut` largest and smallest (Yin et al., ICML 2018, def. 2).

    With at most `cut` bad sites every entry lies within the range of the honest ones.

    Raises:
        ValueError: nothing would be left.
    """
    sites = _sites(updates)
    if not 0 <= 2 * cut < sites:
        raise ValueError(f"cannot cut {cut} of {sites} sites off at each end")
    return map_params(lambda u: _middle(u, cut, sites - cut), updates)


def median(updates: Params) -> Params:
    """Entry by entry the median; of an even number the middle two's mean (Yin et al., ICML 2018, def. 1).

    With bad sites in the minority every entry lies within the range of the honest ones.
    """
    return trimmed_mean(updates, cut=(_sites(updates) - 1) // 2)


def multi_krum(updates: Params, *, bad_sites: int) -> Params:
    """The mean of the n - f updates that lie closest to their neighbours (Blanchard et al., NeurIPS 2017).

    A site's score is the sum of its squared distances to its n - f - 2 nearest neighbours (section 4); f is
    `bad_sites`. Of equal scores the earlier site is taken.

    Raises:
        ValueError: 2f + 2 < n does not hold.
    """
    sites = _sites(updates)
    if not 2 * bad_sites + 2 < sites:
        raise ValueError(f"{sites} sites are too few for {bad_sites} bad ones")
    distances = _squared_distances(updates).fill_diagonal_(math.inf)  # nobody is their own neighbour
    scores = distances.sort(dim=1).values[:, : sites - bad_sites - 2].sum(dim=1)
    chosen = torch.zeros(sites, dtype=torch.float64)
    chosen[scores.sort(stable=True).indices[: sites - bad_sites]] = 1.0
    return map_params(lambda u: _mean(u, chosen, sites - bad_sites), updates)


RULES: Mapping[str, Callable[[Params, AggregationSettings], Params]] = {
    "norm_clipped_mean": lambda updates, settings: norm_clipped_mean(updates, clip=settings.clip),
    "trimmed_mean": lambda updates, settings: trimmed_mean(updates, cut=settings.cut(_sites(updates))),
    "median": lambda updates, _: median(updates),
    "multi_krum": lambda updates, settings: multi_krum(updates, bad_sites=settings.bad_sites),
}
"""The rules that need every update at once, by the name that a study gives them; `mean` needs only a sum."""


def combine(updates: Params, settings: AggregationSettings) -> Params:
    """The cohort's update by the chosen rule, in the dtypes of `updates`.

    Args:
        updates: `[sites, ...]` on every tensor, all finite, in an order that is not that of arrival.
        settings: which rule, and its number; not `mean`.
    """
    return RULES[settings.rule](updates, settings)


def _sites(updates: Params) -> int:
    return len(next(iter(updates.values())))


def _blocks(update: Tensor) -> Iterator[Tensor]:
    """The update in float64, some entries of all sites at a time: `[sites, entries]`."""
    flat = update.reshape(len(update), -1)  # a meta-parameter may be a single number
    for start in range(0, max(1, flat.shape[1]), BLOCK):
        yield flat[:, start : start + BLOCK].double()


def _norms(update: Tensor) -> Tensor:
    """Each site's Euclidean norm, `[sites]`."""
    norms = [torch.linalg.vector_norm(block, dim=1) for block in _blocks(update)]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total


def _mean(update: Tensor, factors: Tensor, count: int) -> Tensor:
    """The sum over sites of `factors * update` / count, in blocks: no second copy of them all."""
    total = torch.cat([factors @ block for block in _blocks(update)])
    return (total / count).reshape(update.shape[1:]).to(update.dtype)


def _middle(update: Tensor, low: int, high: int) -> Tensor:
    """Entry by entry the mean of the order statistics `low` to `high` (excluded)."""
    middles = []
    for block in _blocks(update):
        values = np.ascontiguousarray(block.T.numpy())
        values.partition(sorted({low, high - 1}), axis=1)  # what lies between the two is between them, too
        middles.append(torch.from_numpy(values[:, low:high].mean(axis=1)))
    return torch.cat(middles).reshape(update.shape[1:]).to(update.dtype)


def _squared_distances(updates: Params) -> Tensor:
    """|u_i - u_j|^2 in float64 from the Gram matrix, `[sites, sites]`; what overflowed is infinitely far."""
    sites = _sites(updates)
    gram = torch.zeros(sites, sites, dtype=torch.float64)
    for name in sorted(updates):
        for block in _blocks(updates[name]):
            gram += block @ block.T
    squares = gram.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * gram
    return distances.nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=0.0)
