"""Networks as pure functions of their weights. One file a model, found by name."""

from clinimeta.common.models.base import Model
from clinimeta.common.registry import Registry

MODELS: Registry[Model] = Registry("model", __name__)
