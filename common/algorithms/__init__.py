"""Meta-learners, each in one file that reads as its paper, found by name.

Metric-based: `protonet`, `matching`, `relation`, `mahalanobis`. Model-based: `hypernetwork`,
`neural_process`. Optimization-based: `maml`, `anil`, `meta_sgd`, `maml_plus_plus`, `reptile`, `imaml`,
`learned_optimizer`. Baselines: `fine_tune` (FedAvg, FedAvg + fine-tuning, local only), `fedrep`,
`per_fedavg`.

What they share: `inner_loop` (gradient descent on a support set), `prototypes`, `deep_set`, `perceptron`.
`meta_gradient` says what per-task meta-gradients are; `engine` computes them fast, with `tracing`.
"""

from typing import Any

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.registry import Registry

ALGORITHMS: Registry[MetaLearner[Any]] = Registry("algorithm", __name__)
