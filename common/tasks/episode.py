"""A few-shot task: adapt on the support set, be judged on the query set.

Named tuples, because torch takes them apart and puts them together again under `vmap` and `grad`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from clinimeta.common.typing import Inputs


class Examples(NamedTuple):
    """Rows with their targets. A row of weight 0 is padding and must change nothing."""

    inputs: Inputs
    targets: Shaped[Tensor, "..."]
    weights: Float[Tensor, "..."]

    def take(self, rows: Tensor) -> "Examples":
        """The rows at these indices, in this order."""
        return Examples(
            {name: x[rows] for name, x in self.inputs.items()}, self.targets[rows], self.weights[rows]
        )

    @property
    def size(self) -> int:
        """The number of rows, padding included (`len` counts a tuple's fields)."""
        return len(self.targets)


class Episode(NamedTuple):
    """One task. No patient has rows on both sides."""

    support: Examples
    query: Examples


def examples(inputs: Inputs, targets: Tensor) -> Examples:
    """Rows that all count."""
    like = next(iter(inputs.values()))
    return Examples(inputs, targets, torch.ones(len(targets), dtype=like.dtype, device=like.device))


def concatenate(first: Examples, second: Examples) -> Examples:
    """The rows of both, `first`'s before `second`'s."""
    return Examples(
        {name: torch.cat([x, second.inputs[name]]) for name, x in first.inputs.items()},
        torch.cat([first.targets, second.targets]),
        torch.cat([first.weights, second.weights]),
    )
