"""Meta-learners, each in one file that reads as its paper, found by name.

Optimization-based: `maml`. Metric-based: `protonet`. Baseline: `fine_tune` (FedAvg, FedAvg + fine-tuning,
local only). `inner_loop` is gradient descent on a support set; `meta_gradient` turns any learner into
per-task meta-gradients.
"""

from typing import Any

from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.registry import Registry

ALGORITHMS: Registry[MetaLearner[Any]] = Registry("algorithm", __name__)
