"""A convolutional network on signals: an electrocardiogram, or vital signs over time."""

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
from clinimeta.common.typing import Inputs, Params

EPSILON = 1e-5


@MODELS.register("conv1d")
@dataclass(frozen=True, slots=True)
class Conv1d:
    """Blocks of convolution in time, group normalisation, SiLU and mean of 2 steps; then the mean over time.

    A row's `features` numbers are `channels` signals of equally many steps, one signal after the other.
    A block halves the steps while there is more than one. Each row is normalised by itself (Wu and He,
    ECCV 2018), so that no row's output depends on another. SiLU and means, because they are smooth: with
    ReLU, a group of filters that is silent in a row stands exactly on the kink.
    """

    features: int
    outputs: int
    channels: Annotated[int, Ge(1)] = 1
    filters: Annotated[int, Ge(1)] = 32
    kernel: Annotated[int, Ge(1)] = 5
    blocks: Annotated[int, Ge(1)] = 3
    groups: Annotated[int, Ge(1)] = 4
    head: ClassVar[tuple[str, ...]] = ("head.weight", "head.bias")
    convolutional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise StudyError where the numbers make no signals, the filters no groups, the kernel no middle."""
        where, remedy = "model 'conv1d'", "change one of them"
        if self.features % self.channels:
            raise StudyError(
                "the table's features are not signals of one length",
                where=where,
                found=f"{self.features} features, {self.channels} channels",
                expected="features = channels x steps",
                remedy="correct `channels`, or choose another model",
            )
        if self.filters % self.groups:
            raise StudyError(
                "the filters cannot be divided into the groups",
                where=where,
                found=f"{self.filters} filters, {self.groups} groups",
                expected="`filters` a multiple of `groups`",
                remedy=remedy,
            )
        if self.kernel % 2 == 0:
            raise StudyError(
                "the kernel has no middle",
                where=where,
                found=f"a kernel of {self.kernel} steps",
                expected="an odd number",
                remedy="make it one longer or shorter",
            )
        if self.filters // self.groups * self._steps_of(self.blocks - 1) < 2:
            raise StudyError(
                "in the last block a group is a single number, which normalisation turns into zero",
                where=where,
                found=f"{self.filters} filters in {self.groups} groups, {self.blocks} blocks",
                expected="fewer groups or fewer blocks",
                remedy=remedy,
            )

    def _steps_of(self, block: int) -> int:
        """Steps of the signals that a block receives, each block before it having halved them."""
        return max(1, (self.features // self.channels) >> block)

    def init(self, rng: torch.Generator) -> Params:
        """A filter bank and the normalisation's scale and shift a block, then a linear layer."""
        params: dict[str, Tensor] = {}
        width = self.channels
        for block in range(self.blocks):
            bound = 1 / math.sqrt(self.kernel * width)
            draw = 2 * torch.rand(self.filters, width, self.kernel, generator=rng) - 1
            params[f"block{block}.weight"] = bound * draw
            params[f"block{block}.scale"] = torch.ones(self.filters)
            params[f"block{block}.shift"] = torch.zeros(self.filters)
            width = self.filters
        params["head.weight"], params["head.bias"] = init_linear(width, self.outputs, rng)
        return params

    def apply(self, params: Params, inputs: Inputs) -> Float[Tensor, "rows outputs"]:
        """The linear layer on the last block's mean over time."""
        table = inputs["table"]
        x = table.reshape(table.shape[0], self.channels, self.features // self.channels)
        for block in range(self.blocks):
            x = F.conv1d(x, params[f"block{block}.weight"], padding=self.kernel // 2)
            x = self._normalise(x)
            x = x * params[f"block{block}.scale"][:, None] + params[f"block{block}.shift"][:, None]
            x = F.silu(x)
            if x.shape[2] > 1:
                x = F.avg_pool1d(x, 2)
        return x.mean(dim=2) @ params["head.weight"] + params["head.bias"]

    def _normalise(self, x: Float[Tensor, "rows filters steps"]) -> Float[Tensor, "rows filters steps"]:
        """Zero mean and unit variance in each group of filters of each row; written out for `vmap`."""
        rows, filters, steps = x.shape
        grouped = x.reshape(rows, self.groups, filters // self.groups * steps)
        centered = grouped - grouped.mean(dim=2, keepdim=True)
        variance = centered.square().mean(dim=2, keepdim=True)
        return (centered * torch.rsqrt(variance + EPSILON)).reshape(x.shape)
