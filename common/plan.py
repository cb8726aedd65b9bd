"""The part of a study that a site acts on: what a hospital reads, and approves, and nothing else."""

import functools
import hashlib
import json
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.algorithms.base import MetaLearner
from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.protection import Protection
from clinimeta.common.settings import Settings, parse
from clinimeta.common.tasks.sampler import Episodes
from clinimeta.common.tasks.schema import Schema


class Choice(BaseModel):
    """A registered thing by name, with its hyperparameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters."""
        return dict(self.model_extra or {})


class Plan(Settings):
    """The part of a study that a site acts on; what a hospital approves is this and nothing else."""

    study: str
    arm: str
    application: str
    table: Schema
    model: Choice
    algorithm: Choice
    episodes: Episodes
    local_meta_steps: Annotated[int, Ge(1)]
    local_rate: Annotated[float, Gt(0)]
    proximal: Annotated[float, Ge(0)]
    weighting: Literal["tasks", "rows"]
    protection: Protection
    seed: Annotated[int, Ge(0)]

    def canonical(self) -> bytes:
        """The one byte string of this plan (sorted keys, no spaces)."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, hexadecimal."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @staticmethod
    def from_bytes(data: bytes) -> "Plan":
        """Read canonical bytes back.

        Raises:
            StudyError: not a plan of this version, or not in canonical form.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise StudyError("the plan received is not JSON") from None
        plan = parse(Plan, values, "the plan received")
        if plan.canonical() != data:
            raise StudyError("the plan received is not in canonical form")
        return plan

    def learner(self) -> MetaLearner[Any]:
        """The learner that this plan describes.

        Raises:
            StudyError: an unknown algorithm, model or application, or a hyperparameter out of range.
        """
        return _learner_of(self.canonical())


@functools.lru_cache(maxsize=64)
def _learner_of(canonical: bytes) -> MetaLearner[Any]:
    plan = Plan.from_bytes(canonical)
    where = f"arm '{plan.arm}'"
    per_class = plan.table.classes and plan.episodes.draw == "per_class"
    classes = plan.episodes.ways if per_class else len(plan.table.classes)
    objective = APPLICATIONS.build(plan.application, {}, where, classes=classes)
    model = MODELS.build(
        plan.model.name,
        plan.model.options,
        where,
        features=len(plan.table.features),
        outputs=objective.outputs,
    )
    return ALGORITHMS.build(
        plan.algorithm.name, plan.algorithm.options, where, model=model, objective=objective
    )
