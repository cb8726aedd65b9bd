"""Four convolution blocks on a small image: the network of the Omniglot benchmark (Vinyals et al. 2016)."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.models.base import init_linear
from clinimeta.common.typing import Inputs, Params

BLOCKS = 4
EPSILON = 1e-5


@MODELS.register("conv4")
@dataclass(frozen=True, slots=True)
class Conv4:
    """Four blocks of 3x3 convolution, normalisation, 2x2 max pooling and ReLU; a row is a square image.

    A row's `features` numbers are `channels` square images of at least 16 x 16, row by row (28 x 28: 784).
    `norm = "group"` normalises each image by itself. `norm = "batch"` is the papers' transductive batch
    normalisation: by the statistics of all rows that are given together, so that a row's output depends
    on the others; padding (`inputs["real"]` = 0) does not count.
    """

    features: int
    outputs: int
    channels: Annotated[int, Ge(1)] = 1
    filters: Annotated[int, Ge(1)] = 64
    norm: Literal["group", "batch"] = "group"
    groups: Annotated[int, Ge(1)] = 8
    head: ClassVar[tuple[str, ...]] = ("head.weight", "head.bias")
    convolutional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where the numbers make no image, or the filters no groups."""
        if self.channels * self.side**2 != self.features or self.side < 2**BLOCKS:
            raise StudyError(
                "the table's features are not square images of 16 x 16 or more",
                where="model 'conv4'",
                found=f"{self.features} features, {self.channels} channels",
                expected="channels x side x side, as 784 = 1 x 28 x 28",
                remedy="correct `channels`, or choose another model",
            )
        if self.norm == "group" and self.filters % self.groups:
            raise StudyError(
                "the filters cannot be divided into the groups",
                where="model 'conv4'",
                found=f"{self.filters} filters, {self.groups} groups",
                expected="`filters` a multiple of `groups`",
                remedy="change one of them",
            )

    @property
    def side(self) -> int:
        """Height and width of the image in pixels."""
        return math.isqrt(self.features // self.channels)

    def init(self, rng: torch.Generator) -> Params:
        """A filter bank and the normalisation's scale and shift a block, then a linear layer."""
        params: dict[str, Tensor] = {}
        width = self.channels
        for block in range(BLOCKS):
            bound = 1 / math.sqrt(9 * width)
            draw = 2 * torch.rand(self.filters, width, 3, 3, generator=rng) - 1
            params[f"block{block}.weight"] = bound * draw
            params[f"block{block}.scale"] = torch.ones(self.filters)
            params[f"block{block}.shift"] = torch.zeros(self.filters)
            width = self.filters
        flat = self.filters * (self.side >> BLOCKS) ** 2
        params["head.weight"], params["head.bias"] = init_linear(flat, self.outputs, rng)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The linear layer on the last block's feature maps."""
        table = inputs["table"]
        x = table.reshape(table.shape[0], self.channels, self.side, self.side)
        for block in range(BLOCKS):
            x = F.conv2d(x, params[f"block{block}.weight"], padding=1)
            x = self._normalise(x, inputs.get("real"))
            scale, shift = params[f"block{block}.scale"], params[f"block{block}.shift"]
            x = x * scale[:, None, None] + shift[:, None, None]
            x = torch.relu(F.max_pool2d(x, 2))  # pooling first gives the same, on a quarter of the numbers
        return x.flatten(1) @ params["head.weight"] + params["head.bias"]

    def _normalise(
        self, x: Float[Tensor, "rows filters height width"], real: Float[Tensor, " rows"] | None
    ) -> Float[Tensor, "rows filters height width"]:
        """Zero mean and unit variance; written out, because torch's fused forms go wrong under `vmap`."""
        if self.norm == "group":
            size = x.shape[1] // self.groups * x.shape[2] * x.shape[3]
            grouped = x.reshape(x.shape[0], self.groups, size)
            centered = grouped - grouped.mean(dim=2, keepdim=True)
            variance = centered.square().mean(dim=2, keepdim=True)
            return (centered * torch.rsqrt(variance + EPSILON)).reshape(x.shape)
        count = torch.ones_like(x[:, 0, 0, 0]) if real is None else real.to(x.dtype)
        share = (count / (count.sum().clamp(min=1.0) * x.shape[2] * x.shape[3]))[:, None, None, None]
        centered = x - (x * share).sum(dim=(0, 2, 3), keepdim=True)
        variance = (centered.square() * share).sum(dim=(0, 2, 3), keepdim=True)
        return centered * torch.rsqrt(variance + EPSILON)
