"""A small perceptron, for the learners that need a network of their own beside the model."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.models.base import init_linear
from clinimeta.common.typing import Params


def init_perceptron(name: str, sizes: tuple[int, ...], rng: torch.Generator) -> Params:
    """Fresh weights of one perceptron of these widths, inputs first; its name stands before theirs."""
    params: dict[str, Tensor] = {}
    for layer, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        params[f"{name}.{layer}.weight"], params[f"{name}.{layer}.bias"] = init_linear(wide, narrow, rng)
    return params


def perceptron(params: Params, name: str, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
    """The perceptron of that name: linear layers with a relu between them."""
    layers = sum(key.startswith(f"{name}.") for key in params) // 2
    for layer in range(layers):
        x = torch.relu(x) if layer else x
        x = x @ params[f"{name}.{layer}.weight"] + params[f"{name}.{layer}.bias"]
    return x
