"""Arithmetic on named tensors: what aggregation, optimizers and inner loops are written in."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from clinimeta.common.typing import Params


def map_params(function: Callable[..., Tensor], *params: Params) -> Params:
    """Apply `function` to the tensors of the same name; the first argument's order is kept.

    Raises:
        ValueError: the arguments do not hold the same names.
    """
    first, *rest = params
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(f"parameter names differ: {sorted(set(first) ^ set(other))}")
    return {name: function(*(p[name] for p in params)) for name in first}


def zeros_like(params: Params) -> Params:
    """Zeros of the same names, shapes and dtypes."""
    return map_params(torch.zeros_like, params)


def add(left: Params, right: Params, scale: float = 1.0) -> Params:
    """`left + scale * right`."""
    return map_params(lambda a, b: a + scale * b, left, right)


def scaled(params: Params, scale: float) -> Params:
    """`scale * params`."""
    return map_params(lambda a: scale * a, params)


def norm(params: Params) -> float:
    """The Euclidean norm of all entries, taken in float64, name by name in order of name.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    5.0
    """
    norms = (torch.linalg.vector_norm(params[name], dtype=torch.float64) for name in sorted(params))
    return math.hypot(*map(float, norms))


def is_finite(params: Params) -> bool:
    """Whether no entry is NaN or infinite."""
    # A finite sum has finite terms; only one that overflowed needs the longer look.
    return all(math.isfinite(p.sum().item()) or bool(torch.isfinite(p).all()) for p in params.values())


def count(params: Params) -> int:
    """How many numbers there are."""
    return sum(p.numel() for p in params.values())


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(p.shape) for name, p in params.items()}


def like(params: Params, template: Params) -> bool:
    """Whether two mappings have the same names, shapes and dtypes."""
    return shapes(params) == shapes(template) and all(
        params[name].dtype == tensor.dtype for name, tensor in template.items()
    )


def prefixed(params: Params, prefix: str) -> Params:
    """The same tensors under `prefix.name`, to keep several parts in one flat mapping."""
    return {f"{prefix}.{name}": p for name, p in params.items()}


def part(params: Params, prefix: str) -> Params:
    """The inverse of `prefixed`: the tensors whose name starts with `prefix.`, without it.

    >>> sorted(part(prefixed({"w": torch.zeros(1)}, "model"), "model"))
    ['w']
    """
    return {name[len(prefix) + 1 :]: p for name, p in params.items() if name.startswith(f"{prefix}.")}


def digest(params: Params) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: equal exactly when two runs agree to the bit."""
    hasher = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().contiguous()
        hasher.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()
