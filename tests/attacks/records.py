"""What is attacked: few-shot tasks of public records (scikit-learn), and the update that a site computes."""

import functools
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from clinimeta.common.algorithms.engine import engine
from clinimeta.common.algorithms.maml import MAML
from clinimeta.common.applications.diagnosis import Diagnosis
from clinimeta.common.models.mlp import MLP
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.batch import stack
from clinimeta.common.tasks.episode import Episode, examples
from clinimeta.common.typing import Params

Kind = Literal["table", "picture"]
WAYS = {"table": 2, "picture": 5}


@functools.cache
def records(kind: Kind) -> tuple[Tensor, Tensor]:
    """Breast cancer, `[569, 30]` standardised, or digits enlarged to `[1797, 784]`; and the classes."""
    found = load_breast_cancer() if kind == "table" else load_digits()
    x = torch.from_numpy(np.asarray(found.data, dtype=np.float32))
    y = torch.from_numpy(np.asarray(found.target))
    if kind == "table":
        return (x - x.mean(dim=0)) / x.std(dim=0), y
    pictures = torch.nn.functional.interpolate(x.reshape(-1, 1, 8, 8) / 16, size=(28, 28), mode="bilinear")
    return pictures.flatten(1), y


def victim(
    kind: Kind, *, first_order: bool, activation: Literal["relu", "tanh"] = "relu", inner_steps: int = 5
) -> MAML:
    """MAML on one hidden layer of 64 units."""
    x, _ = records(kind)
    objective = Diagnosis(WAYS[kind])
    network = MLP(x.shape[1], objective.outputs, hidden=(64,), activation=activation)
    return MAML(network, objective, inner_steps=inner_steps, inner_rate=0.1, first_order=first_order)


def draw_task(kind: Kind, query: int, *key: str | int) -> Episode:
    """One support row a class, and `query` query rows in all, the classes in turn."""
    x, y = records(kind)
    rng = generator("attacked task", kind, *key)
    classes = torch.randperm(int(y.max()) + 1, generator=rng)[: WAYS[kind]]
    rows: list[Tensor] = []
    for c in classes:
        of_class = torch.nonzero(y == c).flatten()
        rows.append(of_class[torch.randperm(len(of_class), generator=rng)])
    turns = [(i % WAYS[kind], 1 + i // WAYS[kind]) for i in range(query)]
    support = torch.stack([own[0] for own in rows])
    chosen = torch.stack([rows[c][i] for c, i in turns])
    labels = torch.tensor([c for c, _ in turns])
    return Episode(
        examples({"table": x[support]}, torch.arange(WAYS[kind])), examples({"table": x[chosen]}, labels)
    )


def task_gradients(learner: MAML, params: Params, tasks: list[Episode]) -> Params:
    """What the project's engine computes: one meta-gradient a task, `[tasks, ...]` on every tensor."""
    return engine(learner).task_gradients(params, stack(tasks)).gradients


def first(gradients: Params) -> Params:
    """The first task's own meta-gradient."""
    return map_params(lambda g: g[0], gradients)


def summed(gradients: Params) -> Params:
    """What leaves a site, or, under secure aggregation, a cohort."""
    return map_params(lambda g: g.sum(dim=0), gradients)
