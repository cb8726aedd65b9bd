"""What a task is for: its loss and its metrics. One file an application, found by name."""

from clinimeta.common.registry import Registry
from clinimeta.common.tasks.objective import Objective

APPLICATIONS: Registry[Objective] = Registry("application", __name__)
