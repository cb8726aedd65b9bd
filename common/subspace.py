"""Which part of the meta-parameters learns: all of them, the head, or a low-rank change of each weight.

Private training needs few numbers: noise has a size in each of them, a clipped signal only in all together.

With `low_rank` a weight W of shape [a, ...] moves as W + A B. A is [a, r] with orthonormal columns, random
but fixed by the plan's seed, so that nobody has to send it; B is [r, ...] and learns. The chain rule gives
dL/dB = A^T dL/dW: a site sends the projection of its meta-gradient, whose norm is at most the gradient's own.
The optimizer of the coordinator moves B from 0, and A B is added to W; the next round starts at 0 again,
which is the same for an optimizer whose step does not depend on where it is (all of `optim`). Tensors with
one axis (biases, rates), and weights whose first axis is not longer than r, learn in full.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clinimeta.common.params import count
from clinimeta.common.rng import generator
from clinimeta.common.typing import Params

Part = Literal["all", "head", "low_rank"]


@dataclass(frozen=True, slots=True)
class Subspace:
    """The numbers that learn. All methods take tensors with any axes (tasks, sites) before a parameter's own.

    `names` are the tensors that learn (None: all, as they are); `bases` the A of those that learn a
    low-rank change, in float64, and `axes` how many axes these have.
    """

    names: tuple[str, ...] | None = None
    bases: Mapping[str, Float[Tensor, "_ rank"]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)

    def project(self, gradient: Params) -> Params:
        """A gradient in the meta-parameters -> the gradient in the numbers that learn; what a site sends."""
        if self.names is None:
            return gradient
        return {name: self._along(name, gradient[name]) for name in self.names}

    def at(self, params: Params) -> Params:
        """Where meta-parameters are, in the numbers that learn; a low-rank change counts from here, so 0."""
        if self.names is None:
            return params
        return {
            name: torch.zeros_like(self._along(name, params[name])) if name in self.bases else params[name]
            for name in self.names
        }

    def put(self, params: Params, values: Params) -> Params:
        """The meta-parameters after what learns went from `at(params)` to `values`; the rest is untouched."""
        if self.names is None:
            return values
        return {**params, **{name: self._moved(name, params[name], values[name]) for name in self.names}}

    def size(self, params: Params) -> int:
        """How many numbers learn."""
        return count(self.at(params))

    def _along(self, name: str, tensor: Tensor) -> Tensor:
        """A^T times it, `[..., rank, ...]`."""
        if name not in self.bases:
            return tensor
        first = tensor.dim() - self.axes[name]
        matrices = tensor.flatten(first + 1)
        product = self.bases[name].to(matrices).T @ matrices
        return product.reshape(*tensor.shape[:first], -1, *tensor.shape[first + 1 :])

    def _moved(self, name: str, tensor: Tensor, value: Tensor) -> Tensor:
        if name not in self.bases:
            return value
        change = self.bases[name].to(tensor) @ value.flatten(value.dim() - self.axes[name] + 1)
        return tensor + change.reshape(tensor.shape)


ALL = Subspace()
"""Everything learns, bit for bit as without a subspace."""


def head_of(params: Params, head: Iterable[str]) -> Subspace:
    """The model's last layer, wherever the learner keeps it (`head` are the model's names for it).

    Raises:
        ValueError: the meta-parameters have no such layer.

    >>> params = {"embedder.layer0.weight": torch.zeros(2), "embedder.layer1.weight": torch.zeros(2)}
    >>> head_of(params, ["layer1.weight", "layer1.bias"]).names
    ('embedder.layer1.weight',)
    """
    wanted = tuple(head)
    names = tuple(n for n in params if any(n == h or n.endswith(f".{h}") for h in wanted))
    if not names:
        raise ValueError("the meta-parameters have no last layer that could learn alone")
    return Subspace(names)


def low_rank_of(params: Params, rank: int, seed: int) -> Subspace:
    """A change of rank `rank` of each weight of meta-parameters of these shapes; A is made from the seed.

    Raises:
        ValueError: the rank is not positive.
    """
    if rank < 1:
        raise ValueError(f"the rank is {rank}, expected 1 or more")
    bases = {
        name: _orthonormal(len(p), rank, "low rank", seed, name)
        for name, p in params.items()
        if p.dim() > 1 and len(p) > rank
    }
    return Subspace(tuple(params), bases, {name: params[name].dim() for name in bases})


def _orthonormal(rows: int, columns: int, *key: str | int) -> Float[Tensor, "rows columns"]:
    """Random orthonormal columns: a QR decomposition, made unique by a positive diagonal of R."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator(*key), dtype=torch.float64))
    unique: Tensor = q * torch.sign(torch.diagonal(r))
    return unique


def subspace_of(part: Part, params: Params, head: Iterable[str], rank: int, seed: int) -> Subspace:
    """What a plan's words mean for meta-parameters of these shapes.

    Raises:
        ValueError: there is no head, or the rank is not positive.
    """
    if part == "head":
        return head_of(params, head)
    return low_rank_of(params, rank, seed) if part == "low_rank" else ALL
