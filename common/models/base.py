"""The interface of a model: a frozen description that makes weights and applies them."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.typing import Inputs, Params


@runtime_checkable
class Model(Protocol):
    """A network. Its weights live outside, so that an inner loop can change them."""

    @property
    def outputs(self) -> int:
        """Width of the output."""
        ...

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the last layer's weights: what ANIL and FedRep adapt; all the others are the body."""
        ...

    @property
    def convolutional(self) -> bool:
        """Whether arithmetic, not dispatch, is what it costs: the engine then loops over tasks."""
        ...

    def init(self, rng: torch.Generator) -> Params:
        """Fresh weights."""
        ...

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The network's outputs for every row."""
        ...


def init_linear(inputs: int, outputs: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight `[inputs, outputs]` and bias `[outputs]`, uniform within 1/sqrt(inputs) as torch's layer."""
    bound = 1 / math.sqrt(inputs)

    def draw(*shape: int) -> Tensor:
        return bound * (2 * torch.rand(*shape, generator=rng) - 1)

    return draw(inputs, outputs), draw(outputs)


def channels_last(weight: Tensor) -> Tensor:
    """The same filters `[out, in, height, width]`, channels last in memory; other weights as they are.

    What a convolution makes is laid out as its filters are, and so is all after it: torch's pooling and
    normalisation are several times faster so. Not for `vmap`, which fails there.
    """
    if weight.dim() != 4:
        return weight
    # Not `memory_format=torch.channels_last`, which leaves filters of one channel as they are.
    return weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def is_channels_last(filters: Float[Tensor, "out in height width"]) -> bool:
    """Whether they lie in memory as `channels_last` puts them (never under `vmap`)."""
    return filters.stride(1) == 1
