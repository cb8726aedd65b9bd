"""A linear model on a table of numbers: logistic regression, or least squares."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.models import MODELS
from clinimeta.common.models.base import init_linear
from clinimeta.common.typing import Inputs, Params


@MODELS.register("linear")
@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer on a table of numbers: logistic regression when the task is a diagnosis."""

    features: int
    outputs: int
    head: ClassVar[tuple[str, ...]] = ("weight", "bias")
    convolutional: ClassVar[bool] = False

    def init(self, rng: torch.Generator) -> Params:
        """A weight `[features, outputs]` and a bias `[outputs]`."""
        weight, bias = init_linear(self.features, self.outputs, rng)
        return {"weight": weight, "bias": bias}

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """X W + b."""
        return inputs["table"] @ params["weight"] + params["bias"]
