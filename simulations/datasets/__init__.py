"""Where a simulated federation's hospitals come from: one file a data set, found by name."""

from clinimeta.common.registry import Registry
from clinimeta.simulations.datasets.base import Dataset

DATASETS: Registry[Dataset] = Registry("data set", __name__)
