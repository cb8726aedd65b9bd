"""Turn a function of tensors into one compiled call, without a new gradient having to be written.

`make_fx` records what the function does as torch's basic operations; dead code and repeated expressions are
dropped; `torch.jit.trace` runs the rest without Python. The operations and their order stay the same, so
the results are those of the function to the bit (`tests/contracts`).
"""

import warnings
from collections.abc import Callable
from typing import Any

import structlog
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

log = structlog.get_logger()


def traced(function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """`function`, compiled for arguments of the shapes and dtypes of `example`.

    Arguments and result are nests of tensors. What decides on a tensor's value cannot be traced. Where
    torch cannot trace at all, the function itself comes back: slower, never wrong.
    """
    leaves, arguments = pytree.tree_flatten(example)
    result: list[Any] = []

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        outputs, spec = pytree.tree_flatten(function(*pytree.tree_unflatten(list(values), arguments)))
        result[:] = [spec]
        return tuple(outputs)

    try:
        graph = _graph(flat, leaves)
    except Exception as error:  # whatever torch's tracer cannot do; the plain function can
        log.info("not traced", reason=type(error).__name__)
        return function
    compiled = _without_python(graph, leaves)

    def call(*values: Any) -> Any:
        return pytree.tree_unflatten(list(compiled(*pytree.tree_leaves(values))), result[0])

    return call


def _graph(flat: Callable[..., Any], leaves: list[Tensor]) -> torch.fx.GraphModule:
    from torch._functorch.compile_utils import fx_graph_cse
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(flat)(*leaves)
    graph.graph.eliminate_dead_code()
    graph.graph = fx_graph_cse(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _without_python(graph: torch.fx.GraphModule, leaves: list[Tensor]) -> Callable[..., Any]:
    """The graph for torch's own interpreter; the recorded Python where that lacks an operation."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Deprecated for torch.compile, which needs a C++ compiler at the hospital.
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled: Callable[..., Any] = torch.jit.trace(graph, leaves, check_trace=False)  # type: ignore[no-untyped-call]
    except RuntimeError:  # convolution_backward's optional sizes, in torch 2.13
        return graph
    return compiled
