"""Small episodes and learners for tests, in float64 unless asked otherwise."""

from typing import Any

import torch

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.params import map_params
from clinimeta.common.rng import generator
from clinimeta.common.tasks.episode import Episode, Examples, examples
from clinimeta.common.typing import Params

FEATURES = 4
KINDS = {"binary": ("diagnosis", 2), "three classes": ("diagnosis", 3), "regression": ("regression", 0)}
SMALL = {"mlp": {"hidden": [5], "activation": "tanh"}}


def learner(algorithm: str, model: str, kind: str, **options: Any) -> MetaLearner[Any]:
    """A small learner; raises StudyError where the combination makes no sense."""
    application, classes = KINDS[kind]
    objective = APPLICATIONS.build(application, {}, classes=classes)
    network = MODELS.build(model, SMALL.get(model, {}), features=FEATURES, outputs=objective.outputs)
    return ALGORITHMS.build(algorithm, options, model=network, objective=objective)


def combinations() -> list[tuple[str, str, str]]:
    """Every registered algorithm x model x kind of task that can be built."""
    found = []
    for algorithm in ALGORITHMS.names():
        for model in MODELS.names():
            for kind in KINDS:
                try:
                    learner(algorithm, model, kind)
                except StudyError:
                    continue
                found.append((algorithm, model, kind))
    return found


def rows(kind: str, count: int, *key: str | int, dtype: torch.dtype = torch.float64) -> Examples:
    """Separable rows: the target follows the first features; every class occurs."""
    rng = generator("rows", *key)
    x = torch.randn(count, FEATURES, generator=rng, dtype=torch.float64)
    _, classes = KINDS[kind]
    if classes:
        y = torch.arange(count) % classes
        x[torch.arange(count), y] += 3.0
    else:
        y = (x[:, 0] - 0.5 * x[:, 1]).to(dtype)
    return examples({"table": x.to(dtype)}, y)


def episodes(kind: str, sizes: list[tuple[int, int]], *, dtype: torch.dtype = torch.float64) -> list[Episode]:
    """One episode for each (support rows, query rows)."""
    return [
        Episode(rows(kind, s, "support", i, dtype=dtype), rows(kind, q, "query", i, dtype=dtype))
        for i, (s, q) in enumerate(sizes)
    ]


def start(chosen: MetaLearner[Any], *, dtype: torch.dtype = torch.float64) -> Params:
    """Fresh meta-parameters."""
    return map_params(lambda p: p.to(dtype), chosen.init(generator("test init")))
