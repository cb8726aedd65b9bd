"""The few types that every module speaks: parameters and inputs."""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

Params: TypeAlias = Mapping[str, Tensor]
"""Named tensors, flat: a model's weights, a learner's meta-parameters, or a gradient of either."""

Inputs: TypeAlias = Mapping[str, Tensor]
"""Modality -> rows of it, each `[rows, ...]`; a tabular study has `table`, and `present` if it masks."""
