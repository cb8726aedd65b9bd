"""The same meta-gradients by other libraries, each in the way its own examples go about it.

All of them take a `torch.nn.Module` and go task by task, with autograd through the inner loop. Every
function here returns the sum of the tasks' meta-gradients under clinimeta's names.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own habit)
from torch import Tensor, nn

from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.models.conv4 import BLOCKS, Conv4
from clinimeta.common.models.mlp import MLP
from clinimeta.common.tasks.episode import Episode, Examples
from clinimeta.common.typing import Params
from clinimeta.simulations.benchmarks.measuring import peer

LOOP = "clone-and-adapt loop (as learn2learn)"
Step = Callable[[], Params]


def candidates(learner: MAML, params: Params, batch: Episode) -> dict[str, Step]:
    """Label -> one outer step, for every library that is installed; learn2learn (or the loop) first."""
    known: dict[str, Callable[..., None] | None] = {
        "learn2learn": learn2learn if peer("learn2learn") else None,
        LOOP: None if peer("learn2learn") else clone_and_adapt,
        "TorchOpt": torchopt if peer("torchopt") and not learner.first_order else None,
        "higher": higher if peer("higher") else None,
    }
    return {
        label: partial(_outer_step, run, module_of(learner.model, params), learner, params, batch)
        for label, run in known.items()
        if run is not None
    }


def clone_and_adapt(module: nn.Module, learner: MAML, batch: Episode) -> None:
    """What learn2learn's MAML does, in plain autograd: clone, step on the clone, backward to the original."""
    for support, query in _tasks(batch):
        fast = _clone(module)
        for _ in range(learner.inner_steps):
            loss = _loss(fast, support)
            gradients = torch.autograd.grad(
                loss, list(fast.parameters()), create_graph=not learner.first_order
            )
            _update(fast, iter(gradients), learner.inner_rate)
        torch.autograd.backward(_loss(fast, query))


def learn2learn(module: nn.Module, learner: MAML, batch: Episode) -> None:
    """learn2learn's MAML (Arnold et al. 2020)."""
    library: Any = peer("learn2learn")
    maml = library.algorithms.MAML(module, lr=learner.inner_rate, first_order=learner.first_order)
    for support, query in _tasks(batch):
        fast = maml.clone()
        for _ in range(learner.inner_steps):
            fast.adapt(_loss(fast, support))
        torch.autograd.backward(_loss(fast, query))


def torchopt(module: nn.Module, learner: MAML, batch: Episode) -> None:
    """TorchOpt's differentiable SGD (Ren et al. 2023); it has no first-order variant."""
    library: Any = peer("torchopt")
    optimizer = library.MetaSGD(module, lr=learner.inner_rate)
    start = library.extract_state_dict(module, by="reference")
    fresh = library.extract_state_dict(optimizer)
    for support, query in _tasks(batch):
        for _ in range(learner.inner_steps):
            optimizer.step(_loss(module, support))
        torch.autograd.backward(_loss(module, query))
        library.recover_state_dict(module, start)
        library.recover_state_dict(optimizer, fresh)


def higher(module: nn.Module, learner: MAML, batch: Episode) -> None:
    """Facebook's higher (Grefenstette et al. 2019); first order: the gradient at the fast weights."""
    library: Any = peer("higher")
    sgd = torch.optim.SGD(module.parameters(), lr=learner.inner_rate)
    exact = not learner.first_order
    for support, query in _tasks(batch):
        with library.innerloop_ctx(module, sgd, copy_initial_weights=False, track_higher_grads=exact) as (
            fast,
            optimizer,
        ):
            for _ in range(learner.inner_steps):
                optimizer.step(_loss(fast, support))
            loss = _loss(fast, query)
            if exact:
                torch.autograd.backward(loss)
            else:
                gradients = torch.autograd.grad(loss, list(fast.parameters()))
                for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def module_of(model: Any, params: Params) -> nn.Module:
    """The model as a module with these weights; its parameters come in the order of `params`."""
    builders: Mapping[type, Callable[[Any], list[nn.Module]]] = {MLP: _mlp, Conv4: _conv4}
    module = nn.Sequential(*builders[type(model)](model))
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), params.values(), strict=True):
            parameter.copy_(turned(value))
    return module


def gradients_of(module: nn.Module, params: Params) -> Params:
    """What `backward` left in the module, under the names of `params`."""
    found = [parameter.grad for parameter in module.parameters()]
    return {name: turned(g) for name, g in zip(params, found, strict=True) if g is not None}


def turned(value: Tensor) -> Tensor:
    """A matrix the other way round: torch's layers keep `[out, in]`, clinimeta's `[in, out]`."""
    return value.T if value.dim() == 2 else value


def _outer_step(
    run: Callable[..., None], module: nn.Module, learner: MAML, params: Params, batch: Episode
) -> Params:
    module.zero_grad()
    run(module, learner, batch)
    return gradients_of(module, params)


def _mlp(model: MLP) -> list[nn.Module]:
    sizes = [model.features, *model.hidden, model.outputs]
    parts: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        parts += [nn.Linear(wide, narrow), nn.ReLU()]
    return parts[:-1]


def _conv4(model: Conv4) -> list[nn.Module]:
    parts: list[nn.Module] = [nn.Unflatten(1, (model.channels, model.side, model.side))]
    for block in range(BLOCKS):
        wide = model.filters if block else model.channels
        parts += [
            nn.Conv2d(wide, model.filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(model.filters, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    flat = model.filters * (model.side >> BLOCKS) ** 2
    return [*parts, nn.Flatten(), nn.Linear(flat, model.outputs)]


def _tasks(batch: Episode) -> Iterator[tuple[Examples, Examples]]:
    for i in range(len(batch.support.targets)):
        yield _task(batch.support, i), _task(batch.query, i)


def _task(rows: Examples, i: int) -> Examples:
    return Examples({"table": rows.inputs["table"][i]}, rows.targets[i], rows.weights[i])


def _loss(module: Callable[[Tensor], Tensor], rows: Examples) -> Tensor:
    outputs = module(rows.inputs["table"])
    if rows.targets.is_floating_point():
        return F.mse_loss(outputs.squeeze(-1), rows.targets)
    return F.cross_entropy(outputs, rows.targets)


def _clone(module: nn.Module) -> nn.Module:
    """The module with every parameter a differentiable copy (learn2learn's `clone_module`)."""
    copied = module.__new__(type(module))
    copied.__dict__ = dict(module.__dict__)
    copied._parameters = {n: None if p is None else p.clone() for n, p in module._parameters.items()}  # type: ignore[misc]
    copied._modules = {n: None if m is None else _clone(m) for n, m in module._modules.items()}
    return copied


def _update(module: nn.Module, gradients: Iterator[Tensor], rate: float) -> None:
    """One step of gradient descent without writing in place (learn2learn's `maml_update`)."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = parameter - rate * next(gradients)  # type: ignore[assignment]
    for child in module.children():
        _update(child, gradients, rate)
