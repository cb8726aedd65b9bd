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
from clinimeta.common.models.base import channels_last, init_linear, is_channels_last
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
        table, filters = inputs["table"], [params[f"block{block}.weight"] for block in range(BLOCKS)]
        if is_channels_last(filters[1]):  # the first's layout says nothing where there is one channel
            filters[0] = channels_last(filters[0])
        x = table.reshape(table.shape[0], self.channels, self.side, self.side)
        for block in range(BLOCKS):
            x = F.conv2d(x, filters[block], padding=1)
            scale, shift = params[f"block{block}.scale"], params[f"block{block}.shift"]
            x = self._normalise(x, scale, shift, inputs.get("real"))
            x = torch.relu(F.max_pool2d(x, 2))  # pooling first gives the same, on a quarter of the numbers
        return x.flatten(1) @ params["head.weight"] + params["head.bias"]

    def _normalise(
        self,
        x: Float[Tensor, "rows filters height width"],
        scale: Float[Tensor, " filters"],
        shift: Float[Tensor, " filters"],
        real: Float[Tensor, " rows"] | None,
    ) -> Float[Tensor, "rows filters height width"]:
        """Zero mean and unit variance, then scale and shift.

        Torch's fused forms go wrong where a vmapped inner gradient is differentiated from outside, which
        `meta_gradient` never does; the contract suite holds them to central differences.
        """
        if self.norm == "group":
            return F.group_norm(x, self.groups, scale, shift, EPSILON)
        if real is None:
            return F.batch_norm(x, None, None, scale, shift, training=True, eps=EPSILON)
        count = real.to(x.dtype)
        share = (count / (count.sum().clamp(min=1.0) * x.shape[2] * x.shape[3]))[:, None, None, None]
        centered = x - (x * share).sum(dim=(0, 2, 3), keepdim=True)
        variance = (centered.square() * share).sum(dim=(0, 2, 3), keepdim=True)
        normal = centered * torch.rsqrt(variance + EPSILON)
        return normal * scale[:, None, None] + shift[:, None, None]
