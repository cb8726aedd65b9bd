"""A support set as a set (Zaheer et al., NeurIPS 2017): encode every row, then take means.

Classes are pooled one by one, as conditional neural processes do (Garnelo et al. 2018, section 4.3); where
the target is a number, all rows are one group.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.algorithms.perceptron import init_perceptron, perceptron
from clinimeta.common.tasks.episode import Examples
from clinimeta.common.tasks.objective import Objective, encode_targets, target_width
from clinimeta.common.typing import Params


def init_deep_set(
    name: str, objective: Objective, embedding: int, hidden: int, rng: torch.Generator
) -> Params:
    """Fresh weights of the perceptron that encodes a row: [embedding, target] -> `hidden` numbers."""
    return init_perceptron(name, (embedding + target_width(objective), hidden, hidden), rng)


def encode_support(
    params: Params, name: str, objective: Objective, embedded: Float[Tensor, "rows embedding"], rows: Examples
) -> Float[Tensor, "groups hidden"]:
    """Each class's mean code (or that of all rows, for a number)."""
    targets = encode_targets(objective, rows.targets, embedded)
    return group_means(objective, perceptron(params, name, torch.cat([embedded, targets], dim=-1)), rows)


def group_means(
    objective: Objective, values: Float[Tensor, "rows width"], rows: Examples
) -> Float[Tensor, "groups width"]:
    """The weighted mean over each class's rows, or over all rows for a number; 0 where there is none."""
    group = encode_targets(objective, rows.targets, values)
    member = (group if objective.classes else torch.ones_like(group)) * rows.weights[:, None]
    return member.T @ values / member.sum(dim=0).clamp(min=1)[:, None]
