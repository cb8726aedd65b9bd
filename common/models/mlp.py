"""A multi-layer perceptron on a table of numbers."""

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.models import MODELS
from clinimeta.common.models.base import init_linear
from clinimeta.common.typing import Inputs, Params

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": torch.nn.functional.silu}


@MODELS.register("mlp")
@dataclass(frozen=True, slots=True)
class MLP:
    """Fully connected layers with a non-linearity between them, on a table of numbers."""

    features: int
    outputs: int
    hidden: tuple[Annotated[int, Ge(1)], ...] = (64, 64)
    activation: Literal["relu", "tanh", "silu"] = "relu"
    convolutional: ClassVar[bool] = False

    @property
    def head(self) -> tuple[str, ...]:
        """The last layer."""
        return (f"layer{len(self.hidden)}.weight", f"layer{len(self.hidden)}.bias")

    def init(self, rng: torch.Generator) -> Params:
        """One weight `[in, out]` and one bias `[out]` a layer."""
        params: dict[str, Tensor] = {}
        sizes = [self.features, *self.hidden, self.outputs]
        for layer, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
            params[f"layer{layer}.weight"], params[f"layer{layer}.bias"] = init_linear(wide, narrow, rng)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The last layer's outputs, without a non-linearity."""
        x = inputs["table"]
        activate = ACTIVATIONS[self.activation]
        for layer in range(len(self.hidden)):
            x = activate(x @ params[f"layer{layer}.weight"] + params[f"layer{layer}.bias"])
        last = len(self.hidden)
        return x @ params[f"layer{last}.weight"] + params[f"layer{last}.bias"]
