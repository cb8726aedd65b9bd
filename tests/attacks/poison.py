"""Poison: what bad sites send in place of their updates, knowing all that the honest ones send."""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import torch
from torch import Tensor

from clinimeta.common.rng import generator

Poison = Callable[[Tensor, int], Tensor]
"""Honest updates `[honest, entries]`, number of bad sites -> what these send, `[bad, entries]`."""


def sign_flip(honest: Tensor, bad: int) -> Tensor:
    """Ten times the honest mean, backwards."""
    return -10.0 * honest.mean(dim=0).expand(bad, -1)


def huge(honest: Tensor, bad: int) -> Tensor:
    """A random direction, a million long."""
    noise = torch.randn(bad, honest.shape[1], generator=generator("huge"), dtype=honest.dtype)
    return 1e6 * noise


def sign_flip_in_norm(honest: Tensor, bad: int) -> Tensor:
    """The honest mean backwards, no longer than an honest update."""
    mean = honest.mean(dim=0)
    return (-mean * honest.norm(dim=1).median() / mean.norm()).expand(bad, -1)


def a_little_is_enough(honest: Tensor, bad: int) -> Tensor:
    """Each entry moved as far as hides among the honest (Baruch et al., NeurIPS 2019, algorithm 3)."""
    sites = len(honest) + bad
    supporters = sites // 2 + 1 - bad
    z = NormalDist().inv_cdf((len(honest) - supporters) / len(honest))
    return (honest.mean(dim=0) - z * honest.std(dim=0)).expand(bad, -1)


POISONS: Mapping[str, Poison] = {
    "sign flip": sign_flip,
    "huge": huge,
    "sign flip in norm": sign_flip_in_norm,
    "a little is enough": a_little_is_enough,
}
