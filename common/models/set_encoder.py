"""A table's row as a set of its columns: attention over one token a value that is there."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.models.base import init_linear
from clinimeta.common.params import part
from clinimeta.common.typing import Inputs, Params

EPSILON = 1e-5
EXPANSION = 2
"""The width inside a feed-forward part, in widths of a token."""


@MODELS.register("set_encoder")
@dataclass(frozen=True, slots=True)
class SetEncoder:
    """A transformer whose tokens are a row's values; what is absent takes no part.

    The FT-Transformer of Gorishniy et al. (NeurIPS 2021, section 3.3): a token is value x vector of its
    feature + another vector of its feature; pre-norm blocks, the first without its first norm. Where it
    differs: SiLU instead of ReGLU, so that a meta-loss has no jumps; no dropout; the head reads the tokens'
    mean instead of an extra token, which few examples teach faster; and `inputs["present"]` (where the
    study masks) takes absent values out of attention and mean, so that tables may differ in columns.
    """

    features: int
    outputs: int
    width: Annotated[int, Ge(1)] = 32
    heads: Annotated[int, Ge(1)] = 2
    layers: Annotated[int, Ge(1)] = 1
    head: ClassVar[tuple[str, ...]] = ("head.weight", "head.bias")
    convolutional: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise StudyError where the width cannot be shared among the heads."""
        if self.width % self.heads:
            raise StudyError(
                "the width cannot be divided among the heads",
                where="model 'set_encoder'",
                found=f"a width of {self.width}, {self.heads} heads",
                expected="`width` a multiple of `heads`",
                remedy="change one of them",
            )

    def init(self, rng: torch.Generator) -> Params:
        """Two vectors a feature, the blocks and a linear layer."""
        bound = 1 / math.sqrt(self.width)

        def draw(*shape: int) -> Tensor:
            return bound * (2 * torch.rand(*shape, generator=rng) - 1)

        params: dict[str, Tensor] = {
            "token.weight": draw(self.features, self.width),
            "token.identity": draw(self.features, self.width),
        }

        def linear(name: str, wide: int, narrow: int) -> None:
            params[f"{name}.weight"], params[f"{name}.bias"] = init_linear(wide, narrow, rng)

        def norm(name: str) -> None:
            params[f"{name}.scale"], params[f"{name}.shift"] = torch.ones(self.width), torch.zeros(self.width)

        for block in range(self.layers):
            if block > 0:
                norm(f"block{block}.norm")
            for name in ("query", "value", "mix"):
                linear(f"block{block}.{name}", self.width, self.width)
            # Keys have no bias: softmax takes no notice of it, so that its gradient would be rounding errors.
            params[f"block{block}.key.weight"], _ = init_linear(self.width, self.width, rng)
            norm(f"block{block}.feed.norm")
            linear(f"block{block}.feed.wide", self.width, EXPANSION * self.width)
            linear(f"block{block}.feed.narrow", EXPANSION * self.width, self.width)
        linear("head", self.width, self.outputs)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The linear layer on the mean of the tokens that are there, or on zeros where none is."""
        table, present = inputs["table"], inputs.get("present")
        x = table[:, :, None] * params["token.weight"] + params["token.identity"]
        for block in range(self.layers):
            weights = part(params, f"block{block}")
            normed = _norm(x, weights, "norm") if block > 0 else x
            x = x + self._attention(normed, present, weights)
            fed = F.silu(_linear(_norm(x, weights, "feed.norm"), weights, "feed.wide"))
            x = x + _linear(fed, weights, "feed.narrow")
        if present is None:
            return _linear(x.mean(dim=1), params, "head")
        total = (x * present[:, :, None]).sum(dim=1)
        return _linear(total / present.sum(dim=1, keepdim=True).clamp(min=1), params, "head")

    def _attention(
        self,
        x: Float[Tensor, "rows features width"],
        present: Float[Tensor, "rows features"] | None,
        weights: Params,
    ) -> Float[Tensor, "rows features width"]:
        """For each token a mean over the tokens that are there, weighted by softmax, head by head."""
        share = self.width // self.heads

        def split(values: Tensor) -> Tensor:
            return values.reshape(*values.shape[:2], self.heads, share).transpose(1, 2)

        query, key, value = (split(_linear(x, weights, name)) for name in ("query", "key", "value"))
        scores = query @ key.transpose(2, 3) / math.sqrt(share)
        if present is not None:  # exactly 0 after softmax; where nothing is there, finite and not read
            absent = (present == 0)[:, None, None, :]
            scores = scores.masked_fill(absent, torch.finfo(scores.dtype).min)
        mean = torch.softmax(scores, dim=-1) @ value
        return _linear(mean.transpose(1, 2).reshape(x.shape), weights, "mix")


def _linear(x: Float[Tensor, "*rows wide"], weights: Params, name: str) -> Float[Tensor, "*rows narrow"]:
    """X W + b on the last axis; one long matrix, so that weights that differ by task are not repeated."""
    weight = weights[f"{name}.weight"]
    product = x.flatten(0, -2) @ weight
    if f"{name}.bias" in weights:
        product = product + weights[f"{name}.bias"]
    return product.reshape(*x.shape[:-1], weight.shape[1])


def _norm(x: Float[Tensor, "*rows width"], weights: Params, name: str) -> Float[Tensor, "*rows width"]:
    """Layer norm, written out, because torch's fused form goes wrong under `vmap`."""
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    return centered * torch.rsqrt(variance + EPSILON) * weights[f"{name}.scale"] + weights[f"{name}.shift"]
