"""Small episodes and learners for tests, in float64 unless asked otherwise.

On a GPU with CLINIMETA_TEST_DEVICE=cuda.
"""

import os
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
DEVICE = os.environ.get("CLINIMETA_TEST_DEVICE", "cpu")
WIDTHS = {"conv4": 16 * 16, "conv1d": 2 * 8}
"""Features of the models that need a certain number; every other takes `FEATURES`."""
KINDS = {"binary": ("diagnosis", 2), "three classes": ("diagnosis", 3), "regression": ("regression", 0)}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [5], "activation": "tanh"},
    "conv4": {"filters": 4, "groups": 2},
    "conv1d": {"channels": 2, "filters": 4, "groups": 2},
    "set_encoder": {"width": 4, "heads": 2, "layers": 1},
}
QUICK: dict[str, dict[str, Any]] = {
    "protonet": {"embedding": 6},
    "matching": {"embedding": 6},
    "relation": {"embedding": 5, "hidden": 4},
    "mahalanobis": {"embedding": 4},
    "hypernetwork": {"embedding": 5, "hidden": 6, "tune_steps": 1},
    "neural_process": {"embedding": 8, "hidden": 16},
    "maml": {"inner_steps": 2},
    "maml++": {"inner_steps": 2, "initial_rate": 0.02},
    "anil": {"inner_steps": 3},
    "meta_sgd": {"inner_steps": 2},
    "learned_optimizer": {"inner_steps": 2, "hidden": 4},
    "reptile": {"inner_steps": 3},
    "imaml": {"inner_steps": 4, "inner_rate": 0.02, "cg_steps": 3},
    "fedrep": {"head_steps": 3},
}


def learner(algorithm: str, model: str, kind: str, **options: Any) -> MetaLearner[Any]:
    """A small learner; raises StudyError where the combination makes no sense."""
    application, classes = KINDS[kind]
    objective = APPLICATIONS.build(application, {}, classes=classes)
    network = MODELS.build(model, SMALL.get(model, {}), features=width(model), outputs=objective.outputs)
    chosen = QUICK.get(algorithm, {}) | options
    return ALGORITHMS.build(algorithm, chosen, model=network, objective=objective)


def width(model: str) -> int:
    """How many features the tests give this model."""
    return WIDTHS.get(model, FEATURES)


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


def rows(
    kind: str,
    count: int,
    *key: str | int,
    dtype: torch.dtype = torch.float64,
    features: int = FEATURES,
) -> Examples:
    """Separable rows: the target follows the first quarters of the features; every class occurs."""
    rng = generator("rows", *key)
    x = torch.randn(count, features, generator=rng, dtype=torch.float64)
    quarters = x.reshape(count, FEATURES, -1)  # of an image: bands, which pooling leaves visible
    _, classes = KINDS[kind]
    if classes:
        y = torch.arange(count) % classes
        quarters[torch.arange(count), y] += 3.0
    else:
        sums = quarters.sum(dim=2) / quarters.shape[2] ** 0.5
        y = (sums[:, 0] - 0.5 * sums[:, 1]).to(dtype)
    return examples({"table": x.to(DEVICE, dtype)}, y.to(DEVICE))


def episodes(
    kind: str,
    sizes: list[tuple[int, int]],
    *,
    dtype: torch.dtype = torch.float64,
    features: int = FEATURES,
) -> list[Episode]:
    """One episode for each (support rows, query rows)."""

    def half(side: str, count: int, number: int) -> Examples:
        return rows(kind, count, side, number, dtype=dtype, features=features)

    return [Episode(half("support", s, i), half("query", q, i)) for i, (s, q) in enumerate(sizes)]


def start(chosen: MetaLearner[Any], *, dtype: torch.dtype = torch.float64) -> Params:
    """Fresh meta-parameters."""
    return map_params(lambda p: p.to(DEVICE, dtype), chosen.init(generator("test init")))
